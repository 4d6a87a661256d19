"""The data set of samples that lie in shards, and its order, in which neighbours are read together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data import rowgroups, tars
from mmssl.data.indexing import Index, index_folder, write
from mmssl.data.places import Shard
from mmssl.data.ranges import Ranges
from mmssl.data.source import Adapter, digest
from mmssl.draws import Draws


class Sharded:
    """Samples that lie in shards, those of one shard one behind the other.

    Args:
        adapter: decodes them.
        shards: the files, none of them empty.
        found: the index of each.
        labels: (n,) int64, or None.
        classes: names of the labels.
        ranges: reads tars.
        groups: reads Parquet files.
        window: samples of an epoch that are shuffled among one another.
        rows: which of all samples in the shards are meant, ascending; None for all.
    """

    in_memory = False

    def __init__(
        self, adapter: Adapter, shards: Sequence[Shard], found: Sequence[Index], labels: Tensor | None,
        classes: list[str] | None, ranges: Ranges, groups: rowgroups.Groups, window: int,
        rows: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.adapter, self.shards, self.found = adapter, shards, found
        self.labels, self.classes = labels, classes
        self.ranges, self.groups, self.window, self.rows = ranges, groups, window, rows
        self._ends = np.cumsum([len(index.names) for index in found])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.rows is None else len(self.rows)

    def taking(self, rows: np.ndarray) -> Sharded:
        """Some of these samples, ascending."""
        labels = None if self.labels is None else self.labels[torch.from_numpy(rows)]
        return Sharded(
            self.adapter, self.shards, self.found, labels, self.classes, self.ranges, self.groups, self.window, rows
        )

    def _place(self, i: int) -> tuple[Shard, Index, int]:
        """The shard of a sample, its index, and which of its samples it is."""
        row = i if self.rows is None else int(self.rows[i])
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self.shards[part], self.found[part], row - (int(self._ends[part - 1]) if part else 0)

    def blob(self, i: int) -> bytes:
        """The i-th sample, encoded.

        Raises:
            ValueError: where the shard does not hold it whole.
            OSError: where the shard cannot be read.
        """
        shard, index, at = self._place(i)
        place: tuple[int, int, int] = tuple(index.places[at].tolist())
        return self.groups.read(shard, place) if parquet(shard) else tars.read(self.ranges, shard, place)

    def read(self, i: int) -> Any:
        """Decodes the i-th sample."""
        blob = self.blob(i)
        if hasattr(self.adapter, "decode"):
            return self.adapter.decode(blob)
        return opened(self.adapter, blob, os.path.splitext(self.name(i))[1])

    def name(self, i: int) -> str:
        """The shard, and the member or row in it."""
        shard, index, at = self._place(i)
        return f"{shard.name}:{index.names[at].as_py()}"

    def order(self, seed: int, epoch: int) -> Tensor:
        """The order of an epoch, (n,) int64: a pure function of (seed, epoch).

        Shards (row groups of Parquet files) are shuffled, those that begin in the same stretch of `window` samples are
        put together, and the samples of each stretch are shuffled. So batches near one another read few shards. Where
        all samples are one stretch, the order is that of data in folders.
        """
        sizes = torch.tensor([size for index in self.found for size in index.blocks])
        block = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        if self.rows is not None:
            block = block[torch.from_numpy(self.rows)]
            sizes = torch.bincount(block, minlength=len(sizes))
        turn = torch.argsort(Draws.of(seed, epoch, torch.arange(len(sizes))).named("blocks").keys, stable=True)
        before = sizes[turn].cumsum(0) - sizes[turn]
        stretch = torch.empty_like(before)
        stretch[turn] = before // self.window
        order = torch.argsort(Draws.of(seed, epoch, torch.arange(len(block))).named("order").keys, stable=True)
        return order[torch.argsort(stretch[block[order]], stable=True)]

    def fingerprint(self) -> str:
        """Digest of what the shards hold, by member; not of where they lie."""
        rows = b"" if self.rows is None else self.rows.tobytes()
        return digest([*(index.digest() for index in self.found), rows])

    def cache_key(self) -> str:
        """Digest of the files as they are now, and of what is read of them."""
        rows = b"" if self.rows is None else self.rows.tobytes()
        files = (f"{shard.url}:{shard.stamp}" for shard in self.shards)
        return digest([self.adapter.name, str(self.groups.column), *files, rows])


def parquet(shard: Shard) -> bool:
    """Whether a shard is a Parquet file; else it is a tar."""
    return shard.path.endswith(".parquet")


def opened(adapter: Any, blob: bytes, suffix: str) -> Any:
    """A sample of an adapter that only opens files: of a copy that is kept under the cache folder."""
    file = index_folder().parent / "members" / f"{digest([blob])[:32]}{suffix}"
    if not file.exists():
        write(file, blob)
    return adapter.open(file)
