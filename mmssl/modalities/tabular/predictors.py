"""The predictor of T-JEPA."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.modalities.tabular.encoders import Stack, check_heads, interleaved
from mmssl.nn.init import trunc_normal_
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("predictor/columns")
class Columns(nn.Module):
    """Context tokens and mask tokens at the columns asked for, through T-JEPA's stack (Thimonier et al. 2024).

    Positions are those of `encoder/columns`: registers first, then columns.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        dim: width of the predictor.
        depth: number of layers.
        heads: attention heads; they have to divide the width.
        mlp_ratio: hidden width of the MLPs over the width.
        dropout: of attention, of every branch and behind the layers.
        base: longest wavelength of the positions over 2 pi.

    Raises:
        ValueError: when heads do not divide the width.
    """

    taps: tuple[str, ...] = ()

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        dim: int = 16,
        depth: int = 16,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        base: float = 10000.0,
    ) -> None:
        super().__init__()
        check_heads("predictor", dim, heads)
        self.dim, self.base = dim, base
        self.embed, self.head = nn.Linear(width, dim), nn.Linear(dim, out)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.stack, self.norm = Stack(dim, depth, heads, int(dim * mlp_ratio), dropout), nn.LayerNorm(dim)
        trunc_normal_(self.embed)
        trunc_normal_(self.head)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the columns of the query."""
        assert seen.x is not None
        r, t = query.index.shape
        q = 0 if seen.prefix is None else seen.prefix.shape[1]
        front = torch.arange(q, device=query.index.device).expand(r, -1)
        context = seen.x if seen.prefix is None else torch.cat([seen.prefix, seen.x], 1)
        context = self.embed(context) + interleaved(torch.cat([front, seen.index + q], 1), self.dim, self.base)
        asked = self.mask_token + interleaved(query.index + q, self.dim, self.base)
        padding = None
        if seen.valid is not None or query.valid is not None:
            padding = torch.zeros(r, context.shape[1] + t, dtype=torch.bool, device=query.index.device)
            if seen.valid is not None:
                padding[:, q : context.shape[1]] = ~seen.valid
            if query.valid is not None:
                padding[:, context.shape[1] :] = ~query.valid
        x, _ = self.stack(torch.cat([context, asked], 1), padding)
        return self.head(self.norm(x[:, context.shape[1] :]))
