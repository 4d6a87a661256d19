"""Cutting grids into cells and putting them together again, for any number of axes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cut(x: Tensor, cell: tuple[int, ...]) -> Tensor:
    """Cells of a grid, row-major; inside a cell the channel varies fastest (MAE's patch order).

    Args:
        x: (b, c, *sizes), each size a multiple of the cell.
        cell: size of a cell per axis.

    Returns:
        (b, n, prod(cell) * c).
    """
    b, c, *sizes = x.shape
    axes = len(cell)
    split: list[int] = [b, c]
    for size, side in zip(sizes, cell, strict=True):
        split += [size // side, side]
    order = [0, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2), 1]
    return x.reshape(split).permute(order).reshape(b, -1, math.prod(cell) * c)


def fold(x: Tensor, grid: tuple[int, ...], cell: tuple[int, ...]) -> Tensor:
    """The inverse of `cut`: (b, n, prod(cell) * c) to (b, c, *sizes)."""
    b, axes = x.shape[0], len(grid)
    c = x.shape[-1] // math.prod(cell)
    parts = x.reshape(b, *grid, *cell, c)
    order = [0, 1 + 2 * axes]
    for axis in range(axes):
        order += [1 + axis, 1 + axes + axis]
    sizes = [count * side for count, side in zip(grid, cell, strict=True)]
    return parts.permute(order).reshape(b, c, *sizes)


def coordinates(grid: tuple[int, ...]) -> Tensor:
    """Coordinates of every cell in row-major order, (n, axes) float32."""
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes], 1)
