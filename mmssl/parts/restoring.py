"""A predictor whose decoder is an encoder: mask tokens stand where nothing was seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.parts.regions import counted
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("predictor/restored")
class Restored(nn.Module):
    """The whole sequence, seen tokens in place and one mask token elsewhere, through any encoder (BEATs).

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        decoder: an encoder, called as (spec), that takes whole sequences.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        decoder: Callable[[TokenSpec], nn.Module],
    ) -> None:
        super().__init__()
        self.decoder: Any = decoder(spec)
        dim = int(self.decoder.dim)
        self.embed, self.mask_token = nn.Linear(width, dim), nn.Parameter(torch.empty(1, 1, dim))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, out)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        assert seen.x is not None
        rows, n = len(query.index), seen.length
        known = self.embed(seen.x)
        index = torch.arange(n, device=known.device).expand(rows, n)
        x = self.mask_token.to(known.dtype).expand(rows, n, -1)
        spare = x.new_zeros(rows, 1, x.shape[-1])  # padding goes behind the sequence, and away
        place = seen.index if seen.valid is None else seen.index.masked_fill(~seen.valid, n)
        x = torch.cat([x, spare], 1).scatter(1, place.unsqueeze(-1).expand_as(known), known)[:, :n]
        valid = None
        if seen.valid is not None or query.valid is not None:
            valid = torch.zeros(rows, n + 1, dtype=torch.bool, device=x.device).scatter(1, place, True)
            flags = counted(query)
            asked = query.index if flags is None else query.index.masked_fill(~flags, n)
            valid = valid.scatter(1, asked, True)[:, :n]
        whole = Tokens(raw=x, pos=x[..., :0], index=index, x=x, valid=valid, grid=seen.grid, count=seen.count)
        decoded = self.decoder(whole)
        return self.head(self.norm(decoded.at(query)))
