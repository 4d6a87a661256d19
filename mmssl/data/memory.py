"""Small data sets are decoded once, kept as one array on disk and mapped into memory from then on."""

from __future__ import annotations

import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.ragged import Lazy, keep_lazy
from mmssl.data.source import Dataset

_log = logging.getLogger(__name__)
_CHUNK = 4096


def cache_folder() -> Path:
    """Where decoded data are kept: the environment variable MMSSL_CACHE, else `~/.cache/mmssl`."""
    return Path(os.environ.get("MMSSL_CACHE") or "~/.cache/mmssl").expanduser() / "data"


class Kept:
    """A data set whose decoded samples lie in one array.

    Args:
        dataset: the original, for names and labels.
        array: its samples, (n, ...) uint8, their axes in an order of their own.
        order: which axis of a sample each axis of the array is: what was decoded with channels last in memory is kept
            and given out so, because resizing is faster then.
    """

    in_memory = True

    def __init__(self, dataset: Dataset, array: np.ndarray, order: tuple[int, ...]) -> None:
        self.dataset, self.array, self.back = dataset, array, np.argsort(order).tolist()
        self.labels, self.classes = dataset.labels, dataset.classes

    def __len__(self) -> int:
        return len(self.array)

    def read(self, i: int) -> Tensor:
        """A copy of the i-th sample, which a view may change in place."""
        return torch.from_numpy(np.array(self.array[i])).permute(self.back)

    def name(self, i: int) -> str:
        """The original's name."""
        return self.dataset.name(i)

    def fingerprint(self) -> str:
        """The original's digest."""
        return self.dataset.fingerprint()

    def cache_key(self) -> None:
        """Nothing: it is kept already."""

    def __getstate__(self) -> dict[str, Any]:
        """Sends a mapped array to another process as the path of its file."""
        file = self.array.filename if isinstance(self.array, np.memmap) else None
        return self.__dict__ if file is None else self.__dict__ | {"array": Path(file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps the array again."""
        self.__dict__.update(state)
        if isinstance(self.array, Path):
            self.array = np.load(self.array, mmap_mode="r")


def keep(dataset: Dataset, limit_mb: int) -> Dataset:
    """The data set as one array, if its samples have one shape, can all be read and fit into `limit_mb` MiB.

    The array is written under `cache_folder()`, named by a digest of the content, first to a temporary file, so that
    processes that do the same at once do no harm. Lazy samples may differ in shape, and some may be unreadable: see
    `mmssl.data.ragged`.

    Returns:
        The kept data set, else the one given.
    """
    if dataset.in_memory or limit_mb == 0:
        return dataset
    some = _some(dataset)
    lazy = [sample for sample in some if isinstance(sample, Lazy)]
    shape = None if lazy else _shape(some)
    if not lazy and (shape is None or len(dataset) * int(np.prod(shape)) > limit_mb * 2**20):
        return dataset
    key = dataset.cache_key()
    if key is None:
        return dataset
    if lazy:
        return keep_lazy(dataset, lazy, limit_mb, cache_folder() / key)
    assert shape is not None
    order = _order(some[0])
    path = cache_folder() / f"{key}.{''.join(map(str, order))}.npy"
    unfit = path.with_suffix(".unfit")  # tells the next run that the attempt is in vain
    if not path.exists() and not unfit.exists():
        array = _decode(dataset, shape, order)
        try:
            _write(path, array) if array is not None else _touch(unfit)
        except OSError as error:
            _log.warning("decoded samples are not kept for the next run: %s (set MMSSL_CACHE to another folder)", error)
            return dataset if array is None else Kept(dataset, array, order)
    return dataset if unfit.exists() else Kept(dataset, np.load(path, mmap_mode="r"), order)


def _some(dataset: Dataset) -> list[Any]:
    """A few samples from all over the data set; None in place of what cannot be read."""
    found = []
    for i in np.unique(np.linspace(0, len(dataset) - 1, 16).astype(int)):
        try:
            found.append(dataset.read(int(i)))
        except (ValueError, OSError):
            found.append(None)
    return found


def _shape(some: list[Any]) -> tuple[int, ...] | None:
    """The shape that samples have in common; None where they have none, or are no uint8 tensors."""
    shapes = {
        tuple(sample.shape) if isinstance(sample, Tensor) and sample.dtype == torch.uint8 else None for sample in some
    }
    return shapes.pop() if len(shapes) == 1 else None


def _order(sample: Tensor) -> tuple[int, ...]:
    """The axes of a sample as they lie in memory, the outermost first."""
    return tuple(sorted(range(sample.dim()), key=lambda axis: (-sample.stride(axis), axis)))


def _decode(dataset: Dataset, shape: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray | None:
    """All samples, their axes in this order, or None where one is unreadable or of another shape."""
    array = np.empty((len(dataset), *(shape[axis] for axis in order)), dtype=np.uint8)
    _log.info("decoding %d samples once, to keep them in %s", len(dataset), cache_folder())
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        for start in range(0, len(dataset), _CHUNK):
            places = range(start, min(start + _CHUNK, len(dataset)))
            try:
                for i, sample in zip(places, pool.map(dataset.read, places), strict=True):
                    if tuple(sample.shape) != shape:
                        return None
                    array[i] = sample.permute(order).numpy()
            except (ValueError, OSError):
                return None
    return array


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
