"""Position embeddings by name; each is called as (spec, dim) by the encoder or predictor that adds it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.nn.patches import coordinates
from mmssl.nn.positions import Learned, SinCos, sincos
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("position/sincos")
def fixed(spec: TokenSpec, dim: int, *, ends: bool = False) -> SinCos:
    """Fixed sine-cosine positions (MAE and most masked autoencoders); class tokens get zeros.

    Args:
        spec: sizes of the tokens.
        dim: width.
        ends: whether the n cells of an axis of the run's grid go from 0 to n (Latent MIM), and not to n - 1.
    """
    return SinCos(spec, dim, ends)


@register("position/learned")
def learned(spec: TokenSpec, dim: int) -> Learned:
    """Learned positions on a grid (ViT), resized for another grid; class tokens get none of their own."""
    return Learned(spec, dim)


@register("position/sincos_parts")
class SinCosParts(nn.Module):
    """Fixed sine-cosine positions, equally many columns for each axis, for any width (V-JEPA in 3-D, MoCo v3).

    Each of p axes gets 2 ceil(dim / (2 p)) columns, sines before cosines, the first axis first; they stand side by side
    and are cut to the width. (`position/sincos` wants a width that the axes divide, and begins with the last.)

    Args:
        spec: sizes of the tokens: `pos` coordinates.
        dim: width.
    """

    table: Tensor

    def __init__(self, spec: TokenSpec, dim: int) -> None:
        super().__init__()
        self.dim, self.grid = dim, spec.grid
        table = self._values(coordinates(spec.grid)) if spec.grid else torch.empty(0, dim)
        self.register_buffer("table", table, persistent=False)

    def _values(self, pos: Tensor) -> Tensor:
        wide = 2 * -(-self.dim // (2 * pos.shape[-1]))
        return torch.cat([sincos(axis.unsqueeze(-1), wide) for axis in pos.unbind(-1)], -1)[..., : self.dim]

    def forward(self, tokens: Tokens) -> Tensor:
        """Embeddings of the tokens' places, (b, n, dim)."""
        if tokens.grid == self.grid and self.grid is not None:
            return self.table[tokens.index]
        return self._values(tokens.pos)


@register("position/none")
class Nowhere(nn.Module):
    """No positions: tokens are a set (MP3's encoder, Selfie's context).

    Args:
        spec: sizes of the tokens.
        dim: width.
    """

    def __init__(self, spec: TokenSpec, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, tokens: Tokens) -> Tensor:
        """Zeros, (b, n, dim)."""
        return tokens.pos.new_zeros(*tokens.index.shape, self.dim)


@register("position/sincos_flat")
class SinCosFlat(nn.Module):
    """A fixed 1-D sinusoid of the token's number in row-major order (VideoMAE): sine and cosine take turns.

    Column j of token i is sin or cos (j even or odd) of i / 10000^(2 floor(j / 2) / dim).

    Args:
        spec: sizes of the tokens.
        dim: width, even.

    Raises:
        ValueError: for an odd width.
    """

    table: Tensor

    def __init__(self, spec: TokenSpec, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim={dim} has to be even for sine-cosine positions")
        self.dim = dim
        self.register_buffer("table", self._values(torch.arange(spec.length or 0)), persistent=False)

    def _values(self, index: Tensor) -> Tensor:
        wave = 10000.0 ** (-torch.arange(0, self.dim, 2, dtype=torch.float64, device=index.device) / self.dim)
        angle = index.unsqueeze(-1).double() * wave
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2).float()

    def forward(self, tokens: Tokens) -> Tensor:
        """Embeddings of the tokens' places, (b, n, dim)."""
        known = tokens.grid is not None and tokens.length <= len(self.table)
        return self.table[tokens.index] if known else self._values(tokens.index)
