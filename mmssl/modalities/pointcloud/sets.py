"""Sets of clouds: files of many clouds, and the generated sample."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmssl.data.segments import SegmentTable
from mmssl.data.source import SPLITS, Adapter, Arrays, Dataset, find_root
from mmssl.data.subset import hold_out
from mmssl.modalities.pointcloud.generated import CLASSES, generate
from mmssl.modalities.pointcloud.readers import find_points
from mmssl.registry import register, suggest

_FILES = (".npz", ".h5", ".hdf5")
_LABELS = ("label", "labels", "y", "target", "category", "cls")
_SEGMENTS = ("segments", "part", "parts", "seg", "pid")
_CLASSES = ("classes", "categories", "class_names")
_TRAIN = 800


class _Held(NamedTuple):
    """What one file holds of one split: points (n, p, 3 or more), labels (n,) int64, and classes of points (n, p)."""

    points: np.ndarray
    labels: np.ndarray | None
    segments: np.ndarray | None


class Clouds(Arrays):
    """Clouds of one array (n, p, 3 or more); one with a coordinate that is not finite cannot be read.

    Args:
        samples: the array.
        labels: (n,) int64, or None.
        classes: names of the labels.
        origin: name for messages: `coseg/train`.
        segments: classes of the points, (n, p) integers, below 0 where there is none; or None.
    """

    def __init__(
        self,
        samples: np.ndarray,
        labels: Tensor | None,
        classes: list[str] | None,
        origin: str,
        segments: np.ndarray | None = None,
    ) -> None:
        super().__init__(samples, labels, classes, origin)
        self.segments = None if segments is None else SegmentTable(segments)

    def read(self, i: int) -> Tensor:
        """The i-th cloud, (p, 3) float32.

        Raises:
            ValueError: where a coordinate is NaN or infinite.
        """
        points = torch.from_numpy(np.array(self.samples[i, :, :3], dtype=np.float32))
        if not bool(torch.isfinite(points).all()):
            raise ValueError(f"{self.name(i)} has coordinates that are not finite (NaN or infinite)")
        return points


@register("source/clouds")
class CloudFiles:
    """Many clouds of equally many points in one file, or in a few: `.npz` or `.h5` with an array (n, p, 3).

    * One array `points` or `data`, and perhaps `label` or `labels`: ModelNet40's HDF5 files, for instance.
    * Or `train_points`, `train_labels`, `test_points`, ... for the splits in one file.
    * In a folder, files named by their split (`ply_data_train0.h5`, `test.npz`) are joined; others have to hold the
      splits themselves.
    * Classes of points, for `protocol/segmentation`: an array (n, p) of integers called `segments`, `part`, `parts`,
      `seg` or `pid`; below 0 is no class.
    * Class names: an array `classes` in the file, or `shape_names.txt` beside it.

    Labelled data without other splits hold out `test_share` of each class; see `mmssl.data.subset.hold_out`.

    Args:
        adapter: the modality.
        root: a file, or a folder with such files in it.
        label: name of the array of labels, without the split; null finds it.
        segments: name of the array of points' classes, likewise.
        segments_by_label: whether points' classes are counted anew for each label (part 1 of a chair, part 1 of a
            vase), as COSEG does: then every pair of a label and a class that occurs becomes a class of its own.
        test_share: share of each class that becomes the test split.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        root: str,
        label: str | None = None,
        segments: str | None = None,
        segments_by_label: bool = False,
        test_share: float = 0.1,
    ) -> None:
        self.adapter, self.root, self.label, self.test_share = adapter, root, label, test_share
        self.segments, self.by_label = segments, segments_by_label

    def splits(self) -> dict[str, Dataset]:
        """Data sets by split.

        Raises:
            ValueError: where there is no such file, or its arrays cannot be understood.
        """
        root = find_root(self.root)
        files = [root] if root.is_file() else sorted(f for f in root.iterdir() if f.suffix.lower() in _FILES)
        if not files or files[0].suffix.lower() not in _FILES:
            raise ValueError(
                f"data.root={self.root} is no file of clouds and holds none ({', '.join(_FILES)}); for a folder of one "
                "file per cloud use data=folder"
            )
        found: dict[str, list[_Held]] = {}
        classes = None
        for file in files:
            held = _load(file)
            classes = classes or _names(held, file)
            for split, start in _starts(held, file).items():
                found.setdefault(split, []).append(self._arrays(held, start, file))
        if "train" not in found:
            raise ValueError(f"data.root={self.root} has no train split, only {', '.join(found)}")
        if self.by_label:
            found = _apart(found, self.root)
        splits: dict[str, Dataset] = {
            split: _joined(parts, classes, f"{root.name}/{split}") for split, parts in found.items()
        }
        return hold_out(splits["train"], self.test_share) if set(splits) == {"train"} else splits

    def _arrays(self, held: dict[str, np.ndarray], start: str, file: Path) -> _Held:
        """What one file holds of one split."""
        try:
            points = held[find_points({name: value for name, value in held.items() if value.ndim == 3}, start)]
        except ValueError as error:
            raise ValueError(f"{file}: no array (clouds, points, 3) with a known name ({error})") from error
        if points.shape[2] < 3:
            raise ValueError(f"{file}: clouds have to be (clouds, points, 3) (got {points.shape})")
        label = self._named("label", _LABELS, held, start, file)
        segments = self._named("segments", _SEGMENTS, held, start, file)
        if segments is not None and self.segments is None and held[segments].size != points.shape[0] * points.shape[1]:
            segments = None  # an array of that name is something else
        return _Held(
            points,
            None if label is None else _one_each(held[label], len(points), f"{file}: {label}"),
            None if segments is None else _one_each(held[segments], points.shape[:2], f"{file}: {segments}"),
        )

    def _named(
        self, key: str, known: tuple[str, ...], held: dict[str, np.ndarray], start: str, file: Path
    ) -> str | None:
        """The array that a key names, or one of a known name; None where there is none."""
        said = getattr(self, key)
        if said is not None and start + said not in held:
            raise ValueError(
                f"data.source.{key}={said!r}: {file} has no array {start + said!r}{suggest(start + said, held)}"
            )
        return next((start + name for name in (known if said is None else (said,)) if start + name in held), None)


