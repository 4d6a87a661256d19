"""Maskers: where to hide. They see geometry and validity, never pixels, and serve every modality.

A masker is called as (tokens, draws, progress, score) and gives a `Mask`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.masks import ordinal
from mmssl.registry import register
from mmssl.types import Mask, Tokens


def check_ratio(ratio: float) -> None:
    """Refuses a share outside [0, 1).

    Raises:
        ValueError: naming the key and the remedy.
    """
    if not 0.0 <= ratio < 1.0:
        hint = f"; did you mean {ratio / 100:g}?" if 1.0 < ratio < 100.0 else ""
        raise ValueError(
            f"masker.ratio is the share of tokens that are hidden and has to be in [0, 1) (got {ratio:g}){hint} "
            "MAE hides 0.75, SimMIM 0.6."
        )


def fewest(score: Tensor, count: int) -> Tensor:
    """True at the `count` smallest scores of each row, (r, n) bool."""
    chosen = torch.zeros_like(score, dtype=torch.bool)
    return chosen.scatter_(1, torch.argsort(score, dim=1, stable=True)[:, :count], True)


@register("masker/random")
class Random:
    """Hides a random share of the tokens of each sample (MAE; CrossMAE asks for part of what is hidden).

    Where every token is valid, exactly int(n (1 - ratio)) stay visible; else each sample keeps that share of its own.

    Args:
        ratio: share of tokens that are hidden, in [0, 1).
        predict: share of *all* tokens that is asked for, at most `ratio`; null asks for everything hidden.
            CrossMAE: n - int(n (1 - ratio)) - int(n (ratio - predict)) tokens are asked for.
        floor: which count is rounded down, `visible`, or `hidden` as int(n ratio) (Point-MAE).

    Raises:
        ValueError: for a ratio outside [0, 1), predict outside (0, ratio], or another word.
    """

    def __init__(self, *, ratio: float = 0.75, predict: float | None = None, floor: str = "visible") -> None:
        check_ratio(ratio)
        if floor not in ("visible", "hidden"):
            raise ValueError(f"masker.floor has to be 'visible' or 'hidden' (got {floor!r})")
        if predict is not None and not 0.0 < predict <= ratio:
            raise ValueError(f"masker.predict has to be in (0, masker.ratio={ratio:g}] (got {predict:g})")
        self.ratio, self.predict, self.floor = ratio, predict, floor

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        if tokens.packed:
            return self._packed(tokens, draws)
        n = tokens.index.shape[1]
        noise = draws.uniform(n).to(tokens.raw.device)
        if tokens.valid is not None:
            return self._ragged(noise, tokens.valid)
        rank = ordinal(noise)
        keep, skip = self._counts(n)
        return Mask(rank < keep, (rank >= keep + skip).unsqueeze(1), None, keep, n - keep - skip)

    def _counts(self, n: int) -> tuple[int, int]:
        """How many of n tokens stay visible, and how many are hidden but not asked for."""
        keep = int(n * (1 - self.ratio)) if self.floor == "visible" else n - int(n * self.ratio)
        return keep, 0 if self.predict is None else int(n * (self.ratio - self.predict))

    def _packed(self, tokens: Tokens, draws: Draws) -> Mask:
        """The same of each sample of a packed batch, as one row."""
        whole = tokens.but(edges=None, edge_attr=None, edge_weight=None, taps={}).dense()
        assert whole.valid is not None
        mask = self._ragged(draws.uniform(whole.index.shape[1]).to(tokens.raw.device), whole.valid)
        return Mask(mask.visible[whole.valid][None], mask.targets[:, 0][whole.valid][None, None])

    def _ragged(self, noise: Tensor, valid: Tensor) -> Mask:
        """Each sample keeps its share of its own valid tokens; padding is neither visible nor asked for."""
        rank = ordinal(noise.masked_fill(~valid, 2.0))
        # a table, not float32 arithmetic on the device: a sample keeps as many as it would in a batch without padding
        table = torch.tensor([self._counts(n) for n in range(valid.shape[1] + 1)], device=valid.device)
        keep, skip = table[valid.sum(1)].unsqueeze(-1).unbind(1)
        return Mask(rank < keep, ((rank >= keep + skip) & valid).unsqueeze(1))


@register("masker/units")
class Units:
    """Hides random square units of several tokens on a grid (SimMIM: units of 32 pixels; A2MIM, SparK).

    Exactly ceil(ratio * units) units are hidden in each sample.

    Args:
        ratio: share of units that are hidden, in [0, 1).
        unit: side of a unit in tokens; it has to divide every side of the grid.

    Raises:
        ValueError: for a ratio outside [0, 1); when called, for a grid that units do not divide.
    """

    def __init__(self, *, ratio: float = 0.6, unit: int = 2) -> None:
        check_ratio(ratio)
        self.ratio, self.unit = ratio, unit

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        grid, unit = tokens.grid, self.unit
        if grid is None or any(side % unit for side in grid):
            raise ValueError(
                f"masker.unit={unit} (in tokens) does not divide the grid of tokens {grid}; choose a common divisor of "
                "its sides, or masker/random"
            )
        coarse = tuple(side // unit for side in grid)
        units = math.prod(coarse)
        hide = math.ceil(units * self.ratio)
        hidden = fewest(draws.uniform(units), hide).reshape(-1, *coarse).to(tokens.raw.device)
        for axis in range(len(grid)):
            hidden = hidden.repeat_interleave(unit, dim=axis + 1)
        hidden = hidden.flatten(1)
        count = hide * unit ** len(grid)
        return Mask(~hidden, hidden.unsqueeze(1), None, hidden.shape[1] - count, count)
