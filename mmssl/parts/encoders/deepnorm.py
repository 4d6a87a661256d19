"""A post-norm transformer that stays calm when it is deep, with gated distances: that of WavLM and BEATs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.parts.encoders.vit import tap_names
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


def buckets(apart: Tensor, count: int, longest: int) -> Tensor:
    """The bucket of each signed distance (T5, Raffel et al. 2020), int64: half of them for either sign.

    The first half of these is of one distance each, the rest grows with the logarithm up to the longest distance.

    Args:
        apart: place of the key less that of the query.
        count: number of buckets.
        longest: distance from which on all share the last bucket.
    """
    half = count // 2
    exact = half // 2
    size = apart.abs()
    far = torch.log(size.clamp(min=1).double() / exact) / math.log(longest / exact) * (half - exact)
    bucket = torch.where(size < exact, size, (exact + far.long()).clamp(max=half - 1))
    return bucket + (apart > 0) * half


class Attention(nn.Module):
    """Self-attention whose bias by distance is gated by the queries (WavLM, Chen et al. 2021)."""

    def __init__(self, dim: int, heads: int, dropout: float, gain: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.gate, self.scale = nn.Linear(dim // heads, 8), nn.Parameter(torch.ones(1, heads, 1, 1))
        for part, factor in ((self.q, 1.0), (self.k, 1.0), (self.v, gain), (self.proj, gain)):
            nn.init.xavier_normal_(part.weight, gain=factor)
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        """Attention of x (b, n, dim) with a bias (b or 1, heads, n, n); `padding` (b, n) is True where nothing is."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        first, second = torch.sigmoid(self.gate(q).unflatten(-1, (2, 4)).sum(-1)).unsqueeze(-1).unbind(-2)
        bias = ((first * (second * self.scale - 1.0) + 2.0) * bias).to(q.dtype)
        if padding is not None:
            bias = bias.masked_fill(padding[:, None, None, :], -torch.inf)
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        return self.proj(found.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and MLP, each normalised behind a residual sum that counts the input `alpha` times (DeepNorm)."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.attn = alpha, Attention(dim, heads, dropout, beta)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.Dropout(dropout)
        for part in (self.fc1, self.fc2):
            nn.init.xavier_normal_(part.weight, gain=beta)
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        """One layer of x (b, n, dim)."""
        x = self.norm1(self.alpha * x + self.dropout(self.attn(x, bias, padding)))
        return self.norm2(self.alpha * x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


@register("encoder/deepnorm")
class DeepNorm(nn.Module):
    """Post-norm transformer with DeepNorm and gated relative positions, on any subset of tokens (BEATs, OpenBEATs).

    Residual sums count their input (2 depth)^(1/4) times; values, outputs and MLPs begin smaller by (8 depth)^(-1/4)
    (Wang et al. 2022). One table of distances serves all layers, and each gates it by its queries. Distances are those
    of the places that tokens have in the whole sequence, so that those that are left out leave gaps.

    Args:
        spec: sizes of the tokens.
        dim: width.
        depth: number of layers.
        heads: attention heads; they have to divide the width.
        position: what is added to the embeddings, called as (spec, dim), for instance `position/conv`; null for
            nothing, and no norm in front of the layers either.
        mlp_ratio: hidden width of the MLPs over the width.
        dropout: of the input, of attention and of every branch.
        buckets: of distances, for both signs together.
        longest: distance from which on all share one bucket.

    Raises:
        ValueError: when heads do not divide the width.
    """

    accepts = "sequence"

    def __init__(
        self,
        spec: TokenSpec,
        *,
        dim: int,
        depth: int,
        heads: int,
        position: Callable[[TokenSpec, int], nn.Module] | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        buckets: int = 320,
        longest: int = 1280,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"encoder.heads={heads} does not divide encoder.dim={dim}; choose a divisor of {dim}")
        self.dim, self.depth, self.tap_names = dim, depth, tap_names(depth)
        self.longest, self.dropout = longest, nn.Dropout(dropout)
        self.position = None if position is None else position(spec, dim)
        self.norm = None if position is None else nn.LayerNorm(dim)
        self.bias = nn.Embedding(buckets, heads)
        alpha, beta = (2.0 * depth) ** 0.25, (8.0 * depth) ** -0.25
        self.blocks = nn.ModuleList(Layer(dim, heads, int(dim * mlp_ratio), dropout, alpha, beta) for _ in range(depth))
        nn.init.normal_(self.bias.weight, std=0.02)

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes tokens; attention does not read padding.

        Args:
            tokens: embedded tokens, `x` (b, n, dim).
            taps: layers to keep, of `tap_names`.

        Returns:
            Tokens with `x` and `taps` filled.
        """
        x, place = tokens.x, tokens.index
        assert x is not None
        if self.position is not None and self.norm is not None:
            x = self.norm(x + self.position(tokens))
        x = self.dropout(x)
        if place.stride(0) == 0:  # all samples have their tokens at the same places
            place = place[:1]
        apart = place.unsqueeze(1) - place.unsqueeze(2)
        bias = self.bias(buckets(apart, self.bias.num_embeddings, self.longest)).permute(0, 3, 1, 2)
        padding = None if tokens.valid is None else ~tokens.valid
        kept = {"embed": x} if "embed" in taps else {}
        for i, block in enumerate(self.blocks):
            x = block(x, bias, padding)
            if f"block.{i}" in taps:
                kept[f"block.{i}"] = x
        return tokens.but(x=x, prefix=None, taps=kept)
