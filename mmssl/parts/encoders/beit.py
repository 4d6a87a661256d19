"""The transformer of BEiT, which SimMIM and its successors train."""

from __future__ import annotations

from functools import partial

import torch
from timm.models.beit import Block, RelativePositionBias
from torch import nn

from mmssl.nn.init import scale_by_depth_, trunc_normal_
from mmssl.parts.encoders.vit import tap_names, walk
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("encoder/beit")
class BEiT(nn.Module):
    """BEiT's ViT as SimMIM uses it: one relative-position bias for all blocks, no absolute positions, layer-scale.

    Queries and values have biases, keys have none. Weights are truncated normal, the output matrices of block l divided
    by sqrt(2 l); the bias table starts at zero. The bias covers the whole grid, so no token may be dropped.

    Args:
        spec: sizes of the tokens, on a two-dimensional grid.
        dim: width.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs over the width.
        layer_scale: initial value of layer-scale: 0.1 for ViT-B, 1e-5 for ViT-L.
        drop_path: stochastic depth at the last block, rising linearly from 0.

    Raises:
        ValueError: when the tokens are not on a two-dimensional grid.
    """

    accepts = "full"

    def __init__(
        self,
        spec: TokenSpec,
        *,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.1,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        if spec.grid is None or len(spec.grid) != 2:
            raise ValueError(f"encoder/beit needs tokens on a two-dimensional grid (got grid {spec.grid})")
        self.dim, self.depth, self.raw = dim, depth, spec.raw
        self.tap_names = tap_names(depth)
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.prefix = nn.Parameter(torch.empty(1, 1, dim))
        self.bias = RelativePositionBias(spec.grid, heads)
        self.blocks = nn.ModuleList(
            Block(
                dim, heads, mlp_ratio=mlp_ratio, qkv_bias=True, init_values=layer_scale,
                drop_path=drop_path * i / max(depth - 1, 1),
                norm_layer=norm,  # pyright: ignore[reportArgumentType]  # timm declares a class but calls it: any maker does
            )
            for i in range(depth)
        )  # fmt: skip
        self.norm = norm(dim)
        trunc_normal_(self.blocks, cut=0.02)
        scale_by_depth_(self.blocks)
        nn.init.zeros_(self.bias.relative_position_bias_table)
        nn.init.trunc_normal_(self.prefix, std=0.02, a=-0.02, b=0.02)

    def stem(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Initial weights of the patch embedding: drawn as those of the blocks, with zero bias."""
        weight = nn.init.trunc_normal_(torch.empty(self.dim, self.raw), std=0.02, a=-0.02, b=0.02)
        return weight, torch.zeros(self.dim)

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes all tokens of a grid, `x` (b, n, dim)."""
        assert tokens.x is not None
        x = torch.cat([self.prefix.expand(tokens.x.shape[0], -1, -1).to(tokens.x.dtype), tokens.x], 1)
        x, kept = walk(self.blocks, x, taps, shared_rel_pos_bias=self.bias())
        x = self.norm(x)
        return tokens.but(x=x[:, 1:], prefix=x[:, :1], taps=kept)
