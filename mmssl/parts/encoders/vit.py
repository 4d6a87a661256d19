"""A plain vision transformer over any tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mmssl.nn.init import scale_by_depth_, trunc_normal_, xavier_
from mmssl.nn.mlp import LeanMlp
from mmssl.nn.positions import SinCos
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


def key_mask(tokens: Tokens, prefix: int) -> Tensor | None:
    """Which keys attention may read, (b, 1, 1, q + n) bool, or None where nothing is padded."""
    if tokens.valid is None:
        return None
    ones = tokens.valid.new_ones(tokens.valid.shape[0], prefix)
    return torch.cat([ones, tokens.valid], 1)[:, None, None, :]


def walk(
    blocks: nn.ModuleList,
    x: Tensor,
    taps: tuple[str, ...],
    add: Tensor | None = None,
    first: int = 0,
    **inputs: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs blocks in turn, `add` added before each, and keeps layers: `embed`, `block.0`, `ffn.0`, `qkv.0`, ...

    `first` is the number of the first of these blocks.
    """
    inputs = {name: value for name, value in inputs.items() if value is not None}
    kept = {"embed": x} if "embed" in taps and not first else {}
    for i, block in enumerate(blocks, first):
        x = x if add is None else x + add
        with overheard(block, "mlp", kept, f"ffn.{i}", taps), overheard(block, "attn.qkv", kept, f"qkv.{i}", taps):
            x = block(x, **inputs)
        if f"block.{i}" in taps:
            kept[f"block.{i}"] = x
    return x, kept


@contextmanager
def overheard(block: nn.Module, part: str, kept: dict[str, Any], name: str, wanted: Iterable[str]) -> Iterator[None]:
    """Keeps what a part within a block gives while the block runs: blocks are called through `forward` alone."""
    if name not in wanted:
        yield
        return
    hook = block.get_submodule(part).register_forward_hook(lambda _, __, out: kept.__setitem__(name, out))
    try:
        yield
    finally:
        hook.remove()


def tap_names(depth: int) -> tuple[str, ...]:
    """Names of the layers of an encoder of this depth, from the embedded input to the last block."""
    return ("embed", *(f"block.{i}" for i in range(depth)))


def ffn_names(depth: int) -> tuple[str, ...]:
    """Names of what the MLPs give, before the residual sum (data2vec's targets)."""
    return tuple(f"ffn.{i}" for i in range(depth))


def qkv_names(depth: int) -> tuple[str, ...]:
    """Names of what each block's attention reads: queries, keys and values side by side, heads within each."""
    return tuple(f"qkv.{i}" for i in range(depth))


@register("encoder/vit")
class ViT(nn.Module):
    """Pre-norm vision transformer of timm's blocks (Dosovitskiy et al. 2020; MAE's encoder), on any subset of tokens.

    Args:
        spec: sizes of the tokens.
        dim: width.
        depth: number of blocks.
        heads: attention heads; they have to divide the width.
        position: position embedding, called as (spec, dim).
        position_every: whether positions are added before every block (Point-MAE) and not only once.
        mlp_ratio: hidden width of the MLPs over the width.
        qkv_bias: whether queries, keys and values have biases.
        norm_eps: epsilon of the layer norms.
        class_token: whether a class token goes in front; it gets no position.
        registers: number of register tokens behind the class token (Darcet et al. 2023).
        drop_path: stochastic depth at the last block, rising linearly from 0.
        layer_scale: initial value of layer-scale, None for none.
        final_norm: whether a LayerNorm ends the encoder (CrossMAE reads the layers before it).
        tap_norm: whether what blocks give goes through that norm, too, where it is kept as a layer (HiCMAE).
        init: `xavier` (MAE), `trunc_normal` (ViT) or `beit` (that, with output matrices divided by sqrt(2 l), as in
            BEiT and I-JEPA).

    Raises:
        ValueError: when heads do not divide the width, or for an unknown `init`.
    """

    accepts = "sequence"

    def __init__(
        self,
        spec: TokenSpec,
        *,
        dim: int,
        depth: int,
        heads: int,
        position: Callable[[TokenSpec, int], nn.Module] = SinCos,
        position_every: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        class_token: bool = True,
        registers: int = 0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        final_norm: bool = True,
        tap_norm: bool = False,
        init: str = "xavier",
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"encoder.heads={heads} does not divide encoder.dim={dim}; choose a divisor of {dim}")
        if init not in ("xavier", "trunc_normal", "beit"):
            raise ValueError(f"encoder.init has to be 'xavier', 'trunc_normal' or 'beit' (got {init!r})")
        self.dim, self.depth, self.position_every, self.tap_norm = dim, depth, position_every, tap_norm
        self.tap_names = tap_names(depth) + ffn_names(depth) + qkv_names(depth)
        self.position = position(spec, dim)
        count = int(class_token) + registers
        self.prefix = nn.Parameter(torch.empty(1, count, dim)) if count else None
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.blocks = nn.ModuleList(
            Block(
                dim, heads, mlp_ratio, qkv_bias=qkv_bias, init_values=layer_scale,
                drop_path=drop_path * i / max(depth - 1, 1), mlp_layer=LeanMlp,
                norm_layer=norm,  # pyright: ignore[reportArgumentType]  # timm declares a class but calls it: any maker does
            )
            for i in range(depth)
        )  # fmt: skip
        self.norm = norm(dim) if final_norm else nn.Identity()
        if init == "xavier":
            xavier_(self.blocks)
        else:
            trunc_normal_(self.blocks)
        if init == "beit":
            scale_by_depth_(self.blocks)
        if self.prefix is not None:
            nn.init.normal_(self.prefix, std=0.02)

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes tokens.

        Args:
            tokens: embedded tokens, `x` (b, n, dim).
            taps: layers to keep, of `tap_names`.

        Returns:
            Tokens with `x`, `prefix` and `taps` filled.
        """
        x, count, position = self._placed(tokens)
        add = nn.functional.pad(position, (0, 0, count, 0)) if self.position_every else None
        x, kept = walk(self.blocks, x, taps, add, attn_mask=key_mask(tokens, count))
        if self.tap_norm:
            kept = {name: self.norm(tap) if name.startswith("block.") else tap for name, tap in kept.items()}
        x = self.norm(x)
        return tokens.but(x=x[:, count:], prefix=x[:, :count] if count else None, taps=kept)

    def _placed(self, tokens: Tokens) -> tuple[Tensor, int, Tensor]:
        """Tokens behind the prefix, with positions where they are added once; the length of the prefix; positions."""
        assert tokens.x is not None
        x, position = tokens.x, self.position(tokens)
        if not self.position_every:
            x = x + position
        if self.prefix is None:
            return x, 0, position
        return torch.cat([self.prefix.expand(x.shape[0], -1, -1).to(x.dtype), x], 1), self.prefix.shape[1], position
