"""Plain functions with the numbers of torch's own, in a fraction of their time on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


def kept(rows: int, columns: int, p: float, like: Tensor) -> tuple[Tensor, float]:
    """What dropout keeps: a matrix of ones and, with probability p, zeros; and the factor that makes up for it.

    On a CPU four cells share a random number of 64 bits, so that p is rounded to a multiple of 1 / 65,536.
    """
    if like.device.type != "cpu":
        return (torch.rand(rows, columns, device=like.device) >= p).to(like.dtype), 1.0 / (1.0 - p)
    cells, least = rows * columns, round(p * _LEVELS)
    bits = torch.empty(-(-cells // 4), dtype=torch.int64).random_(-(1 << 63), None)
    cell = bits.view(torch.int16)[:cells].view(rows, columns)
    return (cell >= least - _LEVELS // 2).to(like.dtype), _LEVELS / (_LEVELS - least)


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout of (n,) or (n, d)."""
    if not training or p == 0.0:
        return x
    keep, scale = kept(x.shape[0], x[0].numel() if len(x) else 1, p, x)
    return x * keep.mul_(scale).view(x.shape)


def prelu(activation: nn.Module, x: Tensor) -> Tensor:
    """The activation of x; a PReLU with one slope through the kernels of the leaky ReLU."""
    if not isinstance(activation, nn.PReLU) or activation.num_parameters != 1 or x.device.type != "cpu":
        return activation(x)
    return _PReLU.apply(x, activation.weight)  # pyright: ignore[reportReturnType]


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.leaky_relu(x, float(slope))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (x, slope), grad = ctx.saved_tensors, grads[0].contiguous()
        of_x = torch.ops.aten.leaky_relu_backward(grad, x, float(slope), False)
        return of_x, torch.dot(grad.flatten(), x.clamp(max=0.0).flatten()).to(slope.dtype).view(slope.shape)


def thin(x: Tensor, columns: Tensor) -> Tensor:
    """The product of x (n, d) with a matrix of few columns (d, k); its gradient is taken the quick way round."""
    return _Thin.apply(x, columns)  # pyright: ignore[reportReturnType]


class _Thin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(x, columns)
        return x @ columns

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, columns = ctx.saved_tensors
        return grads[0] @ columns.t(), (grads[0].t() @ x).t()
