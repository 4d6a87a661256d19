"""Activations that a predictor may end with: tensor to tensor."""

from __future__ import annotations

from torch import Tensor

from mmssl.registry import register


@register("activation/unit_tanh")
def unit_tanh(x: Tensor) -> Tensor:
    """tanh(x) / 2 + 0.5: answers strictly between 0 and 1, for values scaled to that range (ReMasker)."""
    return x.tanh() / 2 + 0.5


@register("activation/relu")
def relu(x: Tensor) -> Tensor:
    """max(x, 0): answers that are counts (MaskGAE's degrees)."""
    return x.relu()


@register("activation/sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)): answers strictly between 0 and 1 (VIME)."""
    return x.sigmoid()
