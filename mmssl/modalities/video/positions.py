"""Position embeddings of tokens on a grid of (time, row, column)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.nn.patches import coordinates
from mmssl.nn.positions import sincos
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("position/separable")
class Separable(nn.Module):
    """A learned table over space plus one over time (MAE-ST); both truncated normal with deviation 0.02.

    For another grid than the run's the tables are resized: bicubically over space, linearly over time.

    Args:
        spec: sizes of the tokens, on a grid of three axes.
        dim: width.

    Raises:
        ValueError: for tokens that are not on such a grid.
    """

    def __init__(self, spec: TokenSpec, dim: int) -> None:
        super().__init__()
        if spec.grid is None or len(spec.grid) != 3:
            raise ValueError(f"position/separable needs a grid of (time, row, column), not {spec.grid}; use sincos")
        self.grid = spec.grid
        self.time = nn.Parameter(torch.empty(spec.grid[0], dim))
        self.space = nn.Parameter(torch.empty(spec.grid[1] * spec.grid[2], dim))
        nn.init.trunc_normal_(self.space, std=0.02)
        nn.init.trunc_normal_(self.time, std=0.02)

    def forward(self, tokens: Tokens) -> Tensor:
        """Embeddings of the tokens' places, (b, n, dim)."""
        grid = self.grid if tokens.grid is None else tokens.grid
        time, space = self.time, self.space
        if grid[0] != self.grid[0]:
            time = nn.functional.interpolate(time.T[None], grid[0], mode="linear")[0].T
        if grid[1:] != self.grid[1:]:
            square = space.T.reshape(1, -1, *self.grid[1:])
            space = nn.functional.interpolate(square, grid[1:], mode="bicubic", antialias=True).flatten(2)[0].T
        places = grid[1] * grid[2]
        return space[tokens.index % places] + time[tokens.index // places]


@register("position/sincos_plane")
class SinCosPlane(nn.Module):
    """Fixed sine-cosine positions of row and column alone, as in images: frames of a clip are not told apart (SiamMAE).

    Args:
        spec: sizes of the tokens.
        dim: width, a multiple of 4.
    """

    table: Tensor

    def __init__(self, spec: TokenSpec, dim: int) -> None:
        super().__init__()
        self.dim, self.grid = dim, spec.grid
        table = sincos(coordinates(spec.grid)[:, 1:], dim) if spec.grid else torch.empty(0, dim)
        self.register_buffer("table", table, persistent=False)

    def forward(self, tokens: Tokens) -> Tensor:
        """Embeddings of the tokens' places, (b, n, dim)."""
        known = tokens.grid == self.grid and self.grid is not None
        return self.table[tokens.index] if known else sincos(tokens.pos[..., 1:], self.dim)
