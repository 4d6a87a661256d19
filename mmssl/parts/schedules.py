"""Schedules: the share of training done, in [0, 1], to a value. Pure functions, so that a resume needs no state."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmssl.registry import register


@register("schedule/constant")
def constant(progress: float, *, value: float = 1.0) -> float:
    """The same value throughout."""
    return value


@register("schedule/linear")
def linear(progress: float, *, first: float, last: float) -> float:
    """A straight line from first to last (I-JEPA's teacher momentum)."""
    return first + (last - first) * min(progress, 1.0)


@register("schedule/cosine")
def cosine(progress: float, *, first: float, last: float) -> float:
    """Half a cosine from first to last (DINO's teacher momentum and weight decay)."""
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


@register("schedule/warmup_cosine")
def warmup_cosine(progress: float, *, warmup: float = 0.05, start: float = 0.0, final: float = 0.0) -> float:
    """Linear warm-up to 1, then half a cosine (Loshchilov and Hutter 2017; MAE).

    Args:
        progress: share of training done.
        warmup: share of the run that warms up: MAE's 40 of 800 epochs are 0.05.
        start: factor at the first step.
        final: factor at the end.
    """
    if progress < warmup:
        return start + (1.0 - start) * progress / warmup
    rest = (min(progress, 1.0) - warmup) / max(1.0 - warmup, 1e-12)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * rest))


@register("schedule/warmup_steps")
def warmup_steps(
    progress: float,
    *,
    warmup: float = 0.0125,
    start: float = 0.0,
    milestones: Sequence[float] = (0.875,),
    gamma: float = 0.1,
) -> float:
    """Linear warm-up to 1, then a factor `gamma` at each milestone (SimMIM's 800-epoch runs).

    Args:
        progress: share of training done.
        warmup: share of the run that warms up: 10 of 800 epochs are 0.0125.
        start: factor at the first step.
        milestones: shares of the run at which the rate drops: epoch 700 of 800 is 0.875.
        gamma: factor of each drop.
    """
    if progress < warmup:
        return start + (1.0 - start) * progress / warmup
    return gamma ** sum(progress >= milestone for milestone in milestones)


@register("schedule/warmup_linear")
def warmup_linear(progress: float, *, warmup: float = 0.07, start: float = 0.0, final: float = 0.0) -> float:
    """Linear warm-up to 1, then a straight line down (BERT, Mockingjay, TERA).

    Args:
        progress: share of training done.
        warmup: share of the run that warms up.
        start: factor at the first step.
        final: factor at the end.
    """
    if progress < warmup:
        return start + (1.0 - start) * progress / warmup
    return final + (1.0 - final) * (1.0 - min(progress, 1.0)) / max(1.0 - warmup, 1e-12)


@register("schedule/ramp")
def ramp(progress: float, *, first: float, last: float, until: float) -> float:
    """A straight line from first to last, then constant (DINO's teacher temperature over 30 epochs).

    Args:
        progress: share of training done.
        first: value at the first step.
        last: value from `until` on.
        until: share of the run that it takes.
    """
    return last if progress >= until else first + (last - first) * progress / until
