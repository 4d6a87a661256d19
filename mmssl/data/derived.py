"""Views that begin with another one: with what it became, or with what it draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmssl.draws import Draws
from mmssl.registry import register, suggest

Op = Callable[[Any, Draws], Any]


@register("view/of")
class Of:
    """Begins a view with what another view has become, so that both show the same part of a sample (CROMA's sensors).

    It has to be a view's first operation, and the other view has to stand before it.

    Args:
        name: the other view.
        after: so many operations of the other view are done, from its first one on; null for all. So one view shows
            the frames of a span of a video, and the other has its sound (HiCMAE).

    Raises:
        ValueError: for a number below 1.
    """

    def __init__(self, *, name: str, after: int | None = None) -> None:
        if after is not None and after < 1:
            raise ValueError(
                f"view/of: after counts operations of view {name!r}, at least 1, or null for all (got {after})"
            )
        self.other, self.after = name, after

    def __call__(self, sample: Any, draws: Draws) -> Any:
        """What the loader hands it, as it is."""
        return sample


@register("view/like")
class Like:
    """Begins a view from the sample itself and lets its operations draw what those of another view draw, one by one.

    So the same crop and flip come to two frames of a video (SiamMAE). It has to be a view's first operation, and the
    other view has to stand before it.

    Args:
        name: the other view.
    """

    def __init__(self, *, name: str) -> None:
        self.other = name

    def __call__(self, sample: Any, draws: Draws) -> Any:
        """The sample, as it is."""
        return sample


def check_views(views: Mapping[str, Sequence[Op]], where: str = "views") -> None:
    """Refuses views that begin with one that is not there yet.

    Raises:
        ValueError: naming the view.
    """
    made: list[str] = []
    for name, ops in views.items():
        for i, op in enumerate(ops):
            if not isinstance(op, Of | Like):
                continue
            key, part = f"{where}.{name}[{i}]", "view/of" if isinstance(op, Of) else "view/like"
            if i:
                raise ValueError(f"{key}: {part} has to be the first operation of its view; put it in front")
            if op.other not in made:
                why = "which has to stand before it" if op.other in views else "which there is not"
                raise ValueError(f"{key}: {part} names view {op.other!r}, {why}{suggest(op.other, made)}")
            if isinstance(op, Of) and op.after is not None and op.after > len(views[op.other]):
                raise ValueError(
                    f"{key}: view/of with after={op.after}, but view {op.other!r} has {len(views[op.other])} operations"
                )
        made.append(name)
