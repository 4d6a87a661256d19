"""Maskers that look at where tokens lie in space."""

from __future__ import annotations

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
