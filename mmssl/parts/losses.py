"""Losses: (prediction, target) of shape (..., o) to one number per row, (...). Terms reduce.

Those that compare rows with one another take rows (n, o) and see those of all ranks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import ranks
from mmssl.parts.norms import check_temperature
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


@register("loss/soft_ce")
class SoftCrossEntropy:
    """Cross entropy of a softmax with a target distribution (DINO, iBOT, SwAV).

    Args:
        temperature: of the prediction's logits.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        check_temperature(temperature, "loss/soft_ce: temperature")
        self.temperature = temperature

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number per row."""
        return -(target * torch.log_softmax(prediction.to(target.dtype) / self.temperature, -1)).sum(-1)

    def chance(self, rows: int, width: int) -> float:
        """All prototypes alike."""
        return math.log(width)


def contrast(prediction: Tensor, target: Tensor, scale: float | Tensor, name: str) -> Tensor:
    """Cross entropy of finding one's own target by the cosine, times a scale, among those of all ranks; per row.

    Raises:
        ValueError: naming the loss, for a batch of one.
    """
    keys = ranks.gather(F.normalize(target, dim=-1))
    if len(keys) < 2:
        raise ValueError(f"{name} compares samples, but the batch holds one; raise data.batch_size")
    logits = F.normalize(prediction.to(keys.dtype), dim=-1) @ keys.T * scale
    own = torch.arange(len(logits), device=logits.device) + ranks.offset(len(logits), logits.device)
    return F.cross_entropy(logits, own, reduction="none")


@register("loss/info_nce")
class InfoNCE:
    """Each answer has to find its own target among those of the global batch (MoCo v3); see also loss/clip.

    Targets of other ranks carry a gradient where one's own do. MoCo v3 takes 2 * temperature times as much: that is the
    term's weight.

    Args:
        temperature: of the cosines.
    """

    def __init__(self, *, temperature: float = 0.2) -> None:
        check_temperature(temperature, "loss/info_nce: temperature")
        self.temperature = temperature

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number per row of (n, o)."""
        return contrast(prediction, target, 1 / self.temperature, "loss/info_nce")

    def chance(self, rows: int, width: int) -> float:
        """All candidates alike."""
        return math.log(max(rows, 1))


@register("loss/relation")
class Relation:
    """An answer's similarities to the targets of all samples should be those of its own target.

    SEED (Fang et al. 2021), with the global batch in place of its queue.

    Args:
        temperature: of the answer's similarities.
        target_temperature: of the target's.
    """

    def __init__(self, *, temperature: float = 0.2, target_temperature: float = 0.01) -> None:
        check_temperature(temperature, "loss/relation: temperature")
        check_temperature(target_temperature, "loss/relation: target_temperature")
        self.temperature, self.target_temperature = temperature, target_temperature

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number per row of (n, o)."""
        own = F.normalize(target, dim=-1)
        keys = ranks.gather(own)
        likely = torch.log_softmax(F.normalize(prediction.to(keys.dtype), dim=-1) @ keys.T / self.temperature, -1)
        return -(torch.softmax(own @ keys.T / self.target_temperature, -1) * likely).sum(-1)
