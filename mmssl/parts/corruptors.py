"""Corruptors: how to hide. Each declares `on`, the stage it acts at: `view`, `tokens` or `embedded`.

Built as (spec of the tokens, what the encoder accepts, its width), called as (tokens, mask, draws). One that says
`maskless = True` changes values alone and needs no masker: its mask is None where the look has none.
"""

from __future__ import annotations

import torch
from torch import nn

from mmssl.draws import Draws
from mmssl.registry import register
from mmssl.types import Mask, Tokens, TokenSpec


@register("corruptor/drop")
class Drop(nn.Module):
    """Leaves hidden tokens out before they are embedded (MAE, JEPA): gone from a sequence, invalid on a grid.

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts: `sequence`, `set` or `grid`.
        dim: the encoder's width.
    """

    on = "tokens"
    drops = True
    needs = ("sequence", "set", "grid")

    def __init__(self, spec: TokenSpec, accepts: str, dim: int) -> None:
        super().__init__()
        self.keep_shape = accepts == "grid"

    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """The visible tokens, one row per mask."""
        if self.keep_shape:
            whole = tokens if mask.row is None else tokens.take(tokens.index[mask.row], mask.row)
            return whole.but(valid=mask.visible if whole.valid is None else whole.valid & mask.visible)
        index, valid = mask.visible_index
        return tokens.take(index, mask.row, valid)


@register("corruptor/token")
class Token(nn.Module):
    """Puts one learned vector in place of every hidden token's embedding (BERT, SimMIM, iBOT).

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts; replaced tokens keep the sequence whole.
        dim: the encoder's width.
        std: standard deviation of the token's initial normal; null draws it uniformly from [0, 1) (HuBERT).
        cut: where that normal is truncated; SimMIM's ViT cuts at one standard deviation.
        add: whether the vector is added to the embedding, and does not take its place (A2MIM).
    """

    on = "embedded"
    needs = ("sequence", "full")

    def __init__(
        self,
        spec: TokenSpec,
        accepts: str,
        dim: int,
        *,
        std: float | None = 0.02,
        cut: float = 2.0,
        add: bool = False,
    ) -> None:
        super().__init__()
        self.add = add
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        if std is None:
            nn.init.uniform_(self.mask_token)
        else:
            nn.init.trunc_normal_(self.mask_token, std=std, a=-cut, b=cut)

    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """All tokens, one row per mask, the hidden ones replaced."""
        assert tokens.x is not None
        x = tokens.x if mask.row is None else tokens.x[mask.row]
        token = self.mask_token.to(x.dtype)
        filled = torch.where(mask.hidden.unsqueeze(-1), x + token if self.add else token, x)
        if mask.row is None:
            return tokens.but(x=filled)
        return tokens.take(tokens.index[mask.row], mask.row).but(x=filled)
