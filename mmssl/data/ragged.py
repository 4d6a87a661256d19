"""Lazy samples of unequal length, decoded once and kept as one array on disk that is mapped into memory.

A sample is *lazy* if it has `size()` (bytes once it is decoded), `whole()` (all of it decoded, uint8), `note()` (plain
values that belong to it) and a class method `over(array, note)` that gives a sample of its kind over decoded values.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mmssl.data.source import BadSample, Dataset

_log = logging.getLogger(__name__)
_FORMAT = 2  # of what is kept: notes of samples say more than they did


@runtime_checkable
class Lazy(Protocol):
    """A sample that decodes only when it is asked."""

    def size(self) -> int:
        """Number of bytes of `whole()`, without making it."""
        ...

    def whole(self) -> Tensor:
        """All of it, decoded: (n, ...) uint8."""
        ...

    def note(self) -> dict[str, Any]:
        """Plain values to keep beside it."""
        ...

    @classmethod
    def over(cls, array: np.ndarray, note: Any) -> Any:
        """The same kind of sample over decoded values."""
        ...


class Decoded:
    """A data set whose lazy samples were decoded into one flat array.

    Args:
        dataset: the original, for names and labels.
        kind: the class of its samples.
        path: file of all decoded bytes, one sample behind the other.
        table: `shapes` of the samples, `notes`, and `bad`, the reasons of those that could not be decoded, by place.
    """

    in_memory = True

    def __init__(self, dataset: Dataset, kind: type[Lazy], path: Path, table: dict[str, Any]) -> None:
        self.dataset, self.kind, self.path, self.table = dataset, kind, path, table
        self.labels, self.classes = dataset.labels, dataset.classes
        sizes = [0 if shape is None else int(np.prod(shape)) for shape in table["shapes"]]
        self._ends = np.cumsum(np.array(sizes, dtype=np.int64))
        self._map()

    def _map(self) -> None:
        empty = len(self._ends) == 0 or self._ends[-1] == 0
        self._bytes = np.empty(0, np.uint8) if empty else np.memmap(self.path, np.uint8, "r")

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, i: int) -> Any:
        """The i-th sample over its decoded values; BadSample with the old reason where it could not be decoded."""
        shape = self.table["shapes"][i]
        if shape is None:
            raise BadSample(self.table["bad"][str(i)])
        start = 0 if i == 0 else self._ends[i - 1]
        return self.kind.over(self._bytes[start : self._ends[i]].reshape(shape), self.table["notes"][i])

    def name(self, i: int) -> str:
        """The original's name."""
        return self.dataset.name(i)

    def fingerprint(self) -> str:
        """The original's digest."""
        return self.dataset.fingerprint()

    def cache_key(self) -> None:
        """Nothing: it is kept already."""

    def __getstate__(self) -> dict[str, Any]:
        """Sends the mapped array to another process as the path of its file."""
        return {key: value for key, value in self.__dict__.items() if key != "_bytes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps the array again."""
        self.__dict__.update(state)
        self._map()


def keep_lazy(dataset: Dataset, some: list[Lazy], limit_mb: int, base: Path) -> Dataset:
    """The data set decoded, where it fits into `limit_mb` MiB; else, or where nothing can be written, the one given.

    What was decoded before is taken from files that begin with `base`. Samples that cannot be decoded stay away and are
    listed; they do not spoil the rest.

    Args:
        dataset: the data set.
        some: a few of its samples, from which its size is estimated before all are decoded.
        limit_mb: largest size of all decoded samples in MiB.
        base: where the files go, without suffix.
    """
    suffixes = (f".{_FORMAT}.u8", f".{_FORMAT}.json", f".{limit_mb}.unfit")
    values, table, unfit = (base.with_suffix(suffix) for suffix in suffixes)
    limit = limit_mb * 2**20
    if not table.exists() or not values.exists():
        if unfit.exists():
            return dataset
        try:
            made = _decode(dataset, values, limit) if _estimate(some) * len(dataset) <= limit else None
            if made is None:
                unfit.parent.mkdir(parents=True, exist_ok=True)
                unfit.touch()  # tells the next run that the attempt is in vain
                return dataset
            _write_json(table, made)
        except OSError as error:
            _log.warning("decoded samples are not kept: %s (set MMSSL_CACHE to another folder)", error)
            return dataset
    if values.stat().st_size > limit:  # kept by a run that was allowed more
        return dataset
    held = json.loads(table.read_text())
    if held["bad"]:
        names = [f"{dataset.name(int(i))}: {reason}" for i, reason in held["bad"].items()]
        _log.warning("%d samples cannot be decoded and are left out: %s", len(names), "; ".join(names[:20]))
    return Decoded(dataset, type(some[0]), values, held)


def _estimate(some: list[Lazy]) -> float:
    """Mean number of bytes of a decoded sample."""
    sizes = []
    for sample in some:
        try:
            sizes.append(sample.size())
        except (ValueError, OSError):
            continue
    return float(np.mean(sizes)) if sizes else float("inf")


def _decode(dataset: Dataset, path: Path, limit: int) -> dict[str, Any] | None:
    """Writes all samples to `path` and gives their table; None where they are larger than `limit`."""
    _log.info("decoding %d samples once, to keep them in %s", len(dataset), path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {"shapes": [], "notes": [], "bad": {}}
    total = 0
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            for i, (values, note) in enumerate(_all(dataset)):
                table["shapes"].append(None if values is None else list(values.shape))
                table["notes"].append({} if values is None else note)
                if values is None:
                    table["bad"][str(i)] = note
                    continue
                total += values.numel()
                if total > limit:
                    return None
                values.contiguous().numpy().tofile(file)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return table


def _all(dataset: Dataset) -> Iterator[tuple[Tensor, dict[str, Any]] | tuple[None, str]]:
    """Every sample decoded with its note, or nothing with the reason, in order, a few at a time on all cores."""

    def one(i: int) -> tuple[Tensor, dict[str, Any]] | tuple[None, str]:
        try:
            sample = dataset.read(i)
            values = sample.whole()
            assert values.dtype == torch.uint8, "lazy samples decode to bytes"
            return values, sample.note()
        except (ValueError, OSError) as error:
            return None, str(error) or type(error).__name__

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        for start in range(0, len(dataset), 4 * cores):
            yield from pool.map(one, range(start, min(start + 4 * cores, len(dataset))))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as file:
        json.dump(value, file)
    os.replace(temporary, path)
