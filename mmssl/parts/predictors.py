"""Predictors: from what the encoder saw to an answer at the tokens asked for. MAE's decoder *is* JEPA's predictor.

Called as (spec, width in, width out, taps of the encoder); then as (seen tokens, asked tokens), giving answers
(r, t, width out).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from mmssl.nn.blocks import AskedBlock
from mmssl.nn.init import xavier_
from mmssl.nn.mlp import LeanMlp
from mmssl.nn.positions import SinCos
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec

Position = Callable[[TokenSpec, int], nn.Module]
_norm = partial(nn.LayerNorm, eps=1e-6)


@register("predictor/linear")
class Linear(nn.Module):
    """One linear map of each token's features (SimMIM's head, MR-MAE's mimic); it answers only where the encoder saw.

    On tokens of p x p pixels this is SimMIM's 1x1 convolution with pixel-shuffle, up to the order of its outputs.
    """

    def __init__(self, spec: TokenSpec, width: int, out: int, taps: tuple[str, ...]) -> None:
        super().__init__()
        self.head = nn.Linear(width, out)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query, all of which must be among the seen tokens."""
        return self.head(seen.at(query))

    def with_class(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, 1 + t, out), the class token's in front."""
        assert seen.prefix is not None
        return self.head(torch.cat([seen.prefix[:, :1], seen.at(query)], 1))


@register("predictor/transformer")
class Transformer(nn.Module):
    """Self-attention over seen tokens and mask tokens at the places asked for (MAE's decoder; I-JEPA's predictor).

    Attention does not mind the order of its tokens, so nothing is put back in place. Only the tokens asked for have
    queries in the last block, are normalised and projected: the numbers are those of the dense decoder.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        dim: width of the decoder; null takes the encoder's, with no linear map in between (Point-MAE).
        depth: number of blocks.
        heads: attention heads.
        position: position embedding, called as (spec, dim); class tokens get zeros.
        position_every: whether positions are added before every block (Point-MAE) and not only once.
        mlp_ratio: hidden width of the MLPs over the width.
        qkv_bias: whether queries, keys and values have biases.
        norm_eps: epsilon of the layer norms.
        drop_path: stochastic depth at the last block, rising linearly from 0.
        prefix: what becomes of the encoder's class token: `seen` (embedded, MAE), `own` (a learned token of this
            decoder takes its place, MAE-ST) or `none` (left out, VideoMAE).
        activation: applied to the answers, for instance `activation/unit_tanh`.
        head_std: standard deviation of the last linear map's initial normal; null for Xavier-uniform. Where targets are
            far smaller than 1, a head that begins small leaves the encoder in peace.
        keeps: whether `kept` holds what the last norm reads of the tokens asked for, for a further term such as
            `term/coincide`, which takes it away.

    Raises:
        ValueError: when heads do not divide the width, or for an unknown `prefix`.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        dim: int | None = 512,
        depth: int = 8,
        heads: int = 16,
        position: Position = SinCos,
        position_every: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        prefix: str = "seen",
        activation: Callable[[Tensor], Tensor] | None = None,
        head_std: float | None = None,
        keeps: bool = False,
    ) -> None:
        super().__init__()
        self.keeps, self.kept = keeps, None
        self.embed = nn.Identity() if dim is None else nn.Linear(width, dim)
        dim = width if dim is None else dim
        if dim % heads:
            raise ValueError(f"predictor.heads={heads} does not divide predictor.dim={dim}; choose a divisor of {dim}")
        if prefix not in ("seen", "own", "none"):
            raise ValueError(f"predictor.prefix has to be 'seen', 'own' or 'none' (got {prefix!r})")
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.activation, self.position_every, self.keep_prefix = activation, position_every, prefix == "seen"
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.position = position(spec, dim)
        self.blocks = nn.ModuleList(
            AskedBlock(
                dim,
                heads,
                mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path=drop_path * i / max(depth - 1, 1),
                mlp_layer=LeanMlp,
                norm_layer=norm,  # pyright: ignore[reportArgumentType]  # timm declares a class but calls it: any maker does
            )
            for i in range(depth)
        )
        self.norm = norm(dim)
        self.head = nn.Linear(dim, out)
        for part in (self.embed, self.blocks, self.norm, self.head):  # positions are drawn by their own
            xavier_(part)
        if head_std is not None:
            nn.init.normal_(self.head.weight, std=head_std)
        nn.init.normal_(self.mask_token, std=0.02)
        self.own = nn.Parameter(torch.randn(1, 1, dim) * 0.02) if prefix == "own" else None

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        x = self._decode(seen, query, query.index.shape[1])
        self.kept = x if self.keeps else None
        return self._answer(x)

    def with_class(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, 1 + t, out), the class token's in front (dBOT)."""
        assert self.keep_prefix, "predictor.prefix has to be seen where the class token is asked"
        return self._answer(self._decode(seen, query, 1 + query.index.shape[1], turned=True))

    def both(self, seen: Tokens, hidden: Tokens, visible: Tokens) -> tuple[Tensor, Tensor]:
        """Answers at hidden places, and at the seen tokens themselves, in one pass; `visible` are the seen tokens."""
        assert seen.index.shape == visible.index.shape, "visible and seen tokens are the same, in the same order"
        sizes = (visible.index.shape[1], hidden.index.shape[1])
        here, there = self._answer(self._decode(seen, hidden, sum(sizes))).split(sizes, 1)
        return there, here

    def _decode(self, seen: Tokens, query: Tokens, last: int, turned: bool = False) -> Tensor:
        """The last tokens of the sequence [prefix, seen, asked], or [seen, class, asked], behind the last block."""
        assert seen.x is not None
        given = [seen.prefix, seen.x] if self.keep_prefix and seen.prefix is not None else [seen.x]
        known = self.embed(torch.cat(given, 1))
        if self.own is not None:
            known = torch.cat([self.own.to(known.dtype).expand(known.shape[0], -1, -1), known], 1)
        asked = self._asking(*query.index.shape).to(known.dtype)
        place = torch.cat([self.position(seen), self.position(query)], 1)
        place = nn.functional.pad(place, (0, 0, known.shape[1] - seen.index.shape[1], 0)).to(known.dtype)
        x = torch.cat([known, asked], 1)
        x = x if self.position_every else x + place
        inputs = self._attention_mask(seen, query, known.shape[1])
        if turned:
            x, place = (class_behind(value, known.shape[1]) for value in (x, place))
            inputs = {name: class_behind(mask.mT, known.shape[1]).mT for name, mask in inputs.items()}
        for block in self.blocks:
            some = last if block is self.blocks[-1] else None
            x = block(x + place if self.position_every else x, asked=some, **inputs)
        return x if self.blocks else x[:, x.shape[1] - last :]

    def _asking(self, rows: int, places: int) -> Tensor:
        """What stands at the places asked for, (rows, places, dim)."""
        return self.mask_token.expand(rows, places, -1)

    def _answer(self, x: Tensor) -> Tensor:
        answer = self.head(self.norm(x))
        return answer if self.activation is None else self.activation(answer)

    def _attention_mask(self, seen: Tokens, query: Tokens, known: int) -> dict[str, Tensor]:
        """Keeps attention off padding; empty where nothing is padded."""
        if seen.valid is None and query.valid is None:
            return {}
        left = torch.ones(query.index.shape[0], known, dtype=torch.bool, device=query.index.device)
        if seen.valid is not None:
            left[:, known - seen.valid.shape[1] :] = seen.valid
        right = torch.ones_like(query.index, dtype=torch.bool) if query.valid is None else query.valid
        return {"attn_mask": torch.cat([left, right], 1)[:, None, None, :]}


