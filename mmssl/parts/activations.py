"""Activations that a predictor may end with: tensor to tensor."""

from __future__ import annotations

from torch import Tensor

from mmssl.registry import register


@register("activation/unit_tanh")
def unit_tanh(x: Tensor) -> Tensor:
    """tanh(x) / 2 + 0.5: answers strictly between 0 and 1, for values scaled to that range (ReMasker)."""
    return x.tanh() / 2 + 0.5
