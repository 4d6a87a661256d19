"""Corruptors: how to hide. Each declares `on`, the stage it acts at: `view`, `tokens` or `embedded`.

Built as (spec of the tokens, what the encoder accepts, its width), called as (tokens, mask, draws).
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
        std: standard deviation of the token's initial normal.
        cut: where that normal is truncated; SimMIM's ViT cuts at one standard deviation.
    """

    on = "embedded"
    needs = ("sequence", "full")

    def __init__(self, spec: TokenSpec, accepts: str, dim: int, *, std: float = 0.02, cut: float = 2.0) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=std, a=-cut, b=cut)

    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """All tokens, one row per mask, the hidden ones replaced."""
        assert tokens.x is not None
        x = tokens.x if mask.row is None else tokens.x[mask.row]
        filled = torch.where(mask.hidden.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        if mask.row is None:
            return tokens.but(x=filled)
        return tokens.take(tokens.index[mask.row], mask.row).but(x=filled)
