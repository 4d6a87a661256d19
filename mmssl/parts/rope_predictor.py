"""A predictor that only reads: cross-attention with rotary places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.nn.init import xavier_
from mmssl.nn.rope import RopeBlock, unit_places, with_registers
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


class UnitLinear(nn.Module):
    """A linear map without bias of rows of length 1, whose own rows are of a learned length, at first 1."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(out, width))
        self.length = nn.Parameter(torch.ones(out, 1))
        nn.init.trunc_normal_(self.direction, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Answers (..., out) of features (..., width)."""
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.direction, dim=1) * self.length)


@register("predictor/rope_cross")
class RopeCross(nn.Module):
    """Mask tokens read the seen tokens by cross-attention with rotary places, and not one another (CAPI).

    The seen tokens, registers included, are read as the encoder gives them. An answer does not depend on which other
    tokens are asked for.

    Args:
        spec: sizes of the tokens, on a grid of two axes.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        dim: width of the predictor.
        depth: number of blocks.
        heads: attention heads; the width of each is a multiple of 4.
        mlp_ratio: hidden width of the MLPs over the width.
        drop_path: stochastic depth, of all blocks alike.
        norm_eps: epsilon of the norms.
        pairs: which channels of a head are turned together: `axis`, or `across`, as in the released files of CAPI.
        unit: whether the last map takes features of length 1 and has rows of a learned length, for targets that are
            shares of clusters (CAPI); else it is plain.

    Raises:
        ValueError: when heads do not divide the width into multiples of 4, or for another word.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        dim: int = 1024,
        depth: int = 12,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        pairs: str = "axis",
        unit: bool = False,
    ) -> None:
        super().__init__()
        if dim % (4 * heads):
            raise ValueError(f"predictor.heads={heads} has to divide predictor.dim={dim} into multiples of 4")
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList(
            RopeBlock(dim, heads, width, mlp_ratio, drop_path, norm_eps, pairs) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim, norm_eps, elementwise_affine=False)
        self.head = UnitLinear(dim, out) if unit else nn.Linear(dim, out)
        xavier_(self)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        assert seen.x is not None
        count = 0 if seen.prefix is None else seen.prefix.shape[1]
        memory = seen.x if seen.prefix is None else torch.cat([seen.prefix, seen.x], 1)
        mask = None if seen.valid is None else F.pad(seen.valid, (count, 0), value=True)[:, None, None]
        x = self.mask_token.to(memory.dtype).expand(*query.index.shape, -1)
        places, read = unit_places(query), with_registers(seen, count)
        for block in self.blocks:
            x = block(x, places, memory, read, mask)
        return self.head(self.norm(x))
