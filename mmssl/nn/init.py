"""Initialisations that papers prescribe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn


def xavier_(module: nn.Module) -> None:
    """MAE's: Xavier-uniform for every Linear, biases 0, LayerNorm 1 and 0; tokens are drawn by whoever owns them."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def trunc_normal_(module: nn.Module, std: float = 0.02, cut: float = 2.0) -> None:
    """ViT's: truncated normal for every Linear, biases 0, LayerNorm 1 and 0.

    Args:
        module: what to initialise.
        std: standard deviation before truncation.
        cut: where the normal is cut off, in absolute units.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std, a=-cut, b=cut)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def scale_by_depth_(blocks: Iterable[Any]) -> None:
    """Divides the output matrices of block l (from 1) by sqrt(2 l), as BEiT and I-JEPA do; timm's blocks, in order."""
    for depth, block in enumerate(blocks, start=1):
        block.attn.proj.weight.data.div_(math.sqrt(2.0 * depth))
        block.mlp.fc2.weight.data.div_(math.sqrt(2.0 * depth))
