"""A masker that keeps one rectangle on a grid without borders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.parts.block_maskers import check_range, two_axes
from mmssl.parts.maskers import check_ratio, fewest
from mmssl.registry import register
from mmssl.types import Mask, Tokens


@register("masker/rolled_block")
class RolledBlock:
    """Keeps one rectangle visible, rolled around the borders, and asks for some of what is hidden (CAPI, 2025).

    n - int(n ratio) tokens are kept: the first so many, row by row, of the smallest rectangle of a random shape that
    holds them, at a random place; the grid is then moved by random steps, and what leaves it at one side comes in at
    the other. Of 16 x 16 tokens and a ratio of 0.65, 90 are kept and 166 are hidden.

    Args:
        ratio: share of tokens that are hidden, in [0, 1).
        aspect: least and greatest height over width of the rectangle, uniform in its logarithm.
        predict: share of the *hidden* tokens that is asked for, in (0, 1], chosen at random.
        roll: whether the grid is moved around.

    Raises:
        ValueError: for a share out of range; when called, for tokens without a whole grid of two axes.
    """

    def __init__(
        self, *, ratio: float = 0.65, aspect: Sequence[float] = (0.5, 2.0), predict: float = 1.0, roll: bool = True
    ) -> None:
        check_ratio(ratio)
        if not 0 < predict <= 1:
            raise ValueError(f"masker.predict is a share of the hidden tokens, in (0, 1] (got {predict:g})")
        self.ratio, self.aspect, self.predict, self.roll = ratio, check_range("aspect", aspect, 0.0), predict, roll

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        height, width = two_axes(tokens, "masker/rolled_block")
        if tokens.valid is not None:
            raise ValueError("masker/rolled_block needs whole grids; use masker/inverse_blocks for padded samples")
        n = height * width
        hide = int(n * self.ratio)
        keep, ask = n - hide, int(hide * self.predict)
        block = self._block(draws, keep, height, width)
        if self.roll:
            steps = draws.named("roll").uniform(2).unbind(1)
            rows, columns = (
                (torch.arange(side, device=step.device) - (step * side).long().unsqueeze(1)) % side
                for step, side in zip(steps, (height, width), strict=True)
            )
            place = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(1).to(block.device)
            block = block.gather(1, place)
        noise = draws.named("asked").uniform(n).to(block.device)
        asked = fewest(noise.masked_fill(block, 2.0), ask)
        device = tokens.raw.device
        return Mask(block.to(device), asked.to(device).unsqueeze(1), None, keep, ask)

    def _block(self, draws: Draws, keep: int, height: int, width: int) -> Tensor:
        """The rectangles before they are moved, (b, height * width) bool with `keep` of them True."""
        low = max(math.log(self.aspect[0]), math.log(keep / width**2))
        high = min(math.log(self.aspect[1]), math.log(height**2 / (keep + 1e-5)))
        u = draws.named("block").uniform(3).double()
        shape = torch.exp(low + (high - low) * u[:, 0])
        # the borders of its shape may be a hair's breadth beyond the grid
        h = torch.sqrt(keep * shape).ceil().clamp(max=height)
        w = torch.sqrt(keep / shape).ceil().clamp(max=width)
        h = torch.maximum(h, (keep / w).ceil())
        top, left = ((u[:, 1 + i] * (side - s + 1)).floor() for i, (side, s) in enumerate(((height, h), (width, w))))
        rows, columns = (
            (torch.arange(side, device=u.device) >= start.unsqueeze(1))
            & (torch.arange(side, device=u.device) < (start + s).unsqueeze(1))
            for side, start, s in ((height, top, h), (width, left, w))
        )
        inside = (rows.unsqueeze(2) & columns.unsqueeze(1)).flatten(1)
        return inside & (inside.cumsum(1) <= keep)
