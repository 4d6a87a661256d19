"""Shards: many samples in one file, tar archives and Parquet files, local or behind any URL that fsspec knows."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmssl.data import rowgroups, tars
from mmssl.data.columns import Table, codes
from mmssl.data.indexing import Asked, Index, Scan, indexes
from mmssl.data.places import Shard, find
from mmssl.data.ranges import Ranges
from mmssl.data.sharded import Sharded, parquet
from mmssl.data.source import SPLITS, Adapter, Dataset
from mmssl.data.subset import Subset, hold_out
from mmssl.registry import register

if TYPE_CHECKING:
    import pyarrow as pa


@register("source/shards")
class Shards:
    """Tar archives in the WebDataset convention, and Parquet files with a column of bytes.

    Members of a tar whose names differ only behind the first dot are one sample: `0001.jpg` and `0001.cls`. The index
    of every shard is found once and kept (`MMSSL_CACHE`); shards that `mmssl shards` wrote bring theirs along. Shards
    may hold unequal numbers of samples: every sample comes exactly once an epoch, on any number of ranks and workers.

    Without `train`, all shards of `root` are taken, and splits are found by words of their names: `train-0001.tar`,
    `val/0001.tar`; where no name says one, all are train. Labelled data without val and test hold out `test_share` of
    each class.

    Args:
        adapter: the modality.
        root: a folder, a file or a pattern, or several; local or a URL: `shards`, `s3://bucket/set/train-*.tar`,
            `https://host/train-{000..099}.tar`. With `train` only the folder that the patterns begin in.
        train: patterns of the train split, one or several, relative to `root`.
        val: the same for val.
        test: the same for test.
        column: the ending of the member, or the column, that is the sample; null finds it by the modality's endings,
            and the only column of bytes.
        label: the ending of the member (or entry of its `.json`), or the column, that is the label: integers or text.
            Null takes `.cls`, else `label`, `labels`, `class` or `target`; false takes none.
        window: samples that are shuffled among one another; larger mixes better, but more shards are read at a time. A
            worker keeps about so many encoded samples of Parquet files in memory.
        copies: folder of this machine that remote shards are copied to when they are first read, one copy for all
            processes; it has to hold all of them. Null reads every sample over the network.
        storage: what fsspec's file system is made with: `{anon: true}` for a public bucket.
        test_share: share of each class that becomes the test split where labelled data name no other split.
    """

    def __init__(
        self, adapter: Adapter, *, root: str | list[str] | None = None, train: str | list[str] | None = None,
        val: str | list[str] | None = None, test: str | list[str] | None = None, column: str | None = None,
        label: str | bool | None = None, window: int = 4096, copies: str | None = None,
        storage: dict[str, Any] | None = None, test_share: float = 0.1,
    ) -> None:  # fmt: skip
        if window < 1:
            raise ValueError(f"data.source.window has to be at least 1 (got {window})")
        self.adapter, self.root, self.label, self.test_share = adapter, root, label, test_share
        self.patterns = {split: said for split, said in (("train", train), ("val", val), ("test", test)) if said}
        self.asked = Asked(adapter.name, tuple(adapter.extensions), column, label if isinstance(label, str) else None)
        self.window, self.storage = window, storage or {}
        self.ranges = Ranges(None if copies is None else Path(copies).expanduser())
        self.groups = rowgroups.Groups(self.ranges, column, window)

    def splits(self) -> dict[str, Dataset]:
        """Data sets by split.

        Raises:
            ValueError: where shards are missing or hold no samples, and for labels that cannot be understood.
        """
        shards = self._shards()
        flat = [shard for group in shards.values() for shard in group]
        for url, count in Counter(shard.url for shard in flat).items():
            if count > 1:
                raise ValueError(f"data.source: {url} is in two splits, so that what is scored was trained on")
        index = dict(zip(flat, indexes(flat, self.asked, self.ranges, _scan), strict=True))
        full = {split: [shard for shard in group if len(index[shard].names)] for split, group in shards.items()}
        for split, group in full.items():
            if not group:
                raise ValueError(self._empty(split, [index[shard] for shard in shards[split]]))
        labels, classes = self._labels({shard: index[shard] for group in full.values() for shard in group})
        splits: dict[str, Dataset] = {}
        for split, group in full.items():
            own = [labels[shard] for shard in group]
            known = [label for label in own if label is not None]
            if known and len(known) < len(own):
                bare = next(shard for shard in group if labels[shard] is None)
                raise ValueError(
                    f"data.source.label: {bare.name} holds no labels, and other shards of the {split} split do; write "
                    "it again with labels, or set data.source.label=false"
                )
            splits[split] = Sharded(
                self.adapter, group, [index[shard] for shard in group], torch.cat(known) if known else None,
                classes if known else None, self.ranges, self.groups, self.window,
            )  # fmt: skip
        return self._held_out(splits["train"]) if set(splits) == {"train"} else splits

    def _held_out(self, whole: Any) -> dict[str, Dataset]:
        """Train and test of labelled data without a test split; each keeps an order of its own."""
        parts = hold_out(whole, self.test_share)
        return {split: whole.taking(part.index) if isinstance(part, Subset) else part for split, part in parts.items()}

    def _shards(self) -> dict[str, list[Shard]]:
        """The shards of each split."""
        if self.patterns:
            if "train" not in self.patterns:
                raise ValueError("data.source.train has to be given where val or test are: a pattern of its shards")
            if isinstance(self.root, list):
                raise ValueError("data.root has to be one folder where data.source.train names the shards in it")
            return {
                split: find([_joined(self.root, one) for one in _list(said)], f"data.source.{split}", self.storage)
                for split, said in self.patterns.items()
            }
        if not self.root:
            raise ValueError(
                "data.root has to be given: add data.root=... to the command line, a folder or URL that holds shards, "
                "or a pattern such as 'shards/train-*.tar'"
            )
        found: dict[str, list[Shard]] = {}
        for shard in find(self.root, "data.root", self.storage):
            words = re.split(r"[^a-z]+", shard.name.lower())
            found.setdefault(next((SPLITS[word] for word in words if word in SPLITS), ""), []).append(shard)
        if set(found) == {""}:
            return {"train": found[""]}
        if "" in found or "train" not in found:
            example = found.get("", next(iter(found.values())))[0].name
            raise ValueError(
                f"data.root={self.root}: {example} is not named after the train split"
                f"{', and others name a split' if '' in found else ', and no other shard is'}; say which shards are "
                "which with data.source.train=PATTERN (and val, test)"
            )
        return {split: found[split] for split in ("train", "val", "test") if split in found}

    def _empty(self, split: str, found: Sequence[Index]) -> str:
        others = sum((Counter(index.others) for index in found), Counter[str]())
        instead = ", ".join(f"{count} {kind or 'without one'}" for kind, count in others.most_common(5)) or "nothing"
        wanted = self.asked.column or ", ".join(self.adapter.extensions)
        return (
            f"data.root: the {split} shards hold no {self.adapter.name} samples: looked for members that end in "
            f"{wanted}, found {instead}; check modality, or name the ending of the samples with data.source.column"
        )

    def _labels(self, index: Mapping[Shard, Index]) -> tuple[dict[Shard, Tensor | None], list[str] | None]:
        """Labels of each shard as integers, and the names of the classes.

        Raises:
            ValueError: where labels are asked for and there are none.
        """
        if self.label is False:
            return dict.fromkeys(index), None
        said = _numbers({shard: one.labels for shard, one in index.items()})
        if self.label and all(values.null_count == len(values) for values in said.values()):
            what = f"`.{self.label}`" if isinstance(self.label, str) else "`.cls`"
            raise ValueError(
                f"data.source.label={self.label}: no sample has a label: no member {what}, and no such entry in a "
                "`.json` or column of a Parquet file; leave the key away for data without labels"
            )
        tables = [
            Table(Path(shard.name), one.names, said[shard], None, one.classes)  # pyright: ignore[reportArgumentType]
            for shard, one in index.items()
        ]
        labels, classes = codes(tables, strict=isinstance(self.label, str))
        return dict(zip(index, labels, strict=True)), classes


def _scan(shard: Shard) -> Scan:
    return rowgroups.scan if parquet(shard) else tars.scan


def _list(said: str | list[str]) -> list[str]:
    return [said] if isinstance(said, str) else said


def _joined(root: str | None, pattern: str) -> str:
    """A pattern below the root, unless it is absolute or a URL."""
    if not root or os.path.isabs(pattern) or "://" in pattern:
        return pattern
    return f"{root.rstrip('/')}/{pattern}"


def _numbers(labels: Mapping[Shard, pa.Array]) -> Mapping[Shard, pa.Array]:
    """Labels that tars hold as text, as numbers where all of them are."""
    import pyarrow as pa

    text = {shard: values for shard, values in labels.items() if not parquet(shard)}
    for kind in (pa.int64(), pa.float64()):
        try:
            return {**labels, **{shard: values.cast(kind) for shard, values in text.items()}}
        except pa.ArrowInvalid:
            continue
    return labels
