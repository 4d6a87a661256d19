"""A transformer that normalises behind its residual sums, as the first ones did."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mmssl.nn.init import trunc_normal_
from mmssl.nn.positions import SinCos
from mmssl.parts.encoders.vit import tap_names
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("encoder/postnorm")
class PostNorm(nn.Module):
    """Post-norm transformer over whole sequences (Vaswani et al. 2017; BERT, Mockingjay, TERA, HuBERT's kind).

    Embeddings and positions are added, normalised and dropped out; torch's own layers follow. There is no final norm.

    Args:
        spec: sizes of the tokens.
        dim: width.
        depth: number of layers.
        heads: attention heads; they have to divide the width.
        position: position embedding, called as (spec, dim).
        mlp_ratio: hidden width of the MLPs over the width.
        dropout: of the input, of attention and of every branch; 0.1 as in BERT.
        norm_eps: added to variances.

    Raises:
        ValueError: when heads do not divide the width.
    """

    accepts = "full"

    def __init__(
        self,
        spec: TokenSpec,
        *,
        dim: int,
        depth: int,
        heads: int,
        position: Callable[[TokenSpec, int], nn.Module] = SinCos,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"encoder.heads={heads} does not divide encoder.dim={dim}; choose a divisor of {dim}")
        self.dim, self.depth = dim, depth
        self.tap_names = tap_names(depth)
        self.position = position(spec, dim)
        self.norm, self.dropout = nn.LayerNorm(dim, norm_eps), nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, heads, int(dim * mlp_ratio), dropout, "gelu", layer_norm_eps=norm_eps, batch_first=True
            )
            for _ in range(depth)
        )
        trunc_normal_(self.blocks)
        for part in self.blocks.modules():
            if isinstance(part, nn.MultiheadAttention):  # its three matrices are one parameter, not a Linear
                nn.init.trunc_normal_(part.in_proj_weight, std=0.02)

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes tokens; attention does not read padding.

        Args:
            tokens: embedded tokens, `x` (b, n, dim).
            taps: layers to keep, of `tap_names`.

        Returns:
            Tokens with `x` and `taps` filled.
        """
        assert tokens.x is not None
        x = self.dropout(self.norm(tokens.x + self.position(tokens)))
        padding = None if tokens.valid is None else ~tokens.valid
        kept: dict[str, torch.Tensor] = {"embed": x} if "embed" in taps else {}
        for i, block in enumerate(self.blocks):
            x = block(x, src_key_padding_mask=padding)
            if f"block.{i}" in taps:
                kept[f"block.{i}"] = x
        return tokens.but(x=x, taps=kept)
