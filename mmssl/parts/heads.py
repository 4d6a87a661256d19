"""Heads: what stands between features and a loss over samples. Built as (width of the features), called as (n, width).

A run names its heads under `heads:`; terms share them by name, and a teacher has twins of them. `dim` is the width of
the answers. A `joint` head sees all looks in one call, which matters to batch norms only. A head that `mixes` is called
with Tokens and gives Tokens, for terms that `project` by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl import ranks
from mmssl.nn.init import trunc_normal_
from mmssl.nn.norm import BatchNorm
from mmssl.registry import register

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "prelu": nn.PReLU, "elu": nn.ELU}
_NORMS = ("batch", "plain", "layer")


def _norm(kind: str | None, dim: int) -> list[nn.Module]:
    if kind is None:
        return []
    if kind == "layer":
        return [nn.LayerNorm(dim)]
    return [BatchNorm(dim, affine=kind == "batch")]


def _layers(
    width: int, dims: Sequence[int], norm: str | None, last_norm: str | None, activation: str, bias: bool,
    last_bias: bool | None, dropout: float = 0.0,
) -> nn.Sequential:  # fmt: skip
    """Linear maps with a norm and an activation behind all but the last.

    Raises:
        ValueError: for no layer, or an unknown norm or activation.
    """
    if not dims or min(dims) < 1:
        raise ValueError(f"dims are the widths of the layers, at least one, such as [2048, 128] (got {list(dims)})")
    for key, kind in (("norm", norm), ("last_norm", last_norm)):
        if kind is not None and kind not in _NORMS:
            raise ValueError(f"{key} has to be batch, plain (batch without weights), layer or null (got {kind!r})")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation has to be one of {', '.join(_ACTIVATIONS)} (got {activation!r})")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is a share and has to be in [0, 1) (got {dropout:g})")
    parts: list[nn.Module] = []
    for i, dim in enumerate(dims):
        last = i == len(dims) - 1
        parts += [nn.Dropout(dropout)] if dropout and not last else []
        parts.append(nn.Linear(width, dim, bias=(bias if last_bias is None else last_bias) if last else bias))
        parts += _norm(last_norm if last else norm, dim)
        if not last:
            parts.append(_ACTIVATIONS[activation]())
        width = dim
    return nn.Sequential(*parts)


@register("head/mlp")
class MLP(nn.Module):
    """A perceptron: SimCLR's projector, BYOL's and SimSiam's predictors, Barlow Twins' and VICReg's expanders.

    Args:
        width: width of the features.
        dims: widths of the layers, the last one of the answers.
        norm: norm behind every layer but the last: `batch`, `plain` (without weights), `layer` or null.
        last_norm: norm behind the last, likewise; MoCo v3 and SimSiam: `plain`.
        activation: relu, gelu, prelu or elu, behind every layer but the last.
        bias: whether the linear maps have biases.
        last_bias: the same of the last; null for as the others.
        dropout: share of the input of every layer but the last that is dropped in training (MaskGAE).
        first: an activation in front of the first layer, for features that end bare (GraphMAE2's predictor).
        joint: whether batch norms see all looks at once (SimCLR, SwAV) and not each on its own (MoCo v3, BYOL, SimSiam,
            Barlow Twins, VICReg).

    Raises:
        ValueError: for no layer, or an unknown norm or activation.
    """

    def __init__(
        self,
        width: int,
        *,
        dims: Sequence[int],
        norm: str | None = "batch",
        last_norm: str | None = None,
        activation: str = "relu",
        bias: bool = True,
        last_bias: bool | None = None,
        dropout: float = 0.0,
        first: str | None = None,
        joint: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.joint = dims[-1] if dims else 0, joint
        self.layers = _layers(width, dims, norm, last_norm, activation, bias, last_bias, dropout)
        if first is not None and first not in _ACTIVATIONS:
            raise ValueError(f"first has to be one of {', '.join(_ACTIVATIONS)}, or null (got {first!r})")
        self.first = None if first is None else _ACTIVATIONS[first]()

    def forward(self, x: Tensor) -> Tensor:
        """Answers (..., dim) of features (..., width)."""
        rows = x.reshape(-1, x.shape[-1])
        return self.layers(rows if self.first is None else self.first(rows)).reshape(*x.shape[:-1], self.dim)


@register("head/prototypes")
class Prototypes(nn.Module):
    """A perceptron, its answers of length 1, and their products with prototypes of length 1 (DINO, iBOT; SwAV).

    Args:
        width: width of the features.
        dims: widths of the perceptron's layers; the last is the bottleneck.
        count: number of prototypes.
        norm: norm behind every layer but the last: `batch`, `plain`, `layer` or null (DINO).
        activation: behind every layer but the last.
        rows: how prototypes keep length 1: `normed`, divided by their length in the forward pass, with gradient (DINO's
            weight norm with its gain frozen at 1); `reset`, set back behind every step of the optimizer (SwAV);
            `free`, with a gain that learns (DINO's `norm_last_layer=false`).
        init: `trunc_normal` (DINO, deviation 0.02) or `default`, of the perceptron.
        joint: whether batch norms see all looks at once.

    Raises:
        ValueError: for fewer than two prototypes, no layer, or an unknown word.
    """

    def __init__(
        self,
        width: int,
        *,
        dims: Sequence[int] = (2048, 2048, 256),
        count: int = 65536,
        norm: str | None = None,
        activation: str = "gelu",
        rows: str = "normed",
        init: str = "trunc_normal",
        joint: bool = False,
    ) -> None:
        super().__init__()
        if count < 2:
            raise ValueError(f"count is the number of prototypes and has to be at least 2 (got {count})")
        if rows not in ("normed", "reset", "free") or init not in ("trunc_normal", "default"):
            raise ValueError(
                f"rows has to be normed, reset or free, and init trunc_normal or default (got {rows!r}, {init!r})"
            )
        self.dim, self.joint, self.rows = count, joint, rows
        self.layers = _layers(width, dims, norm, None, activation, True, None)
        if init == "trunc_normal":
            trunc_normal_(self.layers)
        self.prototypes = nn.Linear(dims[-1], count, bias=False)
        self.gain = nn.Parameter(torch.ones(count, 1)) if rows == "free" else None
        self.after_step()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (..., count) of features (..., width)."""
        flat = self.layers(x.reshape(-1, x.shape[-1]))
        weight = self.prototypes.weight
        unit = F.normalize(weight, dim=1)
        # reset: of length 1 already, or an average of such; no gradient goes through the division
        weight = weight + (unit - weight).detach() if self.rows == "reset" else unit
        if self.gain is not None:
            weight = weight * self.gain
        return F.linear(F.normalize(flat, dim=-1), weight).reshape(*x.shape[:-1], self.dim)

    @torch.no_grad()
    def after_step(self) -> None:
        """Called behind every step of the optimizer: sets prototypes back to length 1 where that is wanted."""
        if self.rows == "reset":
            weight = ranks.own(self.prototypes.weight)  # ranks hold whole rows
            weight.copy_(F.normalize(weight, dim=1))
