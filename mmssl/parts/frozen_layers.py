"""A frozen network that guides and teaches in one pass, by what it looks at and by its layers; mixtures of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.nn.init import xavier_
from mmssl.parts.attention import class_attention
from mmssl.parts.regions import from_end
from mmssl.parts.targets import Frozen, full, gathered, gathered_with_class
from mmssl.plan import Plan
from mmssl.registry import register
from mmssl.step import Look
from mmssl.types import Tokens, TokenSpec


def last_blocks(count: int, taps: tuple[str, ...], whose: str) -> tuple[str, ...]:
    """Names of the last blocks.

    Raises:
        ValueError: where there are not so many.
    """
    blocks = tuple(name for name in taps if name.startswith("block."))
    if not 1 <= count <= len(blocks):
        raise ValueError(f"`last` is a number of the last blocks, and {whose} has {len(blocks)} (got {count})")
    return blocks[-count:]


@register("guide/frozen_attention")
class FrozenAttention(Frozen):
    """How much a frozen network's class token attends to each token of the whole view, the mean over heads (MaskAlign).

    The network is no part of a checkpoint. `target/guide` reads layers of the same pass.

    Args:
        spec: sizes of the tokens.
        width: the student's width.
        network: called as (spec of the look's tokens), gives a frozen vision transformer on the same grid, for instance
            `network/timm` or `network/run`.
        layer: of which layer's queries and keys; `qkv.-1` is the last one's.

    Raises:
        ValueError: for a network without such a layer; when called, for one on another grid or without a class token.
    """

    def __init__(
        self, spec: TokenSpec, width: int, *, network: Callable[..., nn.Module], layer: str = "qkv.-1"
    ) -> None:
        nn.Module.__init__(self)
        made: Any = network(spec).eval().requires_grad_(False)
        self._network, self.dim = (made,), made.dim
        self.layers: tuple[str, ...] = getattr(getattr(made, "encoder", None), "tap_names", ())
        self.layer, self.attended = None, from_end(layer, self.layers)
        if self.attended not in self.layers:
            raise ValueError(f"guide.layer={layer!r}: the frozen network has layers {', '.join(self.layers) or 'none'}")
        self.kept = {self.attended}
        self._known: WeakKeyDictionary[Look, Tokens] = WeakKeyDictionary()

    def features(self, look: Look) -> Tokens:
        """What the network makes of the whole view, with the layers `kept`; computed once for each look of a step."""
        if look not in self._known:
            self._known[look] = self._features(look, tuple(sorted(self.kept)))
        return self._known[look]

    @torch.no_grad()
    def forward(self, look: Look) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # a guide has no query
        """Scores (b, n), positive; with those of the class tokens they sum to 1."""
        return class_attention(self.features(look), self._network[0].encoder, self.attended)


@register("target/guide")
class GuideLayers(nn.Module):
    """The last blocks of the frozen network that guides the look's masker, side by side (MaskAlign).

    Args:
        plan: sizes, and the guide.
        look: the look whose tokens are meant; its guide is `guide/frozen_attention`.
        last: how many of the last blocks, without the final norm.
        layer_norm: whether each is standardised over its features.

    Raises:
        ValueError: for a look with another guide, or more blocks than the network has.
    """

    def __init__(self, plan: Plan, look: str, *, last: int = 5, layer_norm: bool = True) -> None:
        super().__init__()
        guide = plan.looks[look].guide
        if not isinstance(guide, FrozenAttention):
            raise ValueError(
                f"target/guide reads what guide/frozen_attention runs, and look {look!r} has no such guide"
            )
        self.layers, self.layer_norm = last_blocks(last, guide.layers, "the guide's network"), layer_norm
        guide.kept |= set(self.layers)
        self.dim = last * guide.dim

    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Features of the tokens asked for, (r, t, last * d)."""
        return gathered(look, query, self._layers(look))

    def with_class(self, look: Look, query: Tokens) -> Tensor:
        """Features (r, 1 + t, last * d), those of the class token in front."""
        return gathered_with_class(look, query, self._layers(look))

    @torch.no_grad()
    def _layers(self, look: Look) -> Tokens:
        guide: Any = look.spec.guide
        features = guide.features(look)
        found = [full(features.taps[name]) for name in self.layers]
        if self.layer_norm:
            found = [F.layer_norm(x, x.shape[-1:]) for x in found]
        joined, count = torch.cat(found, -1), found[0].shape[1] - features.index.shape[1]
        return features.but(x=joined[:, count:], prefix=joined[:, :count] if count else None)


@register("predictor/layers")
class MixedLayers(nn.Module):
    """Answers for the last layers, each a linear map of its own mixture of all blocks (MaskAlign's dynamic alignment).

    A mixture begins as the block itself and 0.01 of every block. It answers only where the encoder saw.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer, that of all layers side by side.
        taps: layers that the encoder can give; all blocks are read, without the final norm.
        last: how many of the last layers are answered for.

    Raises:
        ValueError: where the encoder has not so many blocks, or `last` does not divide the width of the answer.
    """

    def __init__(self, spec: TokenSpec, width: int, out: int, taps: tuple[str, ...], *, last: int = 5) -> None:
        super().__init__()
        last_blocks(last, taps, "the encoder")
        if out % last:
            raise ValueError(
                f"predictor.last={last} does not divide the targets' width of {out}; set both to one number"
            )
        self.taps = tuple(name for name in taps if name.startswith("block."))
        depth = len(self.taps)
        self.mix = nn.Parameter(torch.eye(depth)[depth - last :] + 0.01)
        self.heads = nn.ModuleList(nn.Linear(width, out // last) for _ in range(last))
        xavier_(self.heads)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query, all of which must be among the seen tokens."""
        return self._answer(torch.stack([seen.at(query, tap) for tap in self._blocks(seen)[1]]))

    def with_class(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, 1 + t, out), the class token's in front."""
        first, blocks = self._blocks(seen)
        asked = [torch.cat([a[:, :1], seen.at(query, b)], 1) for a, b in zip(first, blocks, strict=True)]
        return self._answer(torch.stack(asked))

    def _blocks(self, seen: Tokens) -> tuple[list[Tensor], list[Tensor]]:
        """Class tokens and tokens of every block."""
        count = -seen.index.shape[1]
        layers = [seen.taps[name] for name in self.taps]
        return [x[:, :count] for x in layers], [x[:, count:] for x in layers]

    def _answer(self, layers: Tensor) -> Tensor:
        mixed = torch.einsum("al,lrtd->artd", self.mix.to(layers.dtype), layers)
        return torch.cat([head(x) for head, x in zip(self.heads, mixed, strict=True)], -1)
