"""Targets: what should have been answered. Called as (look, query); they never carry a gradient and declare `dim`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.parts.regions import from_end
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
        return standardised(raw)

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
        layer: which layer: a name, `qkv.-1` for queries, keys and values of the last block, or the share of blocks
            below it (1.0 is the last block without the encoder's final norm, as in dBOT); null for the output.

    Raises:
        ValueError: for a layer that the network does not have.
    """

    def __init__(
        self, plan: Plan, look: str, *, network: Callable[..., nn.Module], layer: str | float | None = None
    ) -> None:
        super().__init__()
        made = network(plan.specs[look])
        known = getattr(getattr(made, "encoder", None), "tap_names", ())
        self.layer = None if layer is None else layer_name(layer, known)
        self.dim: int = int(made.dim) * (3 if (self.layer or "").startswith("qkv.") else 1)  # pyright: ignore[reportArgumentType]  # networks declare `dim`
        self._network = (made.eval().requires_grad_(False),)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        """Moves the frozen network along; it hides in a tuple so that checkpoints and optimizers do not see it."""
        super()._apply(fn, recurse)
        self._network[0]._apply(fn, recurse)
        return self

    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Features of the tokens asked for, (r, t, d)."""
        return gathered(look, query, self._features(look))

    def with_class(self, look: Look, query: Tokens) -> Tensor:
        """Features (r, 1 + t, d), those of the class token in front."""
        return gathered_with_class(look, query, self._features(look))

    @torch.no_grad()
    def _features(self, look: Look, taps: tuple[str, ...] = ()) -> Tokens:
        """Of the whole view, on the student's grid, and layers of the network."""
        wanted = (*taps, *(() if self.layer is None else (self.layer,)))
        features = self._network[0](look.views[0], *((wanted,) if wanted else ()))
        features = self._at_layer(features)
        if features.grid != look.tokens.grid:
            raise ValueError(
                f"target/frozen: the frozen network has tokens on {features.grid}, the student on {look.tokens.grid}; "
                "give both the same input size and patch"
            )
        return features

    @torch.no_grad()
    def pooled(self, look: Look, pool: str) -> Tensor:
        """Features of whole samples, (b, d)."""
        return full(self._features(look).pool(pool))

    def _at_layer(self, features: Tokens) -> Tokens:
        """The layer that is asked for in place of the output."""
        if self.layer is None:
            return features
        layer, n = features.taps[self.layer], features.index.shape[1]
        return features.but(x=layer[:, layer.shape[1] - n :], prefix=layer[:, : layer.shape[1] - n])


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
    def with_class(self, look: Look, query: Tokens) -> Tensor:
        """Features (r, 1 + t, d), those of the class token in front."""
        features: Tokens = self.network.encode(look.tokens)  # pyright: ignore[reportCallIssue]  # a Network
        return gathered_with_class(look, query, features)

    @torch.no_grad()
    def pooled(self, look: Look, pool: str) -> Tensor:
        """Features of whole samples, (b, d)."""
        return full(self.network.encode(look.tokens).pool(pool))  # pyright: ignore[reportCallIssue]  # a Network


def layer_name(layer: str | float, taps: Sequence[str]) -> str:
    """The name of a layer given by name, or by the share of blocks below it: 0.75 is `block.8` of 12 blocks.

    Names may count from the last: `qkv.-1` is `qkv.11`.

    Raises:
        ValueError: for a name or share that the encoder does not have.
    """
    if isinstance(layer, str):
        if (name := from_end(layer, taps)) not in taps:
            raise ValueError(f"there is no layer {layer!r}; the encoder has {', '.join(taps) or 'none'}")
        return name
    blocks = [name for name in taps if name.startswith("block.")]
    if not 0.0 < layer <= 1.0 or not blocks:
        raise ValueError(
            f"a layer is a name, such as block.8, or a share of the blocks in (0, 1] (got {layer!r}; the encoder has "
            f"{len(blocks)} blocks)"
        )
    return blocks[max(round(layer * len(blocks)), 1) - 1]


def standardised(values: Tensor, eps: float = 1e-6) -> Tensor:
    """Each token by its own mean and unbiased variance, to which `eps` is added (MAE's `norm_pix_loss`), (..., v).

    A layer norm divides by the biased variance: the same up to a factor, in an eighth of the time of `torch.var_mean`.
    """
    width = values.shape[-1]
    share = max(width - 1, 1) / width
    return F.layer_norm(values, (width,), eps=eps * share) * math.sqrt(share)


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


def gathered_with_class(look: Look, query: Tokens, features: Tokens) -> Tensor:
    """As `gathered`, with the class token's in front, (r, 1 + t, d).

    Raises:
        ValueError: where there is no class token.
    """
    if features.prefix is None:
        raise ValueError("class_token=true, but the network that gives the target has no class token")
    row, first = _rows(look, query), full(features.prefix[:, :1])
    return torch.cat([first if row is None else first[row], gathered(look, query, features)], 1)


def _rows(look: Look, query: Tokens) -> Tensor | None:
    """The sample each row of a query belongs to, None where rows are samples in order."""
    samples, rows = look.tokens.index.shape[0], query.index.shape[0]
    if rows == samples:
        return look.row
    owner = look.row
    masks = samples if owner is None else len(owner)
    each = torch.arange(masks, device=query.index.device).repeat_interleave(rows // masks)
    return each if owner is None else owner[each]
