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
def warmup_cosine(
    progress: float, *, warmup: float = 0.05, start: float = 0.0, final: float = 0.0, cut: float = 1.0
) -> float:
    """Linear warm-up to 1, then half a cosine (Loshchilov and Hutter 2017; MAE).

    Args:
        progress: share of training done.
        warmup: share of the run that warms up: MAE's 40 of 800 epochs are 0.05.
        start: factor at the first step.
        final: factor at the end.
        cut: share of the half cosine that is gone through: the run ends in the middle of it (CAPI: 0.8), above `final`.
    """
    if progress < warmup:
        return start + (1.0 - start) * progress / warmup
    rest = cut * (min(progress, 1.0) - warmup) / max(1.0 - warmup, 1e-12)
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


@register("schedule/infinite")
def infinite(
    progress: float,
    *,
    warmup: float = 0.05,
    cooldown: float = 0.15,
    decay: float = 0.8,
    level: float = 0.1,
    start: float = 0.0,
    final: float = 0.01,
) -> float:
    """Warm-up to 1, half a cosine down to a level that is held, then exponential decay: for training that goes on.

    Beyond Cosine Decay: On the Effectiveness of Infinite Learning Rate Schedule for Continual Pre-training. Singh et
    al., 2025. arXiv:2503.02844. The next data begin from a checkpoint before the decay, with `warmup` and `cooldown` 0:
    there the level is held from the first step.

    Args:
        progress: share of training done.
        warmup: share of the run at which the factor is 1.
        cooldown: share at which it has come down to `level`.
        decay: share at which it begins to decay.
        level: factor that is held.
        start: factor at the first step.
        final: factor at the end.
    """
    if progress < warmup:
        return start + (1.0 - start) * progress / warmup
    if progress < cooldown:
        return level + (1.0 - level) * 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (cooldown - warmup)))
    if progress < decay:
        return level
    return level * (final / level) ** ((min(progress, 1.0) - decay) / max(1.0 - decay, 1e-12))


@register("schedule/ramp_cosine")
def ramp_cosine(
    progress: float, *, first: float, middle: float, last: float, warmup: float = 0.1, cut: float = 1.0
) -> float:
    """A straight line from first to middle, then half a cosine towards last (CAPI's teacher momentum: 1, 0.999, 1).

    Args:
        progress: share of training done.
        first: value at the first step.
        middle: value at `warmup`.
        last: value that the cosine leads to.
        warmup: share of the run that the line takes.
        cut: share of the half cosine that is gone through.
    """
    if progress < warmup:
        return first + (middle - first) * progress / warmup
    rest = cut * (min(progress, 1.0) - warmup) / max(1.0 - warmup, 1e-12)
    return last + (middle - last) * 0.5 * (1.0 + math.cos(math.pi * rest))
