"""Positions that only audio models use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.nn.positions import sincos
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("position/sincos_transposed")
class SinCosTransposed(nn.Module):
    """Fixed sine-cosine positions as in Audio-MAE's release, whose table is built for the grid turned round.

    On a grid of T time steps and F frequency rows token i has the position (i // T, i mod T), not (i // F, i mod F).
    For its published weights; position/sincos is what was meant.

    Args:
        spec: sizes of the tokens, on a grid with two axes.
        dim: width, a multiple of 4.
    """

    table: Tensor

    def __init__(self, spec: TokenSpec, dim: int) -> None:
        super().__init__()
        if spec.grid is None or len(spec.grid) != 2:
            raise ValueError(f"position/sincos_transposed needs tokens on a grid with two axes (got {spec.grid})")
        steps = spec.grid[0]
        index = torch.arange(spec.grid[0] * spec.grid[1])
        table = sincos(torch.stack([index // steps, index % steps], 1).float(), dim)
        self.register_buffer("table", table, persistent=False)

    def forward(self, tokens: Tokens) -> Tensor:
        """Embeddings of the tokens' places, (b, n, dim)."""
        return self.table[tokens.index]
