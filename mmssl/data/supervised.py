"""Labelled data with a validation split: what fine-tuning reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.source import Adapter, Dataset, Source, digest
from mmssl.data.subset import Subset
from mmssl.draws import Draws
from mmssl.registry import register


class Relabelled:
    """A data set with other labels; everything else is its own.

    Args:
        dataset: the whole.
        labels: like its labels, -1 where there is none.
    """

    def __init__(self, dataset: Dataset, labels: Tensor) -> None:
        self.dataset = dataset
        self.labels: Tensor | None = labels
        self.classes, self.in_memory = dataset.classes, dataset.in_memory

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, i: int) -> Any:
        """The i-th sample."""
        return self.dataset.read(i)

    def name(self, i: int) -> str:
        """Its name."""
        return self.dataset.name(i)

    def fingerprint(self) -> str:
        """Digest of the data and of the labels in view."""
        assert self.labels is not None
        return digest([self.dataset.fingerprint(), self.labels.numpy().tobytes()])

    def cache_key(self) -> str | None:
        """That of the data: samples are the same."""
        return self.dataset.cache_key()


@register("source/supervised")
class Supervised:
    """The labelled part of a source, with a validation split: its own, or a part of each class of train.

    The test split is left alone. Where a source has a validation split only, that is what is tested on, and validation
    is a part of train.

    Args:
        adapter: the modality.
        source: the source.
        share: share of each class of train that becomes validation where the source has none beside a test split.

    Raises:
        ValueError: where the share is not between 0 and 1, or train has no labels.
    """

    def __init__(self, adapter: Adapter, *, source: Callable[[Adapter], Source], share: float = 0.1) -> None:
        if not 0 < share < 1:
            raise ValueError(f"data.source.share has to be between 0 and 1 (got {share})")
        self.source, self.share = source(adapter), share
        self.unit = getattr(self.source, "unit", "sample")
        parts = getattr(self.source, "seeds", None)
        if parts is not None:  # one large graph, whose nodes are samples unless it is taken whole
            self.seeds = lambda: self._split(parts())

    def splits(self) -> dict[str, Dataset]:
        """Data sets by split: labelled train, val, and test where there is one."""
        return self._split(self.source.splits())

    def _split(self, splits: dict[str, Dataset]) -> dict[str, Dataset]:
        train = splits["train"]
        if train.labels is None or not bool((train.labels >= 0).any()):
            raise ValueError(
                f"data: the train split ({len(train)} samples) has no labels, which fine-tuning needs: a folder per "
                "class, a column of a manifest or table (data.source.label=...), or a labelled set"
            )
        found = dict(splits)
        own = found.pop("val", None)
        if "test" not in found and own is not None:
            found["test"], own = own, None
        if own is not None and own.labels is not None and bool((own.labels >= 0).any()):
            return found | {"train": _labelled(train), "val": _labelled(own)}
        held = held_out(train.labels, self.share)
        if not bool(held.any()):
            raise ValueError(
                "data: no class of the train split has two labelled samples, so that nothing can be held out to "
                "validate on; give a validation split, or more labels"
            )
        return found | {"train": _kept(train, ~held), "val": _kept(train, held)}


def held_out(labels: Tensor, share: float) -> Tensor:
    """Which labels are held out, a share of each class, of the shape of the labels, bool; a pure function of both.

    Every class of two or more labels gives at least one and keeps at least one. Places without a label are kept.
    """
    flat = labels.flatten()
    luck = Draws.of(0, 0, torch.arange(len(flat))).named("validation").uniform(1)[:, 0]
    held = torch.zeros(len(flat), dtype=torch.bool)
    for label in torch.unique(flat[flat >= 0]).tolist():
        places = torch.nonzero(flat == label)[:, 0]
        count = min(max(1, round(share * len(places))), len(places) - 1)
        held[places[torch.argsort(luck[places], stable=True)[:count]]] = True
    return held.reshape(labels.shape)


def _kept(dataset: Dataset, keep: Tensor) -> Dataset:
    """The samples to keep that have a label; of labels of tokens, all samples with these labels alone in view."""
    labels = dataset.labels
    assert labels is not None
    if labels.dim() == 1:
        return Subset(dataset, np.flatnonzero((keep & (labels >= 0)).numpy()))
    return _labelled(Relabelled(dataset, torch.where(keep, labels, -1)))


def _labelled(dataset: Dataset) -> Dataset:
    """The samples that have a label."""
    labels = dataset.labels
    assert labels is not None
    rows = (labels >= 0) if labels.dim() == 1 else (labels >= 0).any(1)
    return dataset if bool(rows.all()) else Subset(dataset, np.flatnonzero(rows.numpy()))
