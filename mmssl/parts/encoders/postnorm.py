"""A transformer that normalises behind its residual sums, as the first ones did."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mmssl.nn.init import trunc_normal_
from mmssl.nn.positions import SinCos
from mmssl.parts.encoders.vit import ffn_names, overheard, tap_names
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("encoder/postnorm")
class PostNorm(nn.Module):
    """Post-norm transformer on any subset of tokens (Vaswani et al. 2017; BERT, TERA, HuBERT's kind, data2vec 2.0).

    Embeddings and positions are added, normalised and dropped out; torch's own layers follow. There is no final norm.
    Layers that can be asked for: `embed`, `block.0`, ..., and `ffn.0`, ..., what the MLP of a layer adds (data2vec).

    Args:
        spec: sizes of the tokens.
        dim: width.
        depth: number of layers.
        heads: attention heads; they have to divide the width.
        position: position embedding, called as (spec, dim).
        mlp_ratio: hidden width of the MLPs over the width.
        dropout: of the input, of attention and of every branch; 0.1 as in BERT.
        norm_eps: added to variances.
        class_token: whether a class token goes in front; it gets no position.

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
        position: Callable[[TokenSpec, int], nn.Module] = SinCos,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        norm_eps: float = 1e-12,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"encoder.heads={heads} does not divide encoder.dim={dim}; choose a divisor of {dim}")
        self.dim, self.depth = dim, depth
        self.tap_names = tap_names(depth) + ffn_names(depth)
        self.position = position(spec, dim)
        self.prefix = nn.Parameter(torch.randn(1, 1, dim)) if class_token else None
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
            Tokens with `x`, `prefix` and `taps` filled.
        """
        assert tokens.x is not None
        x, count = tokens.x + self.position(tokens), 0
        padding = None if tokens.valid is None else ~tokens.valid
        if self.prefix is not None:
            count = 1
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
            padding = None if padding is None else nn.functional.pad(padding, (1, 0), value=False)
        x = self.dropout(self.norm(x))
        kept: dict[str, torch.Tensor] = {"embed": x} if "embed" in taps else {}
        for i, block in enumerate(self.blocks):
            # the MLP ends in its dropout
            with overheard(block, "dropout2", kept, f"ffn.{i}", taps):
                x = block(x, src_key_padding_mask=padding)
            if f"block.{i}" in taps:
                kept[f"block.{i}"] = x
        return tokens.but(x=x[:, count:], prefix=x[:, :count] if count else None, taps=kept)
