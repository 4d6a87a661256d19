"""Intervals by resampling the test set: deterministic, because its draws are counter-based."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmssl.draws import Draws

_CHUNK = 1 << 22  # indices held at once: 32 MB

Statistic = Callable[[Tensor], Tensor]
"""A score as a function of the test samples: from places (r, m) int64, a resampled test set in each row, to scores
(r,), or (k, r) where the score was repeated k times, for instance with other training labels."""


def interval(results: Tensor, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron 1979), by resampling test samples with replacement.

    With several rows, for instance one per random initialisation, the resampled means of all rows are pooled before
    the percentiles are taken: the interval then covers where the score of *one* such row lies, test noise and seed
    spread together. It is wider than the interval of the mean over rows, on purpose: three seeds say too little about
    their own spread for anything finer.

    Where all results are equal the interval is a point, as it always is with this method.

    Args:
        results: per-sample results, for instance 1 for right and 0 for wrong, (n,) or (rows, n).
        resamples: number of resampled test sets.
        level: coverage.
        seed: of the draws; the same for all scores, so that encoders are compared on the same resampled test sets.

    Raises:
        ValueError: where there is no sample, or the level is not between 0 and 1.
    """
    if results.numel() == 0:
        raise ValueError("a bootstrap interval needs at least one test sample (got none)")
    return percentiles(resampled(mean(results), results.shape[-1], resamples, seed), level)


def percentiles(values: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The interval that holds the middle share `level` of resampled scores, whatever their shape.

    A resampled test set on which the score has no meaning (NaN) does not count.

    Raises:
        ValueError: where the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level has to lie between 0 and 1 (got {level})")
    tail = (1 - level) / 2
    low, high = torch.nanquantile(values.flatten(), torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high


def resampled(statistic: Statistic, n: int, resamples: int = 1000, seed: int = 0) -> Tensor:
    """A score on resampled test sets, (k, resamples) float64.

    Scores with equally many test samples and equal seeds meet the same resampled test sets, so that the difference of
    two such tensors is that of the paired bootstrap.

    Args:
        statistic: the score, as a function of the test samples.
        n: number of test samples.
        resamples: number of resampled test sets.
        seed: of the draws.
    """
    step = max(1, _CHUNK // n)
    found = []
    for first in range(0, resamples, step):
        which = torch.arange(first, min(first + step, resamples))
        values = statistic(Draws.of(seed, 0, which).named("bootstrap").integers(0, n, n))
        found.append(values.to(torch.float64).reshape(-1, len(which)))
    return torch.cat(found, 1)


def mean(results: Tensor) -> Statistic:
    """The mean of per-sample results (n,), or of each of several rows (k, n)."""
    rows = results.detach().cpu().to(torch.float64)
    rows = rows if rows.dim() == 2 else rows.unsqueeze(0)
    return lambda places: torch.stack([row[places].mean(1) for row in rows])


def difference(own: Tensor, others: Sequence[Tensor]) -> tuple[float, float]:
    """Interval of the difference of a score and that of others, over the same resampled test sets.

    The differences to all others, for instance three random initialisations, are pooled: the interval covers where the
    difference to *one* of them lies.

    Args:
        own: resampled scores, (k, resamples).
        others: resampled scores of each other, (k, resamples) with as many repeats.
    """
    return percentiles(torch.cat([own - other for other in others]))
