"""Weights and images from formulas: two implementations get the same numbers without a file of weights.

Everything is computed in float64 and then rounded to float32. No random generator is involved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

AMPLITUDE = 0.15
STEP = 0.7
CHIRP = 0.013
OFFSET = 0.9


def wave(count: int, shift: float) -> Tensor:
    """The numbers sin(0.7 (j + 1) + 0.013 (j + 1)^2 + shift) for j = 0..count-1, (count,) float64.

    The square makes the frequency rise: without it every matrix filled row by row has rank two, and a network of such
    matrices hides errors.
    """
    place = torch.arange(1, count + 1, dtype=torch.float64)
    return torch.sin(STEP * place + CHIRP * place * place + shift)


def is_norm_weight(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is the weight of a normalisation: the one-dimensional ones called `weight`."""
    return len(shape) == 1 and name.endswith(".weight")


def fill(named_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Values for every parameter: 0.15 * wave(numel, 0.9 (i + 1)), one more for weights of a normalisation.

    Args:
        named_shapes: shapes by name. The i-th name (i from 0, names sorted as Python strings) has the shift
            0.9 (i + 1), so values depend on the whole set: give the official names of all trainable parameters.

    Returns:
        Float32 tensors by name, filled in C order.
    """
    filled = {}
    for i, name in enumerate(sorted(named_shapes)):
        shape = tuple(named_shapes[name])
        value = AMPLITUDE * wave(math.prod(shape), OFFSET * (i + 1)) + float(is_norm_weight(name, shape))
        filled[name] = value.to(torch.float32).reshape(shape)
    return filled


def image(batch: int = 3, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Images of mean about zero and variance about one, (batch, channels, height, width) float32.

    sqrt(2) * (0.8 smooth + 0.6 amount * wave(numel, 0)) with, for row y, column x, channel c and sample s from 0,
    smooth = sin(0.2 (y+1) + 0.13 (x+1) + 0.6 (c+1) + 2.3 (s+1)) and
    amount = 1 + 0.6 sin(0.31 (y+1) - 0.17 (x+1) + 1.1 (s+1)): patches differ in mean and in variance.
    """
    shape = (batch, channels, height, width)
    s, c, y, x = (1 + place.to(torch.float64) for place in torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    smooth = torch.sin(0.2 * y + 0.13 * x + 0.6 * c + 2.3 * s)
    amount = 1 + 0.6 * torch.sin(0.31 * y - 0.17 * x + 1.1 * s)
    noise = wave(math.prod(shape), 0.0).reshape(shape)
    return (math.sqrt(2) * (0.8 * smooth + 0.6 * amount * noise)).to(torch.float32)


def probes(count: int) -> list[int]:
    """The six flat indices at which a gradient of `count` elements is recorded: 0, n//5, 2n//5, 3n//5, 4n//5, n-1."""
    return [*(k * count // 5 for k in range(5)), count - 1]
