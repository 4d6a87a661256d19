"""What pairs of streams are compared by: a head for each, and a contrast whose scale is learned (CLIP, CROMA, FLIP)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmssl.parts.losses import contrast
from mmssl.parts.norms import check_temperature
from mmssl.registry import register


@register("head/feedforward")
class FeedForward(nn.Module):
    """LayerNorm, a feed-forward layer of GELU and a linear map: what CROMA puts behind a stream's mean.

    Args:
        width: width of the features.
        dim: width of the answers; null for that of the features.
        ratio: hidden width over the width.
    """

    def __init__(self, width: int, *, dim: int | None = None, ratio: float = 4.0) -> None:
        super().__init__()
        self.dim = width if dim is None else dim
        hidden = int(width * ratio)
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
            nn.Linear(width, self.dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Answers (..., dim) of features (..., width)."""
        return self.layers(x)


@register("loss/clip")
class Clip(nn.Module):
    """Each answer has to find its own target among those of the global batch, at a temperature that is learned (CLIP).

    Radford et al. 2021; CROMA. With both looks as answers and targets and `detach: false` it is their symmetric loss.

    Args:
        temperature: of the cosines at the start; what is learned is the logarithm of its inverse.
    """

    def __init__(self, *, temperature: float = 0.07) -> None:
        super().__init__()
        check_temperature(temperature, "loss/clip: temperature")
        self.scale = nn.Parameter(torch.tensor([math.log(1 / temperature)]))  # FSDP cuts along an axis

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number per row of (n, o)."""
        return contrast(prediction, target, self.scale.exp(), "loss/clip")

    def chance(self, rows: int, width: int) -> float:
        """All candidates alike."""
        return math.log(max(rows, 1))
