"""Predictors that join what an inner layer says of patches with what the last one says of the whole."""

from __future__ import annotations

import math
from functools import partial

import torch
from timm.models.beit import Block, RelativePositionBias
from torch import Tensor, nn

from mmssl.nn.init import trunc_normal_
from mmssl.parts.targets import layer_name
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("predictor/aggregate")
class Aggregate(nn.Module):
    """A few blocks over an inner layer's patches and the last layer's class token (BEiT v2; CCViT's condenser).

    The class token is the only way from the last layers to the answer, so it learns to hold what the sample is.

    Args:
        spec: sizes of the tokens, on a two-dimensional grid.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give.
        layer: the layer of the patches: a name, or the share of blocks below it.
        depth: number of blocks; they have a relative-position bias of their own.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs over the width.
        layer_scale: initial value of layer-scale.
        drop_path: stochastic depth of every block.
        both: whether the same linear map answers from the encoder's output too. Both answers are given in training, and
            that of the output alone in evaluation. A term takes their mean: with weight 2 it is their sum (BEiT v2).

    Raises:
        ValueError: for tokens without such a grid, or a layer that the encoder does not have.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        layer: str | float = 0.75,
        depth: int = 2,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.1,
        drop_path: float = 0.0,
        both: bool = False,
    ) -> None:
        super().__init__()
        if spec.grid is None or len(spec.grid) != 2:
            raise ValueError(f"predictor/aggregate needs tokens on a two-dimensional grid (got grid {spec.grid})")
        blocks = [name for name in taps if name.startswith("block.")]
        patches = layer_name(layer, taps)
        self.taps, self.both, self.decodings = (patches, blocks[-1]), both, 2 if both else 1
        norm = partial(nn.LayerNorm, eps=1e-6)
        made = [
            Block(
                width, heads, mlp_ratio=mlp_ratio, qkv_bias=True, init_values=layer_scale, drop_path=drop_path,
                norm_layer=norm,  # pyright: ignore[reportArgumentType]  # timm declares a class but calls it: any maker does
            )
            for _ in range(depth)
        ]  # fmt: skip
        self.bias, self.blocks = RelativePositionBias(spec.grid, heads), nn.ModuleList(made)
        self.norm, self.head = norm(width), nn.Linear(width, out)
        trunc_normal_(self.blocks, cut=0.02)
        trunc_normal_(self.head, cut=0.02)
        nn.init.zeros_(self.bias.relative_position_bias_table)
        first = blocks.index(patches) + 2 if patches in blocks else 1  # as if they followed that layer
        for place, block in enumerate(made, start=first):
            for last in (block.attn.proj, block.mlp.fc2):
                last.weight.data.div_(math.sqrt(2.0 * place))

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query; (2, r, t, out) in training where there are both."""
        if self.both and not self.training:
            return self.head(seen.at(query))
        patches, last = (seen.taps[name] for name in self.taps)
        x, bias = torch.cat([last[:, :1], patches[:, -seen.index.shape[1] :]], 1), self.bias()
        for block in self.blocks:
            x = block(x, shared_rel_pos_bias=bias)
        gathered = self.norm(seen.but(x=x[:, 1:]).at(query))
        return self.head(torch.stack([seen.at(query), gathered]) if self.both else gathered)
