"""Transformer blocks whose norms are shifted, scaled and gated by a condition (AdaLN-zero, Peebles and Xie 2023)."""

from __future__ import annotations

import math
from functools import partial

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn

_norm = partial(nn.LayerNorm, eps=1e-6)


class Condition(nn.Module):
    """A number per sample, such as the time of a diffusion, as a vector: sinusoids, then a perceptron and SiLU.

    Args:
        dim: width, even and at least 4.
    """

    wave: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        wave = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float64) / max(half - 1, 1))
        self.register_buffer("wave", wave.float(), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * half, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim), nn.SiLU())

    def forward(self, value: Tensor | None, rows: int) -> Tensor:
        """Values (rows, 1) to (rows, 1, dim); None stands for zeros."""
        value = self.wave.new_zeros(rows, 1) if value is None else value.to(self.wave.dtype)
        angle = value * self.wave
        return self.mlp(torch.cat([angle.sin(), angle.cos()], -1)).unsqueeze(1)


class AdaBlock(nn.Module):
    """A pre-norm block whose branches begin at zero.

    Args:
        dim: width.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over the width.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(dim), _norm(dim)
        self.attn = Attention(dim, heads, qkv_bias=True)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.modulation = zero(nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, condition: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """x (b, n, d) under a condition (b, 1, d)."""
        said = self.modulation(condition).chunk(6, -1)
        x = x + said[2] * self.attn(self.norm1(x) * (1 + said[1]) + said[0], attn_mask=attn_mask)
        return x + said[5] * self.mlp(self.norm2(x) * (1 + said[4]) + said[3])


class AdaNorm(nn.Module):
    """The last norm, shifted and scaled by the condition.

    Args:
        dim: width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.modulation = _norm(dim), zero(nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (b, n, d) under a condition (b, 1, d)."""
        shift, scale = self.modulation(condition).chunk(2, -1)
        return self.norm(x) * (1 + scale) + shift


def zero(layer: nn.Linear) -> nn.Linear:
    """A linear map that begins at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
