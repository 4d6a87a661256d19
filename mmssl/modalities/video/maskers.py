"""Maskers that know time from space: tokens lie on a grid of (time, row, column)."""

from __future__ import annotations

from torch import Tensor

from mmssl.draws import Draws
from mmssl.parts.maskers import check_ratio, fewest
from mmssl.registry import register
from mmssl.types import Mask, Tokens


def _grid(tokens: Tokens, masker: str) -> tuple[int, int]:
    """Slices, and tokens of a slice."""
    if tokens.grid is None or len(tokens.grid) != 3:
        raise ValueError(
            f"{masker} needs tokens on a grid of (time, row, column), and these lie on {tokens.grid}; use masker/random"
        )
    return tokens.grid[0], tokens.grid[1] * tokens.grid[2]


@register("masker/tube")
class Tube:
    """Hides the same random places in every time slice (VideoMAE): nothing can be copied from the frame before.

    Of each slice of n tokens exactly int(ratio * n) are hidden.

    Args:
        ratio: share of the places that are hidden, in [0, 1).

    Raises:
        ValueError: for a ratio outside [0, 1); when called, for tokens that are not on a grid of time and space.
    """

    def __init__(self, *, ratio: float = 0.9) -> None:
        check_ratio(ratio)
        self.ratio = ratio

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        slices, places = _grid(tokens, "masker/tube")
        hide = int(self.ratio * places)
        hidden = fewest(draws.uniform(places), hide).to(tokens.raw.device).repeat(1, slices)
        return Mask(~hidden, hidden.unsqueeze(1), None, slices * (places - hide), slices * hide)


@register("masker/slices")
class Slices:
    """Hides whole time slices (frame masking; the time-only variant of MAE-ST).

    Of t slices exactly int(t * (1 - ratio)) stay visible.

    Args:
        ratio: share of the slices that are hidden, in [0, 1); MAE-ST's ablation has 0.75.

    Raises:
        ValueError: for a ratio outside [0, 1); when called, for one that hides every slice, and for tokens that are not
            on a grid of time and space.
    """

    def __init__(self, *, ratio: float = 0.75) -> None:
        check_ratio(ratio)
        self.ratio = ratio

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        slices, places = _grid(tokens, "masker/slices")
        keep = int(slices * (1 - self.ratio))
        if keep < 1:
            raise ValueError(
                f"masker.ratio={self.ratio:g} leaves none of {slices} time slices visible; set it to at most "
                f"{1 - 1 / slices:g}, or take more frames"
            )
        visible = fewest(draws.uniform(slices), keep).to(tokens.raw.device).repeat_interleave(places, 1)
        return Mask(visible, (~visible).unsqueeze(1), None, keep * places, (slices - keep) * places)
