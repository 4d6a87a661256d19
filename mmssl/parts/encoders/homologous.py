"""A transformer over mixtures of samples, in which every token reads a few others only."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mmssl.parts.encoders.vit import ViT, walk
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


def strongest(logits: Tensor, keep: int) -> Tensor:
    """Softmax over the `keep` largest logits of each row, 0 elsewhere."""
    value, index = logits.topk(keep, dim=-1)
    return torch.zeros_like(logits).scatter(-1, index, torch.softmax(value, -1).to(logits.dtype))


class StrongestBlock(Block):
    """timm's block, which can read the keys alone that fit each query best."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, keep: int | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # no encoder of ours is causal
        """x (b, n, d) to (b, n, d); with `keep`, every query reads that many keys."""
        if keep is None:
            return super().forward(x, attn_mask=attn_mask)
        attn: Any = self.attn
        qkv = attn.qkv(self.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        read = strongest(query @ key.mT * attn.scale, keep) @ value
        x = x + self.drop_path1(self.ls1(attn.proj(read.transpose(1, 2).flatten(2))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


@register("encoder/homologous")
class HomologousViT(ViT):
    """A ViT for mixtures of samples (MixedAE, Chen et al. 2023); of whole samples it is a plain one.

    Tokens of a mixture get a learned vector of their sample's place in the group, and attention keeps the share
    1 / groups of the logits that are largest, which should be those of the same sample.

    Args:
        spec: sizes of the tokens.
        dim: width.
        depth: number of blocks.
        heads: attention heads; they have to divide the width.
        groups: samples of a mixture.
        mlp_ratio: hidden width of the MLPs over the width.
        class_token: whether a class token goes in front, one for each mixture.
        drop_path: stochastic depth at the last block, rising linearly from 0.

    Raises:
        ValueError: when heads do not divide the width; when called, for mixtures of more samples.
    """

    def __init__(
        self,
        spec: TokenSpec,
        *,
        dim: int,
        depth: int,
        heads: int,
        groups: int = 4,
        mlp_ratio: float = 4.0,
        class_token: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(
            spec, dim=dim, depth=depth, heads=heads, mlp_ratio=mlp_ratio, class_token=class_token, drop_path=drop_path
        )
        self.groups = groups
        self.segment = nn.Parameter(torch.randn(groups, dim) * 0.02)
        for block in self.blocks:
            block.__class__ = StrongestBlock

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes whole samples or parts of them, or mixtures, which have a `stream`."""
        if tokens.stream is None:
            return super().forward(tokens, taps)
        assert tokens.x is not None
        x = tokens.x + self.position(tokens) + self.segment[tokens.stream]
        keep, count = x.shape[1] // self.groups, 0
        if self.prefix is not None:
            count = self.prefix.shape[1]
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
        x, kept = walk(self.blocks, x, taps, keep=keep)
        x = self.norm(x)
        return tokens.but(x=x[:, count:], prefix=x[:, :count] if count else None, taps=kept)
