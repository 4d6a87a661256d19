"""A predictor that completes one view with the help of another one's features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from mmssl.nn.init import xavier_
from mmssl.nn.positions import SinCos
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec

ORDERS = {"cross": ("cross", "mlp", "own"), "own": ("own", "cross", "mlp"), "both": ("cross", "own", "mlp")}


class MemoryBlock(nn.Module):
    """Cross-attention to a memory, self-attention and an MLP, each with a residual sum, in one of three orders.

    Args:
        dim: width of queries and memory.
        heads: attention heads.
        hidden: hidden width of the MLP.
        first: which attention comes first: `cross` (then MLP, then self-attention), `own` (then cross, then MLP) or
            `both` (cross, then self-attention, then MLP).
        norm: `post`, behind each residual sum, or `pre`, in front of each branch and of the memory.
        dropout: of attention and of every branch.
        eps: epsilon of the layer norms.
    """

    def __init__(self, dim: int, heads: int, hidden: int, first: str, norm: str, dropout: float, eps: float) -> None:
        super().__init__()
        self.order, self.post = ORDERS[first], norm == "post"
        self.own = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.cross = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.mlp, self.drop = Mlp(dim, hidden, drop=dropout), nn.Dropout(dropout)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(dim, eps) for name in self.order})
        self.norm_memory = nn.Identity() if self.post else nn.LayerNorm(dim, eps)

    def forward(
        self, x: Tensor, memory: Tensor, padding: Tensor | None, hollow: Tensor | None, asked: int | None = None
    ) -> Tensor:
        """x (r, n, dim) reads itself and memory (r, s, dim); what is `asked` is the last so many tokens alone.

        Args:
            x: queries.
            memory: what they read.
            padding: True where x is padding, (r, n); None for nowhere.
            hollow: the same of the memory, (r, s).
            asked: how many of the last tokens are answered; None for all.
        """
        memory = self.norm_memory(memory)
        for name in self.order:
            norm = self.norms[name]
            given = x if self.post else norm(x)
            if name == "own":
                some, x = (given, x) if asked is None else (given[:, -asked:], x[:, -asked:])
                added = self.drop(self.own(some, given, given, key_padding_mask=padding, need_weights=False)[0])
            elif name == "cross":
                added = self.drop(self.cross(given, memory, memory, key_padding_mask=hollow, need_weights=False)[0])
            else:
                added = self.mlp(given)
            x = norm(x + added) if self.post else x + added
        return x


@register("predictor/cross_view")
class CrossView(nn.Module):
    """A decoder of one view that reads the tokens of another, for `term/predict` with a `memory`.

    Seen tokens and mask tokens at the places asked for are its queries; the memory stays as it is through all blocks.
    Both pass one linear map. As in `predictor/transformer` the last block answers only where it is asked.

    CroCo (Weinzaepfel et al. 2022): `first: own, norm: pre, memory_position: true`. SiamMAE (Gupta et al. 2023) and
    CropMAE (Eymael et al. 2024): `first: cross, norm: post, dropout: 0.1`, and a memory without positions, which is a
    set.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        dim: width of the decoder.
        depth: number of blocks.
        heads: attention heads.
        first: which attention comes first in a block: `cross`, then MLP, then self-attention; `own`, then cross, then
            MLP; or `both`: cross, then self-attention, then MLP.
        norm: `post`, behind each residual sum, or `pre`, in front of each branch and of the memory.
        memory_position: whether positions are added to the memory.
        position: position embedding, called as (spec, dim); class tokens get zeros.
        mlp_ratio: hidden width of the MLPs over the width.
        dropout: of attention and of every branch.
        norm_eps: epsilon of the layer norms.

    Raises:
        ValueError: when heads do not divide the width, or for an unknown word; when called without a memory.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        dim: int = 512,
        depth: int = 8,
        heads: int = 16,
        first: str = "own",
        norm: str = "pre",
        memory_position: bool = True,
        position: Callable[[TokenSpec, int], nn.Module] = SinCos,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"predictor.heads={heads} does not divide predictor.dim={dim}; choose a divisor of {dim}")
        if first not in ORDERS or norm not in ("pre", "post"):
            raise ValueError(
                f"predictor.first has to be 'own', 'cross' or 'both', and predictor.norm 'pre' or 'post' (got "
                f"{first!r} and {norm!r})"
            )
        make = partial(MemoryBlock, dim, heads, int(dim * mlp_ratio), first, norm, dropout, norm_eps)
        self.embed, self.position, self.memory_position = nn.Linear(width, dim), position(spec, dim), memory_position
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.blocks = nn.ModuleList(make() for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim, norm_eps), nn.Linear(dim, out)
        for part in (self.embed, self.blocks, self.head):
            xavier_(part)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, seen: Tokens, query: Tokens, memory: Tokens | None = None) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        if memory is None:
            raise ValueError("predictor/cross_view reads a second look; say which, memory: LOOK, in its term")
        asked = query.index.shape[1]
        mask = self.mask_token.expand(*query.index.shape, -1) + self.position(query)
        x = torch.cat([self._known(seen, positions=True), mask.to(self.head.weight.dtype)], 1)
        read = self._known(memory, positions=self.memory_position)
        padding = padding_of([seen, query], x.shape[1])
        hollow = padding_of([memory], read.shape[1])
        for block in self.blocks:
            x = block(x, read, padding, hollow, asked if block is self.blocks[-1] else None)
        return self.head(self.norm(x[:, -asked:]))

    def _known(self, seen: Tokens, positions: bool) -> Tensor:
        """Embedded features of one view, those of its class token in front, which gets no position."""
        assert seen.x is not None
        x = self.embed(seen.x)
        x = x + self.position(seen) if positions else x
        return x if seen.prefix is None else torch.cat([self.embed(seen.prefix), x], 1)


def padding_of(parts: list[Tokens], length: int) -> Tensor | None:
    """True where tokens that stand one behind the other are padding, (r, length); None where nothing is."""
    if all(part.valid is None for part in parts):
        return None
    flags = [torch.zeros_like(p.index, dtype=torch.bool) if p.valid is None else ~p.valid for p in parts]
    joined = torch.cat(flags, 1)
    return nn.functional.pad(joined, (length - joined.shape[1], 0), value=False)
