"""What generic data code knows of point clouds: how they are decoded, joined, measured and shown."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.modalities.pointcloud.drawing import draw
from mmssl.modalities.pointcloud.mesh import Mesh, Shown, surface_points
from mmssl.modalities.pointcloud.readers import read
from mmssl.registry import register

_PAIRS, _BINS = 1 << 15, 64
_DRAWN = 1024  # points drawn of a mesh, and at most of a cloud, for pictures and baselines


@register("modality/pointcloud")
class PointCloud:
    """The point-cloud modality. A decoded sample is a float32 tensor (n, 3), or a `Mesh` that views take points of."""

    name = "pointcloud"
    extensions = (".ply", ".off", ".obj", ".npz", ".npy", ".h5", ".hdf5", ".xyz")
    segment_extensions = (".npy", ".seg", ".txt")

    def decode(self, blob: bytes, channels: int | None = None) -> Tensor | Mesh:
        """Decodes one file.

        PLY (ASCII and binary), OFF, OBJ, `.npz` and `.h5` (an array `points`, and perhaps `faces`), `.npy`, and text of
        three or more columns. Only coordinates are read: no colours, no normals. Polygons become triangles.

        Args:
            blob: the bytes of the file.
            channels: 3 or None.

        Raises:
            ValueError: where the bytes are no cloud, or a coordinate is not finite.
        """
        sample = read(blob)
        return sample if channels is None else self.convert(sample, channels)

    def convert(self, sample: Tensor | Mesh, channels: int) -> Tensor | Mesh:
        """The sample itself: points have three coordinates and nothing else.

        Raises:
            ValueError: for another number.
        """
        if channels != 3:
            raise ValueError(f"data.channels={channels}, but points have 3 coordinates and nothing else; leave it null")
        return sample

    def segments(self, blob: bytes | None, sample: Tensor | Mesh) -> Tensor:
        """Classes of a cloud's points, (n,) int64, -1 where there is none.

        Args:
            blob: `.npy` of integers, or text of one integer per line, in the order of the points; below 0 is no class.
                None for a cloud without classes.
            sample: the cloud, (n, 3).

        Raises:
            ValueError: for a mesh, which has no points yet, and where there is not one integer per point.
        """
        if isinstance(sample, Mesh):
            raise ValueError("classes belong to points, and the sample is a mesh; save points of its surface")
        if blob is None:
            return torch.full((len(sample),), -1)
        content = io.BytesIO(blob)
        values = (
            np.load(content, allow_pickle=False) if blob[:6] == b"\x93NUMPY" else np.loadtxt(content, dtype=np.int64)
        )
        if values.dtype.kind not in "iu" or values.size != len(sample):
            raise ValueError(f"{values.shape} values of {values.dtype} for {len(sample)} points; give each an integer")
        return torch.from_numpy(np.maximum(values.reshape(-1).astype(np.int64), -1))

    def places(self, data: Tensor) -> Tensor:
        """Where points lie in the coordinates of tokens: a batch (b, n, 3) itself."""
        return data

    def collate(self, samples: Sequence[Tensor | Mesh]) -> Tensor:
        """Joins clouds of one size to a batch (b, n, 3).

        Raises:
            ValueError: for meshes, and where sizes differ, with the remedy.
        """
        clouds = [sample for sample in samples if isinstance(sample, Tensor)]
        sizes = sorted({len(cloud) for cloud in clouds})
        if len(clouds) == len(samples) and len(sizes) == 1:
            return torch.stack(clouds)
        found = "meshes" if len(clouds) < len(samples) else f"clouds of {sizes[0]} to {sizes[-1]} points"
        raise ValueError(
            f"a batch needs clouds of one size, and this one holds {found}; begin data.views and data.view with "
            "view/sample_points, which draws data.size points of each"
        )

    def facts(self, samples: Iterable[Tensor | Mesh]) -> dict[str, Any]:
        """Measures clouds one by one.

        Returns:
            `channels`, 3; `points`, [fewest, most] of a cloud, None where all are meshes; `meshes`, how many of the
            samples are; `extent`, the largest distance of a point from its cloud's mean; `counted`.

        Raises:
            ValueError: where there is no sample.
        """
        sizes, meshes, counted, extent = set(), 0, 0, 0.0
        for sample in samples:
            points = sample.vertices if isinstance(sample, Mesh) else sample
            meshes, counted = meshes + isinstance(sample, Mesh), counted + 1
            if not isinstance(sample, Mesh):
                sizes.add(len(points))
            extent = max(extent, float((points - points.mean(0)).norm(dim=1).max()))
        if not counted:
            raise ValueError("data.source gave no readable cloud to measure; check data.root")
        points = [min(sizes), max(sizes)] if sizes else None
        return {"channels": 3, "points": points, "meshes": meshes, "extent": extent, "counted": counted}

    def baseline(self, sample: Tensor | Mesh) -> Tensor:
        """The raw-input baseline, (64,) float32: Osada et al.'s D2, a histogram of distances of random pairs of points.

        Distances are in units of the largest norm of the centred cloud, so that the 64 bins cover [0, 2]. The same
        pairs are drawn for every cloud of a size.
        """
        points = _points(sample)
        points = points - points.mean(0)
        points = points / points.norm(dim=1).max().clamp(min=1e-12)
        first, second = _fixed("d2").integers(0, len(points), 2, _PAIRS)[0]
        place = ((points[first] - points[second]).norm(dim=1) * (_BINS / 2)).long().clamp(max=_BINS - 1)
        return torch.bincount(place, minlength=_BINS).float() / _PAIRS

    def picture(self, sample: Tensor | Mesh | Shown) -> np.ndarray:
        """The cloud to look at, uint8 (h, w, 3): a perspective scatter; hidden points are light grey."""
        if isinstance(sample, Shown):
            return draw(sample.points.cpu().numpy(), sample.seen.cpu().numpy())
        points = _points(sample)
        if len(points) > _DRAWN:
            points = points[_fixed("picture").order(len(points))[0, :_DRAWN]]
        return draw(points.cpu().numpy())


def _points(sample: Tensor | Mesh) -> Tensor:
    return surface_points(sample, _fixed("surface"), _DRAWN) if isinstance(sample, Mesh) else sample


def _fixed(name: str) -> Draws:
    """The same numbers for every cloud."""
    return Draws.of(0, 0, torch.zeros(1, dtype=torch.int64)).named(name)
