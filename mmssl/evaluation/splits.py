"""A held-out part of a labelled set, drawn per class."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.draws import Draws


def stratified(y: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Which samples are held out, (n,) bool: the given fraction of each class, a pure function of its arguments.

    Every class of two or more samples gives at least one and keeps at least one; a class of one sample keeps it.

    Args:
        y: labels, (n,) int64.
        fraction: share of each class to hold out, in (0, 1).
        seed: of the draws.

    Raises:
        ValueError: where the fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"holdout is the share of the training set held out, between 0 and 1 (got {fraction})")
    y = y.cpu()
    _, label, count = torch.unique(y, return_inverse=True, return_counts=True)
    quota = (count * fraction).round().long().clamp(min=1).minimum(count - 1)
    luck = torch.argsort(Draws.of(seed, 0, torch.arange(len(y))).named("holdout").keys, stable=True)
    order = luck[torch.argsort(label[luck], stable=True)]
    place = torch.arange(len(y)) - (torch.cumsum(count, 0) - count)[label[order]]
    held = torch.zeros(len(y), dtype=torch.bool)
    held[order] = place < quota[label[order]]
    return held
