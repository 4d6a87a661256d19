"""Intervals by resampling the test set: deterministic, because its draws are counter-based."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.draws import Draws

_CHUNK = 1 << 22  # indices held at once: 32 MB


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
    if not 0 < level < 1:
        raise ValueError(f"level has to lie between 0 and 1 (got {level})")
    rows = results.detach().cpu().to(torch.float64)
    means = resampled_means(rows if rows.dim() == 2 else rows.unsqueeze(0), resamples, seed).flatten()
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high


def resampled_means(rows: Tensor, resamples: int, seed: int) -> Tensor:
    """Means of each row over the same resampled samples, (rows, n) -> (rows, resamples)."""
    n = rows.shape[1]
    step = max(1, _CHUNK // n)
    means = []
    for first in range(0, resamples, step):
        which = torch.arange(first, min(first + step, resamples))
        drawn = Draws.of(seed, 0, which).named("bootstrap").integers(0, n, n)
        means.append(torch.stack([row[drawn].mean(1) for row in rows]))
    return torch.cat(means, 1)
