"""A vision transformer that is told how noisy its input is."""

from __future__ import annotations

import torch
from torch import nn

from mmssl.nn.adaln import AdaBlock, AdaNorm, Condition
from mmssl.nn.init import xavier_
from mmssl.nn.positions import Learned
from mmssl.parts.encoders.vit import key_mask, tap_names, walk
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("encoder/adaln")
class AdaViT(nn.Module):
    """A ViT under a condition, `Tokens.condition`, through AdaLN-zero (UMD; Peebles and Xie 2023).

    Its prefix token is the mean of several class tokens. Without a condition it is that of clean samples, 0.

    Args:
        spec: sizes of the tokens, on a grid.
        dim: width.
        depth: number of blocks.
        heads: attention heads; they have to divide the width.
        class_tokens: class tokens, which begin at zero.
        mlp_ratio: hidden width of the MLPs over the width.
        position_std: standard deviation of the learned positions.

    Raises:
        ValueError: when heads do not divide the width, or for no class token.
    """

    accepts = "sequence"

    def __init__(
        self,
        spec: TokenSpec,
        *,
        dim: int,
        depth: int,
        heads: int,
        class_tokens: int = 4,
        mlp_ratio: float = 4.0,
        position_std: float = 0.0625,
    ) -> None:
        super().__init__()
        if dim % heads or class_tokens < 1:
            raise ValueError(
                f"encoder.heads={heads} has to divide encoder.dim={dim}, and encoder.class_tokens has to be at least 1 "
                f"(got {class_tokens})"
            )
        self.dim, self.depth, self.tap_names = dim, depth, tap_names(depth)
        self.position = Learned(spec, dim)
        self.prefix = nn.Parameter(torch.zeros(1, class_tokens, dim))
        self.condition = Condition(dim)
        self.blocks = nn.ModuleList(AdaBlock(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = AdaNorm(dim)
        settle(self)
        nn.init.normal_(self.position.table, std=position_std)

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes any subset of the tokens, `x` (b, n, dim)."""
        assert tokens.x is not None
        rows, count = tokens.x.shape[0], self.prefix.shape[1]
        told = self.condition(tokens.condition, rows)
        x = torch.cat([self.prefix.expand(rows, -1, -1).to(tokens.x.dtype), tokens.x + self.position(tokens)], 1)
        x, kept = walk(self.blocks, x, taps, condition=told, attn_mask=key_mask(tokens, count))
        x = self.norm(x, told)
        return tokens.but(x=x[:, count:], prefix=x[:, :count].mean(1, keepdim=True), taps=kept)


def settle(module: nn.Module) -> None:
    """Xavier-uniform for all linear maps but those that begin at zero."""
    begun = [part for part in module.modules() if isinstance(part, nn.Linear) and not part.weight.any()]
    xavier_(module)
    for part in begun:
        nn.init.zeros_(part.weight)
