"""Files of points and meshes: .ply, .off, .obj, .npz, .npy, .h5 and .xyz, told apart by their first bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.modalities.pointcloud.mesh import Mesh

POINTS = ("points", "data", "pos", "xyz", "vertices", "pc", "point_cloud")
"""What the array of points may be called in .npz and .h5 files."""


def read(blob: bytes) -> Tensor | Mesh:
    """One file's bytes as points (n, 3) float32, or as a mesh where the file has faces.

    Raises:
        ValueError: where the bytes are no cloud that can be read.
    """
    if blob[:3] == b"ply":
        from mmssl.modalities.pointcloud.ply import read_ply

        return sample(*read_ply(blob))
    if blob[:6] == b"\x93NUMPY":
        return sample(np.load(io.BytesIO(blob), allow_pickle=False))
    if blob[:4] == b"PK\x03\x04":
        with np.load(io.BytesIO(blob), allow_pickle=False) as held:
            return _from_arrays({key: held[key] for key in held.files})
    if blob[:8] == b"\x89HDF\r\n\x1a\n":
        import h5py

        with h5py.File(io.BytesIO(blob)) as held:
            return _from_arrays({key: item[()] for key, item in held.items() if isinstance(item, h5py.Dataset)})
    return _text(blob)


def sample(points: np.ndarray, faces: np.ndarray | None = None) -> Tensor | Mesh:
    """Arrays as a checked sample.

    Args:
        points: (n, 3 or more); what follows the third column (normals, colours) is left out.
        faces: (f, 3) places of corners, or None.

    Raises:
        ValueError: for another shape, no points, values that are not finite, or faces that name no vertex.
    """
    if points.ndim == 3:
        raise ValueError(
            f"the file holds {points.shape[0]} clouds of {points.shape[1]} points, and a folder of files wants one "
            "cloud per file; read it with data=clouds data.root=FILE"
        )
    if points.ndim != 2 or points.shape[1] < 3 or not len(points):
        raise ValueError(f"points have to be an array (n, 3) with n at least 1 (got shape {tuple(points.shape)})")
    kept = torch.from_numpy(np.array(points[:, :3], dtype=np.float32))
    broken = int((~torch.isfinite(kept)).any(1).sum())
    if broken:
        raise ValueError(f"{broken} of {len(kept)} points have a coordinate that is not finite (NaN or infinite)")
    if faces is None or not len(faces):
        return kept
    corners = torch.from_numpy(np.array(faces, dtype=np.int64))
    if int(corners.min()) < 0 or int(corners.max()) >= len(kept):
        raise ValueError(f"a face names vertex {int(corners.max())}, but there are {len(kept)} vertices")
    first, second, third = kept[corners].unbind(1)
    if not bool((torch.linalg.cross(second - first, third - first).abs() > 0).any()):
        raise ValueError("no face of the mesh has an area, so no points can be sampled from it")
    return Mesh(kept, corners)


def find_points(names: Mapping[str, Any], start: str = "") -> str:
    """Which of some named arrays holds the points.

    Raises:
        ValueError: where none has a known name, with those there are.
    """
    for name in POINTS:
        if start + name in names:
            return start + name
    if len(names) == 1:
        return next(iter(names))
    raise ValueError(f"no array is called {', '.join(POINTS[:3])} or the like; there is: {', '.join(names) or 'none'}")


def _from_arrays(held: Mapping[str, np.ndarray]) -> Tensor | Mesh:
    return sample(held[find_points(held)], held.get("faces"))


def fan(polygons: list[list[int]]) -> np.ndarray:
    """Polygons cut into triangles that share their first corner, (f, 3) int64."""
    triangles = [(polygon[0], polygon[i], polygon[i + 1]) for polygon in polygons for i in range(1, len(polygon) - 1)]
    return np.array(triangles, dtype=np.int64).reshape(-1, 3)


def _text(blob: bytes) -> Tensor | Mesh:
    try:
        text = blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("neither a known binary format of points nor text") from error
    lines = [line for line in (line.split("#")[0].strip() for line in text.splitlines()) if line]
    if not lines:
        raise ValueError("the file is empty")
    try:
        if "OFF" in lines[0].upper()[:5]:
            return sample(*_off(lines))
        if any(line.startswith(("v ", "v\t")) for line in lines):
            return sample(*_obj(lines))
        return sample(_numbers(lines, len(lines)))
    except (IndexError, ValueError) as error:
        raise ValueError(f"not a readable cloud or mesh ({error})") from error


def _numbers(lines: list[str], count: int) -> np.ndarray:
    """Lines of equally many numbers, parted by blanks or commas, (count, columns)."""
    values = np.array(" ".join(lines).replace(",", " ").split(), dtype=np.float64)
    if count == 0 or len(values) % count:
        raise ValueError(f"{count} lines hold {len(values)} numbers: not equally many on each")
    return values.reshape(count, -1)


def _off(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Object File Format; also with the counts on the first line, as in ModelNet40."""
    head = lines[0].upper().split("OFF", 1)[1].split()
    lines = [" ".join(head), *lines[1:]] if head else lines[1:]
    vertices, faces = (int(word) for word in lines[0].split()[:2])
    if len(lines) < 1 + vertices + faces:
        raise ValueError(f"{vertices} vertices and {faces} faces are announced, but {len(lines) - 1} lines follow")
    polygons = [[int(word) for word in line.split()] for line in lines[1 + vertices : 1 + vertices + faces]]
    return _numbers(lines[1 : 1 + vertices], vertices), fan([line[1 : 1 + line[0]] for line in polygons])


def _obj(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Wavefront: vertices and faces, all else left out."""
    words = [line.split() for line in lines]
    vertices = [line[1:4] for line in words if line[0] == "v"]
    polygons, seen = [], 0
    for line in words:
        if line[0] == "v":
            seen += 1
        elif line[0] == "f":
            corners = [int(word.split("/")[0]) for word in line[1:]]
            polygons.append([corner - 1 if corner > 0 else seen + corner for corner in corners])
    return np.array(vertices, dtype=np.float64), fan(polygons)
