"""Losses of graph methods: one number per token."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.registry import register


@register("loss/scaled_cosine")
def scaled_cosine(prediction: Tensor, target: Tensor, *, alpha: float = 2.0) -> Tensor:
    """(1 - cosine) ** alpha of prediction and target, GraphMAE's scaled cosine error (Hou et al. 2022).

    A power above 1 gives easy tokens less weight. Norms are taken as at least 1e-12, so that the cosine with a vector
    of zeros counts as 0. The gradient of such a prediction (a node whose neighbours are all hidden, before the
    decoder's bias has moved) is then as large as in the released code, and Adam hardly moves that bias ever after.

    Args:
        prediction: (..., o).
        target: (..., o).
        alpha: the power, at least 1; 1 to 3 in the paper.

    Returns:
        (...).

    Raises:
        ValueError: for a power below 1.
    """
    if alpha < 1.0:
        raise ValueError(
            f"loss.alpha of loss/scaled_cosine has to be at least 1 (got {alpha:g}); the paper takes 1 to 3"
        )
    prediction = prediction.to(target.dtype)
    sizes = [torch.linalg.vector_norm(x, dim=-1).clamp(min=1e-12) for x in (prediction, target)]
    cosine = torch.linalg.vecdot(prediction, target) / (sizes[0] * sizes[1])
    return (1.0 - cosine).clamp(min=0.0) ** alpha
