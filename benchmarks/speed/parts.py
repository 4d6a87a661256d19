"""What several references share: patches, masks, targets, as scripts write them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.types import View


class Cut(nn.Module):
    """An image, clip or spectrogram normalised, and cut into cells whose channels vary fastest."""

    def __init__(self, network: Any, cell: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.mean, self.std = network.tokenizer.mean, network.tokenizer.std
        self.cell, self.channels = network.spec.cell, network.spec.channels

    def normalised(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) / self.std

    def patches(self, x: Tensor) -> Tensor:
        b, c, *sizes = x.shape
        split = [b, c, *(n for size, side in zip(sizes, self.cell, strict=True) for n in (size // side, side))]
        outer, inner = range(2, len(split), 2), range(3, len(split), 2)
        return x.reshape(split).permute(0, *outer, *inner, 1).reshape(b, -1, math.prod(self.cell) * c)

    def convolution(self, linear: nn.Linear) -> nn.Module:
        """The embedding as released code has it, a convolution over the whole input, of the same weights."""
        kind = nn.Conv2d if len(self.cell) == 2 else nn.Conv3d
        made = kind(self.channels, linear.out_features, self.cell, self.cell)
        axes = len(self.cell)
        weight = linear.weight.detach().view(-1, *self.cell, self.channels).permute(0, axes + 1, *range(1, axes + 1))
        made.weight.data.copy_(weight)
        made.bias.data.copy_(linear.bias.detach())
        return made


def image_batch(batch: int, size: int, frames: int | None = None) -> dict[str, Any]:
    """Noise in bytes, as a loader gives it."""
    ids, draw = torch.arange(batch), torch.Generator().manual_seed(0)
    shape = (batch, 3, size, size) if frames is None else (batch, 3, frames, size, size)
    data = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    return {"x": View(data, "image"), "id": ids, "epoch": torch.zeros_like(ids)}


def shuffled(x: Tensor, ratio: float, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Places that are kept, the inverse of the whole order, and 1 where a token is hidden (MAE's masking)."""
    b, n = x.shape[:2]
    keep = int(n * (1 - ratio))
    order = (torch.rand(b, n) if noise is None else noise).argsort(1)
    restore, kept = order.argsort(1), order[:, :keep]
    mask = torch.ones(b, n)
    mask[:, :keep] = 0
    return kept, restore, mask.gather(1, restore)


def joined(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each sample by place, (b, t, d)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def standard(patches: Tensor) -> Tensor:
    """Each patch by its own mean and unbiased variance."""
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6) ** 0.5
