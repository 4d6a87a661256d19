"""Targets: what should have been answered. Called as (look, query); they never carry a gradient and declare `dim`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.parts.teachers import still
from mmssl.registry import register
from mmssl.step import Look, Plan
from mmssl.types import Tokens


@register("target/raw")
class Raw(nn.Module):
    """The raw values of the tokens: pixels, bins, offsets, features, cells (MAE, SimMIM, Audio-MAE, ReMasker).

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
        normalize: whether each token is standardised by its own mean and unbiased variance (MAE's `norm_pix_loss`).
    """

    def __init__(self, plan: Plan, look: str, *, normalize: bool = False) -> None:
        super().__init__()
        self.dim, self.normalize = plan.specs[look].raw, normalize

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Values of the tokens asked for, (r, t, v)."""
        raw = query.raw
        if not self.normalize:
            return raw
        variance, mean = torch.var_mean(raw, dim=-1, keepdim=True)
        return (raw - mean) * torch.rsqrt(variance + 1e-6)

    def restore(self, query: Tokens, prediction: Tensor) -> Tensor:
        """Predictions in the units of raw values, for pictures: undoes the standardisation with the tokens' own."""
        if not self.normalize:
            return prediction
        variance, mean = torch.var_mean(query.raw, dim=-1, keepdim=True)
        return prediction * torch.sqrt(variance + 1e-6) + mean


@register("target/teacher")
class Teacher(nn.Module):
    """The teacher's features of the tokens in the whole view (I-JEPA, data2vec); the student's own without a teacher.

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
        layers: names of layers whose mean is the target (data2vec); null for the output.
        layer_norm: what each layer is standardised by before: `layer` over its features, `instance` over the tokens of
            its sample, per feature (data2vec 2.0), or null.

    Raises:
        ValueError: for another word.
    """

    asks = ("taught",)

    def __init__(
        self, plan: Plan, look: str, *, layers: Sequence[str] | None = None, layer_norm: str | None = None
    ) -> None:
        super().__init__()
        if layer_norm not in (None, "layer", "instance"):
            raise ValueError(f"target/teacher: layer_norm has to be layer, instance or null (got {layer_norm!r})")
        self.dim, self.taps, self.layer_norm = plan.dims[look], tuple(layers or ()), layer_norm

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Features of the tokens asked for, (r, t, d)."""
        features = look.taught
        if self.taps:
            features = features.but(x=self._layers(features))
        return gathered(look, query, features)

    def _layers(self, features: Tokens) -> Tensor:
        """The mean of the layers, (b, n, d)."""
        assert features.x is not None
        total = torch.zeros_like(full(features.x))
        for name in self.taps:
            layer = full(features.taps[name])[:, -features.x.shape[1] :]  # without prefix
            if self.layer_norm == "layer":
                layer = F.layer_norm(layer, layer.shape[-1:])
            elif self.layer_norm == "instance":
                layer = F.instance_norm(layer.transpose(1, 2)).transpose(1, 2)
            total += layer
        return total / len(self.taps)


@register("target/frozen")
class Frozen(nn.Module):
    """Features of a frozen network that sees the whole view (MR-MAE, MaskAlign, MVP, EVA).

    The network is no part of a checkpoint: it is made again from its name and file.

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
        network: called as (spec of the look's tokens), gives a frozen network that reads views and gives features on
            the same grid of tokens, for instance `network/timm` or `network/run`.
    """

    def __init__(self, plan: Plan, look: str, *, network: Callable[..., nn.Module]) -> None:
        super().__init__()
        made = network(plan.specs[look])
        self.dim = made.dim
        self._network = (made.eval().requires_grad_(False),)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        """Moves the frozen network along; it hides in a tuple so that checkpoints and optimizers do not see it."""
        super()._apply(fn, recurse)
        self._network[0]._apply(fn, recurse)
        return self

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Features of the tokens asked for, (r, t, d)."""
        features = self._network[0](look.views[0])
        if features.grid != look.tokens.grid:
            raise ValueError(
                f"target/frozen: the frozen network has tokens on {features.grid}, the student on {look.tokens.grid}; "
                "give both the same input size and patch"
            )
        return gathered(look, query, features)

    @torch.no_grad()
    def pooled(self, look: Look, pool: str) -> Tensor:
        """Features of whole samples, (b, d)."""
        return full(self._network[0](look.views[0]).pool(pool))


@register("target/initial")
class Initial(nn.Module):
    """Features of the student's network as it was before the first step: dBOT's random first teacher (Liu et al. 2022).

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
    """

    def __init__(self, plan: Plan, look: str) -> None:
        super().__init__()
        self.dim = plan.dims[look]
        self.network = still(copy.deepcopy(plan.networks[look]))

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Features of the tokens asked for, (r, t, d)."""
        return gathered(look, query, self.network.encode(look.tokens))  # pyright: ignore[reportCallIssue]  # a Network

    @torch.no_grad()
    def pooled(self, look: Look, pool: str) -> Tensor:
        """Features of whole samples, (b, d)."""
        return full(self.network.encode(look.tokens).pool(pool))  # pyright: ignore[reportCallIssue]  # a Network


def full(x: Tensor) -> Tensor:
    """In float32 at least: targets are not rounded to 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gathered(look: Look, query: Tokens, features: Tokens) -> Tensor:
    """Features of whole samples at the places of a query, (r, t, d) float32."""
    assert features.x is not None
    if features.packed:
        return full(features.at(query))
    row = _rows(look, query)
    values = features.x if row is None else features.x[row]
    return full(values.gather(1, query.index.unsqueeze(-1).expand(-1, -1, values.shape[-1])))


def _rows(look: Look, query: Tokens) -> Tensor | None:
    """The sample each row of a query belongs to, None where rows are samples in order."""
    samples, rows = look.tokens.index.shape[0], query.index.shape[0]
    if rows == samples:
        return look.row
    owner = look.row
    masks = samples if owner is None else len(owner)
    each = torch.arange(masks, device=query.index.device).repeat_interleave(rows // masks)
    return each if owner is None else owner[each]
