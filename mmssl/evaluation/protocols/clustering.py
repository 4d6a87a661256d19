"""Whether clusters of frozen features are classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.evaluation.bootstrap import Statistic
from mmssl.evaluation.features import Features
from mmssl.evaluation.logistic import Scaler
from mmssl.evaluation.protocols.score import Score, check, scored
from mmssl.registry import register


@register("protocol/clustering")
class Clustering:
    """K-means with as many clusters as classes: normalised mutual information, adjusted Rand index, Hungarian accuracy.

    Centres are found on the training features, without labels; test samples go to the nearest, and the partition is
    compared with their classes. Accuracy is that of the best one-to-one matching of clusters to classes (Kuhn 1955),
    which is made on the test labels, as is customary.

    Args:
        clusters: how many; null for the number of classes in train.
        restarts: k-means runs, of which the one of least inertia is taken.
        scale: how features are prepared: `standard` deviations of 1, unit `length`, or `none`.
        seed: of k-means.
    """

    needs = "pooled"

    def __init__(
        self, *, clusters: int | None = None, restarts: int = 10, scale: str = "standard", seed: int = 0
    ) -> None:
        if (clusters is not None and clusters < 2) or restarts < 1 or scale not in ("standard", "length", "none"):
            raise ValueError(
                "protocol/clustering needs clusters of 2 or more (or null), restarts of 1 or more and scale standard, "
                f"length or none (got {clusters}, {restarts} and {scale!r})"
            )
        self.clusters, self.restarts, self.scale, self.seed = clusters, restarts, scale, seed

    def __call__(self, train: Features, test: Features) -> Score:
        """Agreement of the partition of `test` with its classes."""
        from sklearn.cluster import KMeans

        check("protocol/clustering", train, test)
        count = min(self.clusters or len(torch.unique(train.y)), len(train))
        known, asked = self._prepared(train, test)
        made: Any = KMeans  # whose annotations say str for numbers
        means = made(count, n_init=self.restarts, random_state=self.seed).fit(known)
        cluster = torch.from_numpy(means.predict(asked).astype(np.int64))
        chosen = {"clusters": count, "scale": self.scale}
        labels, y = torch.unique(test.y, return_inverse=True)
        made = {
            name: scored(name, statistic(measure, y, cluster, len(labels), count), len(y), chosen, centred=True)
            for name, measure in (("nmi", nmi), ("ari", ari), ("accuracy", accuracy))
        }
        first = made.pop("nmi")
        return Score("nmi", first.value, first.resampled, first.n, chosen, also=made)

    def _prepared(self, train: Features, test: Features) -> tuple[np.ndarray, np.ndarray]:
        if self.scale == "standard":
            scaler = Scaler.fit(train.x)
            return scaler(train.x).float().numpy(), scaler(test.x).float().numpy()
        parts = (part.x.float() for part in (train, test))
        if self.scale == "length":
            parts = (torch.nn.functional.normalize(x, dim=1) for x in parts)
        known, asked = (x.numpy() for x in parts)
        return known, asked


def statistic(measure: object, y: Tensor, cluster: Tensor, classes: int, clusters: int) -> Statistic:
    """A measure of contingency tables as a function of the test samples."""
    cell = y * clusters + cluster

    def of(places: Tensor) -> Tensor:
        row = torch.arange(len(places)).unsqueeze(1) * classes * clusters
        tables = torch.bincount((cell[places] + row).flatten(), minlength=len(places) * classes * clusters)
        return measure(tables.reshape(len(places), classes, clusters).double())  # type: ignore[operator]

    return of


def nmi(tables: Tensor) -> Tensor:
    """Mutual information over the mean of both entropies, of tables (r, classes, clusters)."""
    n = tables.sum((1, 2))
    joint = tables / n[:, None, None]

    def entropy(p: Tensor) -> Tensor:
        return -torch.special.xlogy(p, p).flatten(1).sum(1)

    own, other = entropy(joint.sum(2)), entropy(joint.sum(1))
    shared, both = own + other - entropy(joint), own + other
    return torch.where(both > 0, 2 * shared.clamp(min=0) / both.clamp(min=1e-300), 1.0)


def ari(tables: Tensor) -> Tensor:
    """Adjusted Rand index (Hubert and Arabie 1985) of tables (r, classes, clusters)."""

    def pairs(count: Tensor) -> Tensor:
        return (count * (count - 1) / 2).flatten(1).sum(1)

    together, rows, columns = pairs(tables), pairs(tables.sum(2)), pairs(tables.sum(1))
    n = tables.sum((1, 2))
    chance = rows * columns / (n * (n - 1) / 2).clamp(min=1)
    most = (rows + columns) / 2
    return torch.where(most > chance, (together - chance) / (most - chance).clamp(min=1e-300), 1.0)


def accuracy(tables: Tensor) -> Tensor:
    """Share of samples in the class that the best one-to-one matching gives their cluster."""
    from scipy.optimize import linear_sum_assignment

    found = []
    for table in tables.numpy():
        rows, columns = linear_sum_assignment(table, maximize=True)
        found.append(table[rows, columns].sum() / table.sum())
    return torch.tensor(found, dtype=torch.float64)
