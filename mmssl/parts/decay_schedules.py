"""Schedules that decay."""

from __future__ import annotations

from mmssl.registry import register


@register("schedule/exponential")
def exponential(progress: float, *, first: float, last: float, least: float = 0.0) -> float:
    """Exponential decay from first to last, but never below `least` (wav2vec 2.0's temperature).

    Args:
        progress: share of training done.
        first: value at the first step.
        last: value that it would have at the end.
        least: smallest value.
    """
    return max(first * (last / first) ** min(progress, 1.0), least)
