"""Encoders of rows: a perceptron over all columns, and T-JEPA's transformer over any of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.nn.init import trunc_normal_
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("encoder/mlp")
class MLP(nn.Module):
    """A perceptron that reads all columns at once and answers with one token per row (SCARF, VIME).

    Embeddings of the columns are summed, which is the first layer: with `tokenizer.embedding=per_column` that is the
    linear map of numbers and one-hot categories side by side. Every further layer is a ReLU and a linear map. What is
    missing, or hidden by a corruptor, adds nothing.

    Args:
        spec: sizes of the tokens.
        dim: width of every layer.
        depth: number of linear maps, the embedding among them.
        last_relu: whether the last of them ends in a ReLU too (VIME) and not bare.

    Raises:
        ValueError: for a depth below 1.
    """

    accepts = "sequence"

    def __init__(self, spec: TokenSpec, *, dim: int = 256, depth: int = 4, last_relu: bool = False) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"encoder.depth is the number of linear maps, from 1 on (got {depth})")
        self.dim, self.tap_names, self.last_relu = dim, tuple(f"block.{i}" for i in range(depth)), last_relu
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth - 1))

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """One token per row, `x` (b, 1, dim), and the layers asked for, likewise."""
        assert tokens.x is not None
        x = tokens.x if tokens.valid is None else tokens.x.masked_fill(~tokens.valid.unsqueeze(-1), 0.0)
        x = x.sum(1, keepdim=True)
        kept = {"block.0": x}
        for i, layer in enumerate(self.layers):
            x = layer(torch.relu(x))
            kept[f"block.{i + 1}"] = x
        x = x.relu() if self.last_relu else x
        first = tokens.index[:, :1]
        return tokens.but(
            x=x, raw=tokens.raw[:, :1], pos=tokens.pos[:, :1], index=torch.zeros_like(first), valid=None, given=None,
            stream=None, grid=None, count=1, taps={name: tap for name, tap in kept.items() if name in taps},
        )  # fmt: skip


def interleaved(place: Tensor, dim: int, base: float) -> Tensor:
    """Sines and cosines in turn of whole numbers (Vaswani et al. 2017), (..., dim) float32.

    Args:
        place: (...) int64.
        dim: width; with an odd one the last cosine is left out.
        base: longest wavelength over 2 pi.
    """
    wave = base ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=place.device) / dim)
    angle = place.double().unsqueeze(-1) * wave
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[..., :dim].float()


class Stack(nn.Module):
    """Post-norm transformer layers with ReLU, then dropout, norm, linear map, dropout, norm: T-JEPA's encoder.

    Args:
        dim: width.
        depth: number of layers.
        heads: attention heads.
        hidden: hidden width of the MLPs.
        dropout: of attention, of every branch and behind the layers.
    """

    def __init__(self, dim: int, depth: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, hidden, dropout, "relu", batch_first=True) for _ in range(depth)
        )
        self.dropout = nn.Dropout(dropout)
        self.norm1, self.proj, self.norm2 = nn.LayerNorm(dim), nn.Linear(dim, dim), nn.LayerNorm(dim)
        trunc_normal_(self)

    def forward(
        self, x: Tensor, padding: Tensor | None, taps: tuple[str, ...] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Encodes x (b, n, dim); `padding` (b, n) is True where nothing may be read."""
        kept: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            x = block(x, src_key_padding_mask=padding)
            if f"block.{i}" in taps:
                kept[f"block.{i}"] = x
        return self.norm2(self.dropout(self.proj(self.norm1(self.dropout(x))))), kept


def check_heads(key: str, dim: int, heads: int) -> None:
    """Refuses heads that do not divide the width.

    Raises:
        ValueError: naming the key.
    """
    if heads < 1 or dim % heads:
        raise ValueError(f"{key}.heads={heads} does not divide {key}.dim={dim}; choose a divisor of {dim}")


@register("encoder/columns")
class Columns(nn.Module):
    """T-JEPA's encoder (Thimonier et al. 2024): a post-norm transformer over any columns, with register tokens.

    Registers are learned tokens that stand in front of the columns and are never hidden: without them a constant is a
    solution that nothing in the loss forbids. Positions are fixed, interleaved sines and cosines; register i has place
    i, column j the place registers + j.

    Args:
        spec: sizes of the tokens.
        dim: width.
        depth: number of layers.
        heads: attention heads; they have to divide the width.
        mlp_ratio: hidden width of the MLPs over the width.
        dropout: of attention, of every branch and behind the layers.
        registers: number of register tokens; 1 in the paper.
        base: longest wavelength of the positions over 2 pi.

    Raises:
        ValueError: when heads do not divide the width, or for a negative number of registers.
    """

    accepts = "sequence"

    def __init__(
        self,
        spec: TokenSpec,
        *,
        dim: int = 64,
        depth: int = 16,
        heads: int = 2,
        mlp_ratio: float = 1.0,
        dropout: float = 0.0,
        registers: int = 1,
        base: float = 100.0,
    ) -> None:
        super().__init__()
        check_heads("encoder", dim, heads)
        if registers < 0:
            raise ValueError(f"encoder.registers is a number of tokens, from 0 on (got {registers})")
        self.dim, self.base = dim, base
        self.tap_names = tuple(f"block.{i}" for i in range(depth))
        self.registers = nn.Parameter(torch.empty(registers, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.stack = Stack(dim, depth, heads, int(dim * mlp_ratio), dropout)

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Columns with `x` (b, n, dim), registers as `prefix` (b, q, dim), and the layers asked for with both."""
        assert tokens.x is not None
        q, b = len(self.registers), len(tokens.x)
        front = self.registers + interleaved(torch.arange(q, device=tokens.x.device), self.dim, self.base)
        x = tokens.x + interleaved(tokens.index + q, self.dim, self.base)
        x = torch.cat([front.to(x.dtype).expand(b, -1, -1), x], 1)
        padding = None if tokens.valid is None else torch.nn.functional.pad(~tokens.valid, (q, 0), value=False)
        x, kept = self.stack(x, padding, taps)
        return tokens.but(x=x[:, q:], prefix=x[:, :q], taps=kept)
