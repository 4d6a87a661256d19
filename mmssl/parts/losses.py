"""Losses: (prediction, target) of shape (r, t, o) to one number per token, (r, t). Terms reduce."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmssl.registry import register


@register("loss/mse")
def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error, averaged over a token's features (MAE)."""
    return (prediction.to(target.dtype) - target).square().mean(-1)


@register("loss/l1")
def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute error, averaged over a token's features (SimMIM)."""
    return (prediction.to(target.dtype) - target).abs().mean(-1)


@register("loss/smooth_l1")
def smooth_l1(prediction: Tensor, target: Tensor, *, beta: float = 1.0) -> Tensor:
    """Huber-like error, quadratic below beta, averaged over features (I-JEPA with 1, dBOT with 2)."""
    return F.smooth_l1_loss(prediction.to(target.dtype), target, beta=beta, reduction="none").mean(-1)


@register("loss/cosine")
def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of prediction and target (feature distillation)."""
    return 1.0 - F.cosine_similarity(prediction.to(target.dtype), target, dim=-1)
