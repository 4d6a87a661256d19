"""Position embeddings, added by encoders and predictors from the coordinates that tokens carry."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.nn.patches import coordinates
from mmssl.types import Tokens, TokenSpec


def sincos(pos: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    """Fixed sine and cosine features of coordinates (MAE's order: the last axis first, sines before cosines).

    Args:
        pos: (..., p).
        dim: width, a multiple of 2 p.
        base: longest wavelength over 2 pi.

    Returns:
        (..., dim) float32.

    Raises:
        ValueError: when there are no coordinates, or dim is not a multiple of twice the number of axes.
    """
    axes = pos.shape[-1]
    if not axes:
        raise ValueError(
            "position/sincos: these tokens have no coordinates, as the nodes of a graph. Choose an encoder that needs "
            "none: encoder=gin, encoder=gat or encoder=gcn for graphs"
        )
    if dim % (2 * axes):
        raise ValueError(f"dim={dim} has to be a multiple of {2 * axes} for sine-cosine positions on {axes} axes")
    half = dim // (2 * axes)
    wave = base ** (-torch.arange(half, dtype=torch.float64, device=pos.device) / half)
    parts = []
    for axis in reversed(range(axes)):
        angle = pos[..., axis, None].double() * wave
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, -1).float()


class SinCos(nn.Module):
    """Fixed sine-cosine positions; a table for the grid the run was built for, computed on the spot for any other.

    Args:
        spec: sizes of the tokens.
        dim: width.
        ends: whether coordinates are stretched so that n cells of an axis go from 0 to n, and not to n - 1.
    """

    table: Tensor
    stretch: Tensor

    def __init__(self, spec: TokenSpec, dim: int, ends: bool = False) -> None:
        super().__init__()
        self.dim, self.grid = dim, spec.grid
        sides = torch.tensor(spec.grid if spec.grid and ends else (), dtype=torch.float32)
        stretch = sides / (sides - 1).clamp(min=1) if len(sides) else torch.ones(())
        self.register_buffer("stretch", stretch, persistent=False)
        table = sincos(coordinates(spec.grid) * stretch, dim) if spec.grid else torch.empty(0, dim)
        self.register_buffer("table", table, persistent=False)

    def forward(self, tokens: Tokens) -> Tensor:
        """Embeddings of the tokens' places, (b, n, dim)."""
        if tokens.grid == self.grid and self.grid is not None:
            return self.table[tokens.index]
        return sincos(tokens.pos * self.stretch, self.dim)


class Learned(nn.Module):
    """A learned table over a grid, resized bicubically for another grid (ViT)."""

    def __init__(self, spec: TokenSpec, dim: int) -> None:
        super().__init__()
        if spec.grid is None:
            raise ValueError("position/learned needs tokens on a grid; use position/sincos")
        self.grid = spec.grid
        self.table = nn.Parameter(torch.empty(coordinates(spec.grid).shape[0], dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, tokens: Tokens) -> Tensor:
        """Embeddings of the tokens' places, (b, n, dim)."""
        table = self.table
        if tokens.grid is not None and tokens.grid != self.grid:
            square = table.T.reshape(1, -1, *self.grid)
            table = nn.functional.interpolate(square, tokens.grid, mode="bicubic", antialias=True).flatten(2)[0].T
        return table[tokens.index]
