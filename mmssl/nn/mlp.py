"""A transformer's MLP that remembers half as much."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from torch import Tensor
from torch.autograd.function import once_differentiable


class _GeluLinear(torch.autograd.Function):
    """`linear(gelu(x), weight, bias)`, of which x is kept for the way back and gelu(x) is made again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, weight)
        ctx.bias = bias.dtype
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        dx = torch.ops.aten.gelu_backward(grad @ weight.to(grad.dtype), x.to(grad.dtype)).to(x.dtype) if of_x else None
        # autocast computes in 16 bits; gradients have the type of what they belong to
        dw = (rows.mT @ F.gelu(x).to(grad.dtype).flatten(0, -2)).to(weight.dtype) if of_weight else None
        return dx, dw, rows.sum(0).to(ctx.bias) if of_bias else None


class LeanMlp(Mlp):
    """timm's MLP of a transformer, whose activations are made again on the way back instead of being kept.

    They are the largest tensors of a block, a quarter of what it keeps, and take about a hundredth of its time to make
    (`make bench`: mae). Numbers and gradients are those of timm's. Narrow MLPs keep them: there they are little memory,
    and take as long as products.
    """

    least: int = 256

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) to (..., d)."""
        if x.shape[-1] < self.least:
            return super().forward(x)
        return self.drop2(_GeluLinear.apply(self.fc1(x), self.fc2.weight, self.fc2.bias))