@register("source/pointcloud_sample")
class PointCloudSample:
    """The sample: 800 training and 200 test clouds of 1,024 points in 10 classes, generated from a fixed seed.

    No real set of shapes may be passed on with mmssl. Ten kinds of things are built of simple parts with random
    proportions, stretched, turned about the vertical axis, cut off on one side and noisy.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def splits(self) -> dict[str, Dataset]:
        """Train and test; made in about a second."""
        points, labels = generate()
        parts = {"train": slice(None, _TRAIN), "test": slice(_TRAIN, None)}
        return {
            split: Clouds(points[part], torch.from_numpy(labels[part]), list(CLASSES), f"sample/{split}")
            for split, part in parts.items()
        }


def _load(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, by name."""
    try:
        if file.suffix.lower() == ".npz":
            with np.load(file, allow_pickle=False) as held:
                return {name: held[name] for name in held.files}
        import h5py

        with h5py.File(file) as held:
            return {name: np.asarray(item) for name, item in held.items() if isinstance(item, h5py.Dataset)}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error})") from error


def _starts(held: dict[str, np.ndarray], file: Path) -> dict[str, str]:
    """The splits a file holds, and what the names of their arrays begin with."""
    starts = {name.split("_")[0]: f"{name.split('_')[0]}_" for name, array in held.items() if array.ndim == 3}
    named = {SPLITS[word]: start for word, start in starts.items() if word in SPLITS}
    if named:
        return named
    word = next((part for part in SPLITS if part in file.stem.lower()), "train")
    return {SPLITS[word]: ""}


def _names(held: dict[str, np.ndarray], file: Path) -> list[str] | None:
    """Names of the classes: in the file, or in the text file that lies beside ModelNet40's."""
    for name in _CLASSES:
        if name in held:
            return [word.decode() if isinstance(word, bytes) else str(word) for word in held[name].tolist()]
    beside = file.parent / "shape_names.txt"
    return beside.read_text().split() if beside.is_file() else None


def _one_each(labels: np.ndarray, shape: int | tuple[int, ...], where: str) -> np.ndarray:
    """Labels of clouds as (n,) int64, which ModelNet40 stores as (n, 1); those of points as (n, p)."""
    size = int(np.prod(shape))
    if labels.size != size or labels.dtype.kind not in "iu":
        each = "cloud" if isinstance(shape, int) else "point"
        raise ValueError(f"{where}: wants one whole number per {each}, {size} (got {labels.shape} of {labels.dtype})")
    return labels.reshape(shape).astype(np.int64)


def _apart(found: dict[str, list[_Held]], root: str) -> dict[str, list[_Held]]:
    """The same with a class of points for every pair of a label and a class that occurs in any split."""
    parts = [part for held in found.values() for part in held]
    if any(part.labels is None or part.segments is None for part in parts):
        raise ValueError(
            "data.source.segments_by_label=true wants labels of clouds and classes of points in every split, and "
            f"data.root={root} lacks some; name the arrays by data.source.label and data.source.segments, or leave the "
            "key away"
        )
    step = 1 + max(int(part.segments.max(initial=0)) for part in parts if part.segments is not None)

    def code(part: _Held) -> np.ndarray:
        assert part.labels is not None and part.segments is not None
        return np.where(part.segments < 0, -1, part.labels[:, None] * step + part.segments)

    known = np.unique(np.concatenate([np.unique(code(part)) for part in parts]))
    known = known[known >= 0]
    return {
        split: [
            part._replace(segments=np.where(code(part) < 0, -1, np.searchsorted(known, code(part)))) for part in held
        ]
        for split, held in found.items()
    }


def _joined(parts: list[_Held], classes: list[str] | None, origin: str) -> Clouds:
    """The arrays of one split from several files, behind one another."""
    sizes = sorted({part.points.shape[1] for part in parts})
    if len(sizes) > 1:
        raise ValueError(f"{origin}: its files hold clouds of {sizes[0]} and {sizes[-1]} points; give them one size")
    points = np.concatenate([part.points for part in parts])
    labels = [part.labels for part in parts if part.labels is not None]
    beside = [part.segments for part in parts if part.segments is not None]
    segments = np.concatenate(beside) if len(beside) == len(parts) else None
    if len(labels) < len(parts):
        return Clouds(points, None, None, origin, segments)
    joined = np.concatenate(labels)
    if classes is None or (len(joined) and joined.max() >= len(classes)):
        classes = [str(label) for label in range(int(joined.max(initial=-1)) + 1)]
    return Clouds(points, torch.from_numpy(joined), classes, origin, segments)
