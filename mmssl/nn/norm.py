"""Batch normalisation whose statistics are those of the global batch, on any device."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from mmssl import ranks


class BatchNorm(nn.BatchNorm1d):
    """Batch norm (Ioffe and Szegedy 2015) over the rows of all ranks; weights and buffers are those of nn.BatchNorm1d.

    Ranks may hold unequal numbers of rows. Statistics, running averages and gradients equal those of one rank that
    holds them all, in the precision of the input. Unlike torch's SyncBatchNorm it runs on a CPU too.

    Raises:
        ValueError: in training, for one row in all: its variance is nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (n, d, ...) over everything but d."""
        if self.training or self.running_mean is None:
            self._refuse_one(input)
            if ranks.world() > 1:
                return self._over_ranks(input)
        return super().forward(input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"a batch norm takes (n, d, ...) (got {input.dim()} axes)")

    def _refuse_one(self, x: Tensor) -> None:
        if x.numel() // x.shape[1] <= 1 and ranks.world() == 1:
            raise ValueError(
                "a batch norm was given a batch of one, whose variance is nothing; set data.batch_size to at least 2, "
                "or norm: layer in the head"
            )

    def _over_ranks(self, x: Tensor) -> Tensor:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        rows = x.numel() / x.shape[1]
        sums = torch.cat([x.sum(axes), x.new_tensor([rows])])
        sums = ranks.total(sums)
        count = sums[-1].detach()
        shape = (1, -1, *[1] * (x.dim() - 2))
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        # a second message: the difference of sums of squares would lose digits
        variance = ranks.total(centred.square().sum(axes)) / count
        self._follow(mean.detach(), variance.detach(), count)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Running averages, as torch keeps them: of the unbiased variance."""
        if self.running_mean is None or self.running_var is None or not self.training:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * count / (count - 1).clamp(min=1)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class BatchNormAct(BatchNorm):
    """A batch norm with an activation behind it, as timm has them in one module."""

    drop: Any
    act: Any

    def forward(self, input: Tensor) -> Tensor:
        """The activation of the normalised (n, d, ...)."""
        return self.act(self.drop(super().forward(input)))


_OURS = {
    nn.BatchNorm1d: BatchNorm, nn.BatchNorm2d: BatchNorm, nn.BatchNorm3d: BatchNorm, BatchNormAct2d: BatchNormAct,
}  # fmt: skip


def synchronise(module: nn.Module) -> None:
    """Makes torch's and timm's batch norms inside a module take their statistics over all ranks, in place.

    They stay the same objects with the same weights and buffers; only their class changes.
    """
    for part in module.modules():
        part.__class__ = _OURS.get(type(part), type(part))
