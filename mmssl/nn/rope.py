"""Transformer blocks whose attention turns queries and keys by their places (rotary embeddings) in the plane."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from mmssl.types import Tokens


def unit_places(tokens: Tokens) -> Tensor:
    """Row and column of each token, from 0 to 1 over the grid, (b, n, 2).

    Raises:
        ValueError: for tokens that lie on no grid of two axes.
    """
    if tokens.grid is None or len(tokens.grid) != 2 or tokens.packed:
        raise ValueError(f"rotary places need tokens on a grid of two axes (got {tokens.grid}); use encoder/vit")
    last = torch.tensor(tokens.grid, device=tokens.pos.device, dtype=tokens.pos.dtype) - 1
    return tokens.pos / last.clamp(min=1)


def edge(count: int) -> Tensor:
    """Places on the edge of the unit square, evenly around from (0, 0) on, (count, 2) float32.

    Raises:
        ValueError: for a number that four does not divide.
    """
    if count % 4:
        raise ValueError(
            f"registers lie on the four sides of a rectangle; their number is a multiple of 4 (got {count})"
        )
    c = torch.arange(count // 4) / max(count // 4, 1)
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    sides = ((c, zero), (one, c), (1 - c, one), (zero, 1 - c))
    return torch.cat([torch.stack(side, 1) for side in sides])


def with_registers(tokens: Tokens, count: int) -> Tensor:
    """Places of `count` registers on the edge of the rectangle that tokens span, then of these, (b, count + n, 2)."""
    places = unit_places(tokens)
    if not count:
        return places
    far = None if tokens.valid is None else ~tokens.valid.unsqueeze(-1)
    low = (places if far is None else places.masked_fill(far, torch.inf)).amin(1, keepdim=True)
    high = (places if far is None else places.masked_fill(far, -torch.inf)).amax(1, keepdim=True)
    return torch.cat([low + edge(count).to(places) * (high - low), places], 1)


class Rope(nn.Module):
    """Turns pairs of channels by angles that grow with the place: half of the channels by the row, half by the column.

    Args:
        dim: channels, a multiple of 4.
        fastest: turns of the first pair of channels over the whole axis.
        slowest: turns of the last; those between are spaced evenly in their logarithm.
        pairs: `axis`, of channels of one axis, which both turn by its angle; or `across`, as the released code of CAPI
            has it: a channel of the row and one of the column, each with its own axis's angle. That is no rotation.

    Raises:
        ValueError: for channels that are no multiple of 4, or another word.
    """

    speed: Tensor

    def __init__(self, dim: int, fastest: float = 7.0, slowest: float = 7e-4, pairs: str = "axis") -> None:
        super().__init__()
        if pairs not in ("axis", "across"):
            raise ValueError(f"pairs of channels have to be of one 'axis' or 'across' both (got pairs={pairs!r})")
        if dim % 4:
            raise ValueError(f"rotary places need heads whose width is a multiple of 4 (got {dim}); choose other heads")
        speed = 2 * math.pi * fastest * (fastest / slowest) ** torch.linspace(0, -1, dim // 4)
        self.register_buffer("speed", speed, persistent=False)
        self.across = pairs == "across"

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """x (b, heads, n, dim) at places (b, n, 2)."""
        angle = (places.unsqueeze(-1) * self.speed).to(x.dtype).unsqueeze(1)
        cos, sin = angle.cos(), angle.sin()
        if self.across:
            rows, columns = x.unflatten(-1, (2, 2, -1)).unbind(-3)
            (row_cos, column_cos), (row_sin, column_sin) = (part.unsqueeze(-2).unbind(-3) for part in (cos, sin))
            turned = [rows * row_cos - columns * row_sin, columns * column_cos + rows * column_sin]
            return torch.stack(turned, -3).flatten(-3)
        first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)  # by axis, and in pairs
        return torch.stack([first * cos - second * sin, second * cos + first * sin], -2).flatten(-3)


class RopeBlock(nn.Module):
    """Attention with rotary places and an MLP, each behind an RMS norm; without biases (CAPI, Darcet et al. 2025).

    Args:
        dim: width.
        heads: attention heads.
        context: width of what is read where that is not the tokens themselves; None for themselves.
        mlp_ratio: hidden width of the MLP over the width.
        drop_path: stochastic depth.
        eps: epsilon of the norms.
        pairs: which channels of a head are turned together, as in `Rope`.
    """

    def __init__(
        self, dim: int, heads: int, context: int | None = None, mlp_ratio: float = 4.0, drop_path: float = 0.0,
        eps: float = 1e-5, pairs: str = "axis",
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.rope = heads, Rope(dim // heads, pairs=pairs)
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps), nn.RMSNorm(dim, eps)
        self.q, self.proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.k, self.v = (nn.Linear(context or dim, dim, bias=False) for _ in range(2))
        self.fc1 = nn.Linear(dim, int(dim * mlp_ratio), bias=False)
        self.fc2 = nn.Linear(int(dim * mlp_ratio), dim, bias=False)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, x: Tensor, places: Tensor, context: Tensor | None = None, context_places: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x (b, n, dim) at places (b, n, 2) reads a context (b, m, d) at its places, or itself.

        Args:
            x: tokens.
            places: theirs.
            context: what is read as it is, without a norm; None for the tokens themselves.
            context_places: its places.
            mask: which of what is read may be, (b, 1, 1, m) bool; None for all.
        """
        own = self.norm1(x)
        read, at = (own, places) if context is None or context_places is None else (context, context_places)
        q, k, v = (
            part(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part, given in ((self.q, own), (self.k, read), (self.v, read))
        )
        found = F.scaled_dot_product_attention(self.rope(q, places), self.rope(k, at), v, attn_mask=mask)
        x = x + self.drop_path(self.proj(found.transpose(1, 2).flatten(2)))
        return x + self.drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))))
