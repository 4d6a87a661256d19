"""What a data set is, and the data sets that every source is built of.

A *source* is a registered part that is called with the adapter of a modality and gives `splits()`: data sets by name
(train, val, test). A *data set* reads one decoded sample at a time and knows its labels without decoding anything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmssl.data.segments import Segments
from mmssl.registry import suggest

# How folders and split columns name the three splits.
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class BadSample(ValueError):
    """A sample that turns out to be unreadable only when a view operation decodes it; it is replaced and counted."""


class Adapter(Protocol):
    """All that generic code knows of a modality; the part `modality/<name>`.

    Optional: `open(path)` for `decode(blob)`, where files are not read whole; `measured`, on how many samples facts are
    fitted; `use(facts)`, to encode by; `mixes`, whether samples average; `links`, `cells`, `holes`, for scores;
    `segments(blob, sample)` with `segment_extensions`, the classes of a sample's elements in a file beside it (None:
    there is none), int64, -1 without a class; `places(data)`, where the elements of a batch lie in the coordinates of
    tokens, (b, m, p), unless elements and tokens are grids.
    """

    name: str
    extensions: tuple[str, ...]

    def decode(self, blob: bytes, channels: int | None = None) -> Any:
        """One encoded sample, decoded; ValueError where it cannot be read."""
        ...

    def convert(self, sample: Any, channels: int) -> Any:
        """A decoded sample with another number of channels."""
        ...

    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch, with what the tokenizer of the modality reads."""
        ...

    def facts(self, samples: Iterable[Any]) -> dict[str, Any]:
        """Sizes and statistics that parts are built from, as plain values."""
        ...

    def baseline(self, sample: Any) -> Tensor:
        """The raw input as one vector, (d,) float32."""
        ...

    def picture(self, sample: Any) -> np.ndarray:
        """The sample to look at, (h, w, 3) uint8."""
        ...


class Dataset(Protocol):
    """Samples of one split.

    Optional: `order(seed, epoch)`, (n,) int64: an order of an epoch that is cheap to read; `segments`, the classes of
    the samples' elements (`mmssl.data.segments`), or None.

    Args:
        labels: (n,) int64, or None where there are none. Where the data's unit is a token (nodes, points): (n, places),
            -1 at places without a label or of another split.
        classes: names of the labels' values.
        in_memory: whether reading is a copy and not a decoding.
    """

    labels: Tensor | None
    classes: list[str] | None
    in_memory: bool

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def read(self, i: int) -> Any:
        """The i-th sample, decoded; ValueError or OSError where it cannot be read."""
        ...

    def name(self, i: int) -> str:
        """Where the i-th sample comes from, for messages: a path or a row."""
        ...

    def fingerprint(self) -> str:
        """A digest that changes with the data, not with the place they lie at."""
        ...

    def cache_key(self) -> str | None:
        """A digest to keep the decoded samples under; None where there is nothing to gain."""
        ...


class Source(Protocol):
    """Where data come from; called with the adapter by `data/module`.

    Optional: `unit`, `sample` (default) or `token`: what labels belong to and evaluation gives a row to; `seeds()`,
    splits whose samples are parts drawn around seeds (nodes of one large graph), taken instead of `splits()` unless
    `data.batch_size` is `full`.
    """

    def splits(self) -> dict[str, Dataset]:
        """Data sets by split: train, and val and test where there are any."""
        ...


def read_file(adapter: Adapter, path: Path) -> Any:
    """The sample in a file: decoded, or opened where the adapter reads lazily."""
    opened = getattr(adapter, "open", None)
    return adapter.decode(path.read_bytes()) if opened is None else opened(path)


class Files:
    """Samples that are one file each.

    Args:
        adapter: decodes them.
        folder: what the names are relative to.
        names: paths relative to `folder`, with forward slashes.
        labels: (n,) int64, or None.
        classes: names of the labels.
        segments: classes of the samples' elements, or None.
    """

    in_memory = False

    def __init__(
        self,
        adapter: Adapter,
        folder: Path,
        names: list[str],
        labels: Tensor | None,
        classes: list[str] | None,
        segments: Segments | None = None,
    ) -> None:
        self.adapter, self.folder, self.labels, self.classes, self.segments = adapter, folder, labels, classes, segments
        # One array instead of a million strings: workers that only look at a string would copy its memory page.
        self._names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, i: int) -> Any:
        """Reads and decodes the i-th file, or opens it where the adapter reads lazily."""
        return read_file(self.adapter, self.folder / self.name(i))

    def name(self, i: int) -> str:
        """Path of the i-th file relative to the folder."""
        return os.fsdecode(bytes(self._names[i]))

    def fingerprint(self) -> str:
        """Digest of names and sizes."""
        return digest(f"{name}:{stat(self.folder / name)[0]}" for name in map(self.name, range(len(self))))

    def cache_key(self) -> str:
        """Digest of the folder, names, sizes and times of change."""
        names = map(self.name, range(len(self)))
        return digest([self.adapter.name, str(self.folder.resolve()), *(f"{n}:{stat(self.folder / n)}" for n in names)])


class Arrays:
    """Samples that lie decoded in one array.

    Args:
        samples: (n, ...) uint8; a memory-mapped array stays mapped.
        labels: (n,) int64, or None.
        classes: names of the labels.
        origin: name for messages: `cifar10/train`.
    """

    in_memory = True

    def __init__(self, samples: np.ndarray, labels: Tensor | None, classes: list[str] | None, origin: str) -> None:
        self.samples, self.labels, self.classes, self.origin = samples, labels, classes, origin

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, i: int) -> Tensor:
        """A copy of the i-th sample."""
        return torch.from_numpy(np.array(self.samples[i]))

    def name(self, i: int) -> str:
        """The array and the row in it."""
        return f"{self.origin}[{i}]"

    def fingerprint(self) -> str:
        """Digest of all bytes."""
        labels = b"" if self.labels is None else self.labels.numpy().tobytes()
        return digest([str(self.samples.shape), np.ascontiguousarray(self.samples).data, labels])

    def cache_key(self) -> None:
        """Nothing: the samples are decoded already."""


def find_root(root: str | Path) -> Path:
    """The path of `data.root`, with `~` expanded.

    Raises:
        ValueError: where nothing is there, naming what was probably meant.
    """
    path = Path(root).expanduser()
    if path.exists():
        return path
    parent = next(folder for folder in path.parents if folder.is_dir())
    missing = path.relative_to(parent).parts[0]
    near = suggest(missing, [entry.name for entry in parent.iterdir() if not entry.name.startswith(".")])
    raise ValueError(f"data.root={root}: {parent.resolve()} has no {missing!r}{near}")


def digest(parts: Iterable[str | bytes | memoryview]) -> str:
    """SHA-256 of some values, each of known end, as hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        total.update(f"{memoryview(data).nbytes}:".encode())
        total.update(data)
    return total.hexdigest()


def digest_file(path: Path, whole: int = 1 << 28) -> str:
    """SHA-256 of a file; of its size, first and last MiB where it is larger than `whole` bytes.

    A Parquet file ends with the places and statistics of all columns, so that its end tells changed content.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= whole:
            return hashlib.file_digest(file, "sha256").hexdigest()
        head = file.read(1 << 20)
        file.seek(-(1 << 20), os.SEEK_END)
        return digest([str(size), head, file.read()])


def stat(path: Path) -> tuple[int, int]:
    """Size and time of change; -1 where the file is not there."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
