"""Parts of data sets: some samples of one, and a held-out share of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmssl.data.segments import Segments
from mmssl.data.source import Dataset, digest


class Subset:
    """Some samples of a data set.

    Args:
        dataset: the whole.
        index: which samples, ascending int64.
    """

    def __init__(self, dataset: Dataset, index: np.ndarray) -> None:
        self.dataset, self.index = dataset, index
        self.classes, self.in_memory = dataset.classes, dataset.in_memory
        self.labels = None if dataset.labels is None else dataset.labels[torch.from_numpy(index)]
        segments: Segments | None = getattr(dataset, "segments", None)
        self.segments = None if segments is None else segments.where(index)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, i: int) -> Any:
        """The i-th of the chosen samples."""
        return self.dataset.read(int(self.index[i]))

    def name(self, i: int) -> str:
        """Its name in the whole."""
        return self.dataset.name(int(self.index[i]))

    def fingerprint(self) -> str:
        """Digest of the whole and of the choice."""
        return digest([self.dataset.fingerprint(), self.index.tobytes()])

    def cache_key(self) -> str | None:
        """That of the whole, with the choice."""
        key = self.dataset.cache_key()
        return None if key is None else digest([key, self.index.tobytes()])


def hold_out(dataset: Dataset, share: float) -> dict[str, Dataset]:
    """Splits a labelled data set into train and test: per class, the given share, chosen by a digest of the names.

    The choice depends on nothing but the names, so it is the same on every machine and for every seed. Of a class of at
    least two samples both splits get at least one. Without labels, or with a share of 0, all is train.

    Raises:
        ValueError: where the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"data.source.test_share has to be at least 0 and below 1 (got {share})")
    if dataset.labels is None or share == 0:
        return {"train": dataset}
    ranks = np.array([int(digest([dataset.name(i)])[:15], 16) for i in range(len(dataset))])
    labels, test = dataset.labels.numpy(), np.zeros(len(dataset), dtype=bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(places))), len(places) - 1)
        test[places[np.argsort(ranks[places], kind="stable")[:count]]] = True
    if not test.any():
        return {"train": dataset}
    return {"train": Subset(dataset, np.flatnonzero(~test)), "test": Subset(dataset, np.flatnonzero(test))}
