"""Tokens that take the values of another sample's: a masker that says which, how they do, and where it can be told."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.parts.maskers import check_ratio
from mmssl.plan import Plan
from mmssl.registry import register
from mmssl.step import Look
from mmssl.types import Mask, Tokens, TokenSpec


@register("masker/swap")
class Swap:
    """Hides each token with a probability, and names the sample whose token takes its place (VIME, Yoon et al. 2020).

    At every place the samples of the global batch are shuffled anew; a hidden token takes the one that fell to its
    sample, which may be its own. Goes with `corruptor/swap`. What is hidden is asked for.

    Args:
        ratio: probability of each token, in [0, 1); 0.3 in the paper.

    Raises:
        ValueError: for a ratio outside [0, 1).
    """

    def __init__(self, *, ratio: float = 0.3) -> None:
        check_ratio(ratio)
        self.ratio = ratio

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        b, n = tokens.index.shape
        hidden = draws.named("hidden").uniform(n) < self.ratio
        if tokens.valid is not None:
            hidden &= tokens.valid
        order, giver = (
            torch.argsort(ranks.gather(draws.named(name).uniform(n)), dim=0, stable=True) for name in ("taker", "giver")
        )
        first = ranks.offset(b, hidden.device)
        sample = torch.empty_like(order).scatter_(0, order, giver)[first : first + b]
        source = sample * n + torch.arange(n, device=hidden.device)
        return Mask(~hidden, hidden.unsqueeze(1), source=torch.where(hidden, source, -1))


@register("corruptor/swap")
class Swapped(nn.Module):
    """Puts the values of other samples' tokens in place of hidden ones, before they are embedded (VIME).

    A token that is missing by nature where it comes from is missing where it goes to.

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts; no token is left out.
        dim: the encoder's width.
    """

    on = "tokens"
    needs = ("sequence", "full", "grid")

    def __init__(self, spec: TokenSpec, accepts: str, dim: int) -> None:
        super().__init__()

    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """The same tokens, some with the values of others.

        Raises:
            ValueError: for a mask that names no source.
        """
        raw, given = exchanged(tokens, mask)
        if given is None:
            return tokens.but(raw=raw)
        return tokens.but(raw=raw, given=given, valid=given if tokens.valid is None else given & tokens.valid)


def exchanged(tokens: Tokens, mask: Mask) -> tuple[Tensor, Tensor | None]:
    """Raw values (b, n, v) with those that a mask takes from elsewhere, and which of them are given.

    Raises:
        ValueError: for a mask that names no source.
    """
    if mask.source is None or mask.row is not None:
        raise ValueError(
            "the masker does not say whose values hidden tokens take; corruptor/swap and target/swapped go with "
            "masker._target_=masker/swap"
        )
    taken, place = mask.source >= 0, mask.source.clamp(min=0)
    raw = torch.where(taken.unsqueeze(-1), ranks.gather(tokens.raw).flatten(0, 1)[place], tokens.raw)
    # whether something is missing is the same on every rank only if all ask
    own = torch.ones_like(taken) if tokens.given is None else tokens.given
    given = torch.where(taken, ranks.gather(own).flatten()[place], own)
    return raw, None if tokens.given is None and ranks.world() == 1 else given


@register("target/swapped")
class Differs(nn.Module):
    """1 at tokens whose values are no longer their own, 0 elsewhere: VIME's mask vector.

    A token that took an equal value is not told apart, and none of a constant column.

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
    """

    dim = 1

    def __init__(self, plan: Plan, look: str) -> None:
        super().__init__()

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """(r, t, 1) at the tokens asked for."""
        tokens = look.tokens
        raw, given = exchanged(tokens, look.mask)
        changed = (raw != tokens.raw).any(-1)
        if given is not None and tokens.given is not None:
            changed |= given != tokens.given
        return tokens.at(query, changed.to(raw.dtype).unsqueeze(-1))
