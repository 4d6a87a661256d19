"""Maskers of groups of points: by where they lie in space, or in an order that follows space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.parts.maskers import check_ratio, fewest
from mmssl.registry import register
from mmssl.types import Mask, Tokens


@register("masker/neighbours")
class Neighbours:
    """Hides the tokens nearest to a random one (Point-BERT's and Point-MAE's block masking).

    Exactly int(ratio * n) tokens are hidden in each sample, the random one among them.

    Args:
        ratio: share of tokens that are hidden, in [0, 1).

    Raises:
        ValueError: for a ratio outside [0, 1); when called, for padded tokens.
    """

    def __init__(self, *, ratio: float = 0.6) -> None:
        check_ratio(ratio)
        self.ratio = ratio

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        if tokens.valid is not None or tokens.packed:
            raise ValueError("masker/neighbours wants equally many tokens in every sample; use masker/random")
        n = tokens.index.shape[1]
        centre = draws.integers(0, n, 1).to(tokens.pos.device)
        middle = tokens.pos.gather(1, centre.unsqueeze(-1).expand(-1, -1, tokens.pos.shape[-1]))
        distance = (tokens.pos - middle).square().sum(-1)
        # before all others that coincide with it
        distance = distance.scatter(1, centre, -1.0)
        hide = int(n * self.ratio)
        hidden = fewest(distance, hide)
        return Mask(~hidden, hidden.unsqueeze(1), None, n - hide, hide)


@register("masker/contiguous")
class Contiguous:
    """Runs of neighbouring tokens are asked for, and a run of the others is seen (Point-JEPA).

    Made for tokens in an order that follows space (tokenizer/points with `order: walk`). All numbers are drawn once per
    step and hold for every sample of it, on all ranks: a share r gives the length max(1, int(n r)) of all target runs,
    which start anywhere and may overlap; of the tokens in no run, in order, max(1, int(c m)) of m in a row are visible,
    where a gap left by a target does not break a row.

    Args:
        blocks: number of target runs.
        block: smallest and largest share of the tokens in a run.
        context: smallest and largest share of the tokens in no run that are visible.

    Raises:
        ValueError: for shares outside (0, 1] or not ascending, and where runs could cover everything; when called, for
            padded tokens, or too few of them.
    """

    def __init__(
        self, *, blocks: int = 4, block: Sequence[float] = (0.15, 0.2), context: Sequence[float] = (0.4, 0.75)
    ) -> None:
        for name, (low, high) in (("block", block), ("context", context)):
            if not 0.0 < low <= high <= 1.0:
                raise ValueError(f"masker.{name} has to be two ascending shares in (0, 1] (got {[low, high]})")
        if blocks < 1 or blocks * block[1] >= 1.0:
            raise ValueError(
                f"masker.blocks={blocks} runs of up to {block[1]:g} of the tokens each can cover them all, and one "
                "run at least is needed; lower masker.blocks or masker.block"
            )
        self.blocks, self.block, self.context = blocks, tuple(block), tuple(context)

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample, all rows alike: `blocks` targets each."""
        if tokens.valid is not None or tokens.packed:
            raise ValueError("masker/contiguous wants equally many tokens in every sample; use masker/random")
        b, n = tokens.index.shape
        if n <= self.blocks * max(1, int(n * self.block[1])):
            raise ValueError(
                f"masker.blocks={self.blocks} runs can cover all {n} tokens of a sample; lower it, or cut samples into "
                "more tokens"
            )
        share, seen, first, *starts = draws.batch().uniform(3 + self.blocks)[0].tolist()
        size = max(1, int(n * (self.block[0] + (self.block[1] - self.block[0]) * share)))
        targets = torch.zeros(self.blocks, n, dtype=torch.bool)
        for row, start in zip(targets, starts, strict=True):
            begin = int(start * (n - size + 1))
            row[begin : begin + size] = True
        free = (~targets.any(0)).nonzero().flatten()
        count = max(1, int(len(free) * (self.context[0] + (self.context[1] - self.context[0]) * seen)))
        begin = int(first * (len(free) - count + 1))
        visible = torch.zeros(n, dtype=torch.bool)
        visible[free[begin : begin + count]] = True
        device = tokens.raw.device
        return Mask(visible.to(device).expand(b, n), targets.to(device).expand(b, self.blocks, n), None, count, size)
