"""Normalisers of targets: called as (list of targets (..., d), progress), giving the list normalised.

A list, because some read all looks of the global batch together. Those that keep a state have `follow`, called with the
raw targets after they were used. `probabilities` says that rows come out as distributions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl import ranks
from mmssl.registry import register

Schedule = Callable[[float], float]


def check_temperature(value: float | Schedule, key: str) -> float | Schedule:
    """Refuses a temperature that is not positive.

    Raises:
        ValueError: naming the key.
    """
    first = value(0.0) if callable(value) else value
    if not first > 0:
        raise ValueError(f"{key} has to be above 0, usually 0.04 to 1 (got {first:g})")
    return value


def at(value: float | Schedule, progress: float) -> float:
    """A number, or a schedule's value now."""
    return value(progress) if callable(value) else value


@register("norm/layer")
class Layer(nn.Module):
    """LayerNorm over features without weights (I-JEPA, data2vec, MaskDistill).

    Args:
        dim: width of the targets.
        eps: added to the variance.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, targets: list[Tensor], progress: float) -> list[Tensor]:
        """Each row with mean 0 and population variance 1."""
        return [F.layer_norm(x, x.shape[-1:], eps=self.eps) for x in targets]


@register("norm/standard")
class Standard(nn.Module):
    """Each row less its mean, over its deviation from the unbiased variance (dBOT).

    Args:
        dim: width of the targets.
        eps: added to the variance.
    """

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, targets: list[Tensor], progress: float) -> list[Tensor]:
        """Each row with mean 0 and unbiased variance 1."""
        return [(x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + self.eps) for x in targets]


@register("norm/unit")
class Unit(nn.Module):
    """Each row over its length (BYOL, DMAE).

    Args:
        dim: width of the targets.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, targets: list[Tensor], progress: float) -> list[Tensor]:
        """Rows of length 1."""
        return [F.normalize(x, dim=-1) for x in targets]


@register("norm/center")
class Center(nn.Module):
    """Softmax of logits less a centre that follows their mean over the global batch (DINO, iBOT).

    Args:
        dim: number of prototypes.
        temperature: of the softmax, a number or a schedule over progress.
        momentum: share of the old centre kept at each step.
        whole: whether the centre follows all tokens of what the teacher saw, and not only those asked for (iBOT).

    Raises:
        ValueError: for a temperature not above 0, or a momentum outside [0, 1].
    """

    center: Tensor
    probabilities = True

    def __init__(
        self, dim: int, *, temperature: float | Schedule = 0.04, momentum: float = 0.9, whole: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"norm/center: momentum has to lie between 0 and 1, usually 0.9 (got {momentum:g})")
        self.temperature = check_temperature(temperature, "norm/center: temperature")
        self.momentum, self.whole = momentum, whole
        self.register_buffer("center", torch.zeros(dim))

    def forward(self, targets: list[Tensor], progress: float) -> list[Tensor]:
        """Distributions over prototypes."""
        temperature = at(self.temperature, progress)
        return [torch.softmax((x - self.center.to(x.dtype)) / temperature, -1) for x in targets]

    @torch.no_grad()
    def follow(self, targets: list[Tensor]) -> None:
        """Moves the centre towards the mean of all rows of all ranks."""
        rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in targets])
        sums = ranks.total(torch.cat([rows.sum(0), rows.new_tensor([float(len(rows))])]))
        if float(sums[-1]) > 0:
            self.center.lerp_((sums[:-1] / sums[-1]).to(self.center.dtype), 1.0 - self.momentum)


@register("norm/sinkhorn")
class Sinkhorn(nn.Module):
    """Assigns the rows of the global batch to prototypes in equal shares (SwAV; DINOv2), by Sinkhorn's iterations.

    Args:
        dim: number of prototypes.
        temperature: of the logits, a number or a schedule over progress.
        iterations: normalisations over rows and prototypes in turn; rows come last, so they sum to 1 exactly.
        each: whether every look is assigned on its own (SwAV), and not all of them together (DINOv2).

    Raises:
        ValueError: for a temperature not above 0, or no iteration.
    """

    probabilities = True

    def __init__(
        self, dim: int, *, temperature: float | Schedule = 0.05, iterations: int = 3, each: bool = False
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"norm/sinkhorn: iterations has to be at least 1, usually 3 (got {iterations})")
        self.temperature = check_temperature(temperature, "norm/sinkhorn: temperature")
        self.iterations, self.each = iterations, each

    @torch.no_grad()
    def forward(self, targets: list[Tensor], progress: float) -> list[Tensor]:
        """Distributions over prototypes."""
        temperature = at(self.temperature, progress)
        if self.each:
            return [self._assign(x, temperature) for x in targets]
        rows = [x.reshape(-1, x.shape[-1]) for x in targets]
        assigned = self._assign(torch.cat(rows), temperature).split([len(x) for x in rows])
        return [one.reshape(x.shape) for one, x in zip(assigned, targets, strict=True)]

    def _assign(self, logits: Tensor, temperature: float) -> Tensor:
        """Q of the logits (n, k); sums run over the rows of all ranks."""
        scaled = logits.reshape(-1, logits.shape[-1]).to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        # rows of other ranks are on one scale with ours; a common factor does not matter
        top = ranks.gather(scaled.max().reshape(1) if len(scaled) else scaled.new_full((1,), -torch.inf)).max()
        q = torch.exp(scaled - top)
        count = ranks.total(q.new_tensor(float(len(q))))
        q = q / ranks.total(q.sum())
        for _ in range(self.iterations):
            q = q / (ranks.total(q.sum(0)) * q.shape[1])
            q = q / (q.sum(1, keepdim=True) * count)
        return (q * count).reshape(logits.shape)
