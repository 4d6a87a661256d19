"""Losses that mmssl does not have."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import softplus

from mmssl.registry import register


@register("loss/log_cosh")
def log_cosh(prediction: Tensor, target: Tensor) -> Tensor:
    """Logarithm of the hyperbolic cosine of the error, averaged over features: a square near 0, a distance far away."""
    error = prediction - target
    return (error + softplus(-2 * error) - math.log(2)).mean(-1)
