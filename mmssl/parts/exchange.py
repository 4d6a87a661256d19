"""Streams that read one another, and a decoder that reads the layers below the encoder's last."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.nn.blocks import AskedBlock
from mmssl.nn.init import xavier_
from mmssl.nn.mlp import LeanMlp
from mmssl.nn.positions import SinCos
from mmssl.parts.cross_view import MemoryBlock, padding_of
from mmssl.parts.predictors import Position
from mmssl.parts.targets import layer_name
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


class ExchangeBlock(nn.Module):
    """Each of two streams reads the other as it was, then itself; an MLP follows."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, norm_eps: float) -> None:
        super().__init__()
        make = partial(MemoryBlock, dim, heads, int(dim * mlp_ratio), "both", "pre", 0.0, norm_eps)
        self.sides = nn.ModuleList(make() for _ in range(2))

    def forward(self, x: list[Tensor], hollow: list[Tensor | None]) -> list[Tensor]:
        """Both streams (r, n, dim) and (r, m, dim); `hollow` is True where they are padding."""
        return [side(x[i], x[1 - i], hollow[i], hollow[1 - i]) for i, side in enumerate(self.sides)]


@register("head/exchange")
class Exchange(nn.Module):
    """The seen tokens of two looks read one another, block by block (HiCMAE's cross-modal fusion, Sun et al. 2024).

    In a block each stream asks the other, then itself, and an MLP follows, all behind layer norms; both read what the
    other was before the block. A LayerNorm of its own ends each stream. It stands between encoders and predictors:
    `project` of a term, and is computed once for both. Layers that were kept on the way stay those of the encoders.

    Args:
        width: width of both looks' features.
        looks: the two looks.
        depth: number of blocks.
        heads: attention heads; they have to divide the width.
        mlp_ratio: hidden width of the MLPs over the width.
        norm_eps: epsilon of the layer norms.

    Raises:
        ValueError: for another number of looks, or when heads do not divide the width; when called, for looks with
            different numbers of masks.
    """

    def __init__(
        self, width: int, *, looks: Sequence[str], depth: int = 2, heads: int = 8, mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(looks) != 2 or len(set(looks)) != 2:
            raise ValueError(f"head/exchange joins two looks (got {list(looks)}); name two under `looks`")
        if width % heads:
            raise ValueError(f"head/exchange: heads={heads} does not divide the encoders' width {width}")
        self.looks, self.dim = list(looks), width
        self.blocks = nn.ModuleList(ExchangeBlock(width, heads, mlp_ratio, norm_eps) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width, norm_eps) for _ in range(2))
        xavier_(self)

    def forward(self, streams: Sequence[Tokens]) -> list[Tokens]:
        """The tokens of both looks with what they read in `x`, (r, n, width), and in `prefix`."""
        counts = [0 if tokens.prefix is None else tokens.prefix.shape[1] for tokens in streams]
        if len({len(tokens.index) for tokens in streams}) > 1:
            raise ValueError(
                f"head/exchange: looks {self.looks} have different numbers of masks; give them maskers alike"
            )
        x = [_joined(tokens) for tokens in streams]
        hollow = [padding_of([tokens], whole.shape[1]) for tokens, whole in zip(streams, x, strict=True)]
        for block in self.blocks:
            x = block(x, hollow)
        x = [norm(one) for norm, one in zip(self.norms, x, strict=True)]
        return [
            tokens.but(x=one[:, count:], prefix=one[:, :count] if count else None)
            for tokens, one, count in zip(streams, x, counts, strict=True)
        ]


def _joined(tokens: Tokens) -> Tensor:
    """Tokens behind their prefix."""
    assert tokens.x is not None
    return tokens.x if tokens.prefix is None else torch.cat([tokens.prefix, tokens.x], 1)


@register("predictor/skips")
class Skips(nn.Module):
    """A decoder whose later blocks read layers of the encoder, the deepest first (HiCMAE, Sun et al. 2024).

    Seen tokens and mask tokens at the places asked for, with positions, go through blocks of self-attention; then
    through one block for each layer, where they read what the encoder had made of the seen tokens at that depth, then
    themselves, and an MLP follows. One linear map without bias brings seen tokens and layers to the decoder's width,
    and layers get the positions of their tokens. Only tokens asked for are computed in the last block.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give.
        layers: the layers read, in turn: names such as `block.3`, or shares of the blocks below them: of 10 blocks 1.0,
            0.7 and 0.4 are those after blocks 9, 6 and 3. An encoder with `tap_norm` gives them normalised.
        dim: width of the decoder.
        depth: number of blocks in front, which read no layer.
        heads: attention heads.
        position: position embedding, called as (spec, dim); class tokens get zeros.
        mlp_ratio: hidden width of the MLPs over the width.
        norm_eps: epsilon of the layer norms.

    Raises:
        ValueError: when heads do not divide the width, for no block at all, or a layer that the encoder does not have.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        layers: Sequence[str | float] = (1.0, 0.7, 0.4),
        dim: int = 384,
        depth: int = 1,
        heads: int = 6,
        position: Position = SinCos,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"predictor.heads={heads} does not divide predictor.dim={dim}; choose a divisor of {dim}")
        if depth < 0 or depth + len(layers) < 1:
            raise ValueError(f"predictor.depth={depth} and predictor.layers={list(layers)} leave no block")
        self.taps = tuple(layer_name(layer, taps) for layer in layers)
        norm: Any = partial(nn.LayerNorm, eps=norm_eps)
        plain = partial(AskedBlock, dim, heads, mlp_ratio, qkv_bias=True, mlp_layer=LeanMlp, norm_layer=norm)
        reading = partial(MemoryBlock, dim, heads, int(dim * mlp_ratio), "both", "pre", 0.0, norm_eps)
        self.blocks = nn.ModuleList([plain() for _ in range(depth)] + [reading() for _ in layers])
        self.embed, self.position = nn.Linear(width, dim, bias=False), position(spec, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.norm, self.head = norm(dim), nn.Linear(dim, out)
        for part in (self.embed, self.blocks, self.norm, self.head):  # positions are drawn by their own
            xavier_(part)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        place, asked = self.position(seen), query.index.shape[1]
        known = self._placed(_joined(seen), place)
        mask = (self.mask_token + self.position(query)).to(known.dtype)
        x = torch.cat([known, mask], 1)
        padding, hollow = padding_of([seen, query], x.shape[1]), padding_of([seen], known.shape[1])
        inputs = {} if padding is None else {"attn_mask": ~padding[:, None, None, :]}
        plain = len(self.blocks) - len(self.taps)
        for i, block in enumerate(self.blocks):
            some = asked if block is self.blocks[-1] else None
            if i < plain:
                x = block(x, asked=some, **inputs)
            else:
                x = block(x, self._placed(seen.taps[self.taps[i - plain]], place), padding, hollow, some)
        return self.head(self.norm(x[:, x.shape[1] - asked :]))

    def _placed(self, values: Tensor, place: Tensor) -> Tensor:
        """Features of the seen tokens (r, q + n, width) at the decoder's width, with positions; prefixes get none."""
        x = self.embed(values)
        return x + nn.functional.pad(place, (0, 0, x.shape[1] - place.shape[1], 0)).to(x.dtype)
