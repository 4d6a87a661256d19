"""Convolutional networks that leave hidden cells out: what sparse convolution computes, by dense layers and a mask.

A layer runs as it is, and its output is zero where nothing is active; batch norms take their statistics over active
places alone. Layers are converted in place: the same objects with the same weights and buffers, of another class.
"""

from __future__ import annotations

import torch
from timm.layers.norm import LayerNorm2d
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from mmssl import ranks
from mmssl.nn.norm import BatchNorm


class Active:
    """Which cells of a coarse grid are active, for all layers of a network; all of them where nothing was said."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], Tensor] = {}
        self._flags: Tensor | None = None

    def say(self, flags: Tensor | None) -> None:
        """Sets the active cells, (b, 1, h, w) bool; None for all."""
        self._flags, self._found = flags, {}

    def at(self, size: tuple[int, int]) -> Tensor | None:
        """Active places of a finer map, (b, 1, *size) bool; None for all."""
        if self._flags is None:
            return None
        if size not in self._found:
            flags = self._flags
            for axis, side in zip((2, 3), size, strict=True):
                assert side % flags.shape[axis] == 0, "a map has whole cells"
                flags = flags.repeat_interleave(side // flags.shape[axis], axis)
            self._found[size] = flags
        return self._found[size]

    def only(self, x: Tensor) -> Tensor:
        """Zero where a map (b, c, h, w) is not active."""
        flags = self.at((x.shape[2], x.shape[3]))
        return x if flags is None else x * flags


class SparseConv(nn.Conv2d):
    """A convolution over active places."""

    active: Active

    def forward(self, input: Tensor) -> Tensor:
        """Zero where nothing is active."""
        return self.active.only(super().forward(input))


class SparseMaxPool(nn.MaxPool2d):
    """Maxima over active places, and over zeros beside them."""

    active: Active

    def forward(self, input: Tensor) -> Tensor:
        """Zero where nothing is active."""
        found = super().forward(input)
        assert isinstance(found, Tensor)
        return self.active.only(found)


class SparseAvgPool(nn.AvgPool2d):
    """Means over active places, and over zeros beside them."""

    active: Active

    def forward(self, input: Tensor) -> Tensor:
        """Zero where nothing is active."""
        return self.active.only(super().forward(input))


class SparseLayerNorm(LayerNorm2d):
    """A layer norm over the channels of active places."""

    active: Active

    def forward(self, x: Tensor) -> Tensor:
        """Zero where nothing is active."""
        return self.active.only(super().forward(x))


class SparseBlock(ConvNeXtBlock):
    """ConvNeXt's block, whose branch adds to active places alone."""

    active: Active

    def forward(self, x: Tensor) -> Tensor:
        """Zero where nothing is active."""
        return self.active.only(super().forward(x))


class SparseBatchNorm(BatchNorm):
    """A batch norm over the active places of all ranks; the others are zero before and after."""

    active: Active

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (b, c, h, w)."""
        flags = self.active.at((input.shape[2], input.shape[3]))
        if flags is None:
            return super().forward(input)
        if not self.training:
            return self.active.only(super().forward(input))
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        sums = torch.cat([(x * flags).sum((0, 2, 3)), flags.sum().to(x.dtype).reshape(1)])
        sums = ranks.total(sums)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = (x - mean.view(1, -1, 1, 1)) * flags
        variance = ranks.total(centred.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach(), count)
        out = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
        return ((out * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)) * flags).to(input.dtype)


_SPARSE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: SparseConv, nn.MaxPool2d: SparseMaxPool, nn.AvgPool2d: SparseAvgPool, nn.BatchNorm2d: SparseBatchNorm,
    LayerNorm2d: SparseLayerNorm, ConvNeXtBlock: SparseBlock,
}  # fmt: skip


def sparsify(module: nn.Module, active: Active) -> None:
    """Makes the layers of a convolutional network look at active places alone, in place.

    Raises:
        ValueError: for a layer over places that is not known.
    """
    for name, part in module.named_modules():
        if type(part) in _SPARSE:
            part.__class__ = _SPARSE[type(part)]
            part.active = active  # pyright: ignore[reportArgumentType]  # nn.Module takes any attribute
        elif isinstance(part, (_BatchNorm, _AvgPoolNd, _MaxPoolNd, nn.Conv2d, nn.GroupNorm)) or _pools(part):
            raise ValueError(
                f"layer {name!r} is a {type(part).__name__}, which is not known to look at active places alone; choose "
                "a network such as resnet50 or convnext_small"
            )


def _pools(part: nn.Module) -> bool:
    """Whether a layer looks at all places at once."""
    return type(part).__name__ in ("GlobalResponseNorm", "SEModule", "EffectiveSEModule")
