"""Batch normalisation whose statistics are those of the global batch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl import ranks


class BatchNorm(nn.BatchNorm1d):
    """Batch norm (Ioffe and Szegedy 2015) over the rows of all ranks; weights and buffers are those of nn.BatchNorm1d.

    Ranks may hold unequal numbers of rows. Statistics, running averages and gradients equal those of one rank that
    holds them all, in the precision of the input.

    Raises:
        ValueError: in training, for one row in all: its variance is nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (n, d) or (n, d, l) over everything but d."""
        if self.training or self.running_mean is None:
            self._refuse_one(input)
            if ranks.world() > 1:
                return self._over_ranks(input)
        return super().forward(input)

    def _refuse_one(self, x: Tensor) -> None:
        if x.numel() // x.shape[1] <= 1 and ranks.world() == 1:
            raise ValueError(
                "a batch norm was given a batch of one, whose variance is nothing; set data.batch_size to at least 2, "
                "or norm: layer in the head"
            )

    def _over_ranks(self, x: Tensor) -> Tensor:
        axes = [0] if x.dim() == 2 else [0, 2]
        rows = x.numel() / x.shape[1]
        sums = torch.cat([x.sum(axes), x.new_tensor([rows])])
        sums = ranks.total(sums)
        count = sums[-1].detach()
        shape = (1, -1) if x.dim() == 2 else (1, -1, 1)
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