def class_behind(x: Tensor, known: int) -> Tensor:
    """The first token of a sequence (..., n, d) behind the `known` tokens it stands in front of."""
    return torch.cat([x[..., 1:known, :], x[..., :1, :], x[..., known:, :]], -2)


class CrossBlock(nn.Module):
    """Pre-norm block of cross-attention and MLP: queries read a memory, and do not see one another."""

    def __init__(self, dim: int, memory: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(dim), _norm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, kdim=memory, vdim=memory, batch_first=True)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def reset(self, memory: int, dim: int) -> None:
        """Xavier-uniform as for one matrix that gives keys and values together, which is how CrossMAE draws them."""
        bound = math.sqrt(6.0 / (memory + 2 * dim))
        # torch joins the three matrices where both widths are equal
        joined = self.attn.in_proj_weight
        parts = (self.attn.q_proj_weight, self.attn.k_proj_weight, self.attn.v_proj_weight)
        query, key, value = parts if joined is None else joined.data.chunk(3)
        nn.init.xavier_uniform_(query)
        nn.init.uniform_(key, -bound, bound)
        nn.init.uniform_(value, -bound, bound)
        nn.init.zeros_(self.attn.in_proj_bias)

    def forward(self, x: Tensor, memory: Tensor, padding: Tensor | None) -> Tensor:
        """x (r, t, dim) reads memory (r, s, memory); `padding` (r, s) is True where nothing may be read."""
        read, _ = self.attn(self.norm1(x), memory, memory, key_padding_mask=padding, need_weights=False)
        x = x + read
        return x + self.mlp(self.norm2(x))


@register("predictor/cross")
class Cross(nn.Module):
    """Mask tokens read the encoder's layers by cross-attention alone (CrossMAE, Fu et al. 2024).

    Block j reads its own weighted sum of the encoder's layers, from the embedded input to the last block, without the
    encoder's final norm. An answer does not depend on which other tokens are asked for.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; the embedded input and all blocks are read.
        dim: width of the decoder.
        depth: number of blocks.
        heads: attention heads.
        position: position embedding of the queries, called as (spec, dim).
        mlp_ratio: hidden width of the MLPs over the width.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        dim: int = 512,
        depth: int = 12,
        heads: int = 16,
        position: Position = SinCos,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        # the stream between blocks, and not what is inside of them
        taps = tuple(name for name in taps if name == "embed" or name.startswith("block."))
        self.taps = taps
        self.mix = nn.Linear(len(taps), depth, bias=False)
        self.memory_norms = nn.ModuleList(_norm(width) for _ in range(depth))
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.position = position(spec, dim)
        blocks = [CrossBlock(dim, width, heads, mlp_ratio) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = _norm(dim)
        self.head = nn.Linear(dim, out)
        xavier_(self)
        for block in blocks:
            block.reset(width, dim)
        nn.init.normal_(self.mix.weight, std=len(taps) ** -0.5)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        layers = torch.stack([seen.taps[name] for name in self.taps], -1)
        memories = self.mix(layers).unbind(-1)
        padding = None
        if seen.valid is not None:
            prefix = layers.shape[1] - seen.valid.shape[1]
            padding = torch.nn.functional.pad(~seen.valid, (prefix, 0), value=False)
        x = self.mask_token + self.position(query)
        for block, norm, memory in zip(self.blocks, self.memory_norms, memories, strict=True):
            x = block(x, norm(memory), padding)
        return self.head(self.norm(x))
