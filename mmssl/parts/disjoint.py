"""Masks of one sample that leave each other's visible tokens alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.parts.maskers import check_ratio, fewest
from mmssl.registry import register
from mmssl.step import Look
from mmssl.types import Mask, Tokens, TokenSpec


@register("guide/hidden")
class Hidden:
    """1 where another look hides its tokens, 0 where it sees them: what is to be seen by only one of two views (LUT).

    Args:
        spec: sizes of the tokens.
        width: width of the features.
        look: the other look, with as many tokens and one mask per sample.
    """

    def __init__(self, spec: TokenSpec, width: int, *, look: str) -> None:
        self.look = look

    def __call__(self, look: Look) -> Tensor:
        """Scores (b, n).

        Raises:
            ValueError: where there is no such look, or it has another number of tokens.
        """
        if self.look not in look.step.looks:
            raise ValueError(f"guide/hidden names look {self.look!r}, but the run has {sorted(look.step.looks)}")
        hidden = look.step[self.look].mask.hidden
        if hidden.shape != look.tokens.index.shape:
            raise ValueError(
                f"guide/hidden: look {self.look!r} has masks of {tuple(hidden.shape)}, and look {look.spec.name!r} "
                f"tokens of {tuple(look.tokens.index.shape)}; both views need one size, and one mask per sample"
            )
        return hidden.float()


@register("masker/favoured")
class Favoured:
    """Keeps the tokens that a guide scores highest visible; chance decides among equals (LUT's second view).

    Exactly int(n (1 - ratio)) stay visible, as with `masker/random`; padding is neither visible nor asked for.

    Args:
        ratio: share of tokens that are hidden, in [0, 1).

    Raises:
        ValueError: for a ratio outside [0, 1); when called, without a guide or for a packed batch.
    """

    def __init__(self, *, ratio: float = 0.75) -> None:
        check_ratio(ratio)
        self.ratio = ratio

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        if score is None or tokens.packed:
            raise ValueError(
                "masker/favoured needs a guide that scores tokens, such as guide/hidden, and dense samples"
            )
        n = tokens.index.shape[1]
        noise = draws.uniform(n).to(tokens.raw.device)
        if tokens.valid is not None:
            score = score.masked_fill(~tokens.valid, -torch.inf)
        chance = torch.argsort(noise, dim=1, stable=True)
        order = chance.gather(1, torch.argsort(score.gather(1, chance), dim=1, descending=True, stable=True))
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(n, device=order.device).expand_as(order))
        if tokens.valid is None:
            keep = int(n * (1 - self.ratio))
            return Mask(rank < keep, (rank >= keep).unsqueeze(1), None, keep, n - keep)
        table = torch.tensor([int(m * (1 - self.ratio)) for m in range(n + 1)], device=order.device)
        keep = table[tokens.valid.sum(1)].unsqueeze(1)
        return Mask(rank < keep, ((rank >= keep) & tokens.valid).unsqueeze(1))


@register("masker/disjoint")
class Disjoint:
    """Two masks per sample that hide what the other one shows, as far as there is room (DMJD, Ma et al. 2022).

    Tokens are hidden in square units. Of m units the first mask shows int(m (1 - ratio)), at random. The second shows
    as many: int(m min(predict - ratio, ratio)) of the units that the first one shows are hidden in it, so that with
    predict = 1 every token is hidden at least once.

    Args:
        ratio: share of units that each mask hides, in (0, 1).
        predict: share of units that at least one mask hides, in [ratio, 1].
        unit: side of a unit in tokens, on a grid; it has to divide every side. 1 for single tokens.

    Raises:
        ValueError: for shares out of range; when called, for padded or packed tokens, or a grid that units do not
            divide.
    """

    def __init__(self, *, ratio: float = 0.6, predict: float = 1.0, unit: int = 1) -> None:
        check_ratio(ratio)
        if not ratio <= predict <= 1:
            raise ValueError(f"masker.predict has to be in [masker.ratio={ratio:g}, 1] (got {predict:g})")
        self.ratio, self.predict, self.unit = ratio, predict, unit

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks two rows per sample, one behind the other."""
        grid, unit = tokens.grid, self.unit
        if tokens.packed or tokens.valid is not None:
            raise ValueError("masker/disjoint needs samples of one length; use masker/several with masker/random")
        if unit > 1 and (grid is None or any(side % unit for side in grid)):
            raise ValueError(
                f"masker.unit={unit} (in tokens) does not divide the grid of tokens {grid}; choose a common divisor of "
                "its sides, or 1"
            )
        coarse = (tokens.index.shape[1],) if unit == 1 else tuple(side // unit for side in grid or ())
        shown = self._units(draws, math.prod(coarse)).reshape(-1, *coarse)
        if unit > 1:
            for axis in range(len(coarse)):
                shown = shown.repeat_interleave(unit, dim=axis + 1)
        visible = shown.flatten(1).to(tokens.raw.device)
        count = int(math.prod(coarse) * (1 - self.ratio)) * visible.shape[1] // math.prod(coarse)
        row = torch.arange(len(tokens.index), device=visible.device).repeat_interleave(2)
        return Mask(visible, ~visible.unsqueeze(1), row, count, visible.shape[1] - count)

    def _units(self, draws: Draws, m: int) -> Tensor:
        """The units that both masks show, (b * 2, m) bool."""
        keep = int(m * (1 - self.ratio))
        extra = min(int(m * min(self.predict - self.ratio, self.ratio)), keep)
        first = fewest(draws.named("first").uniform(m), keep)
        noise = draws.named("second").uniform(m)
        # of the units shown already `keep - extra` stay, the rest come from those that the first hides
        again = fewest(torch.where(first, noise, 2.0), keep - extra)
        fresh = fewest(torch.where(first, 2.0, noise), extra)
        return torch.stack([first, again | fresh], 1).flatten(0, 1)
