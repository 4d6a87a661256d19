"""A decoder that is told how noisy its input was."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.nn.adaln import AdaBlock, AdaNorm, Condition
from mmssl.nn.positions import Learned
from mmssl.parts.encoders.adaln import settle
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("predictor/adaln")
class AdaTransformer(nn.Module):
    """Self-attention under a condition over the prefix, seen tokens and mask tokens (UMD's decoder).

    Args:
        spec: sizes of the tokens, on a grid.
        width: the encoder's width, which is the decoder's.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs over the width.
        position_std: standard deviation of the learned positions.

    Raises:
        ValueError: when heads do not divide the width; when called, for padded tokens.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        depth: int = 4,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        position_std: float = 0.0625,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"predictor.heads={heads} does not divide encoder.dim={width}; choose a divisor of {width}"
            )
        self.position = Learned(spec, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.condition = Condition(width)
        self.blocks = nn.ModuleList(AdaBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm, self.head = AdaNorm(width), nn.Linear(width, out)
        settle(self)
        nn.init.normal_(self.position.table, std=position_std)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at places that were not seen."""
        return self.head(self._decode(seen, query)[:, -query.index.shape[1] :])

    def both(self, seen: Tokens, hidden: Tokens, visible: Tokens) -> tuple[Tensor, Tensor]:
        """Answers at hidden places, and at the seen tokens themselves, in one pass; `visible` are the seen tokens."""
        sizes = (visible.index.shape[1], hidden.index.shape[1])
        here, there = self.head(self._decode(seen, hidden)[:, -sum(sizes) :]).split(sizes, 1)
        return there, here

    def _decode(self, seen: Tokens, query: Tokens) -> Tensor:
        """Prefix, seen and asked tokens behind the last norm."""
        if seen.valid is not None or query.valid is not None:
            raise ValueError("predictor/adaln needs masks that leave equally many tokens; use masker/random")
        assert seen.x is not None
        told = self.condition(seen.condition, len(seen.index))
        asked = self.mask_token.to(seen.x.dtype) + self.position(query)
        given = [] if seen.prefix is None else [seen.prefix]
        x = torch.cat([*given, seen.x + self.position(seen), asked], 1)
        for block in self.blocks:
            x = block(x, told)
        return self.norm(x, told)
