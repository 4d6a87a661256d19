"""A transformer that knows places in the plane by rotations, with registers around what it sees."""

from __future__ import annotations

import torch
from torch import nn

from mmssl.nn.init import xavier_
from mmssl.nn.rope import RopeBlock, with_registers
from mmssl.parts.encoders.vit import key_mask, tap_names
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("encoder/rope")
class RopeEncoder(nn.Module):
    """Pre-norm transformer with rotary places, RMS norms and no biases, on any subset of tokens (CAPI, 2025).

    Places run from 0 to 1 over the grid, of any size. Registers go in front; they lie on the edge of the rectangle that
    the tokens span. The last norm has no weights.

    Args:
        spec: sizes of the tokens, on a grid of two axes.
        dim: width.
        depth: number of blocks.
        heads: attention heads; the width of each is a multiple of 4.
        registers: number of register tokens, a multiple of 4.
        mlp_ratio: hidden width of the MLPs over the width.
        drop_path: stochastic depth, of all blocks alike.
        norm_eps: epsilon of the norms.
        pairs: which channels of a head are turned together: `axis`, two of one axis, a rotation; or `across`, as in the
            released code and files of CAPI, one of the row and one of the column.

    Raises:
        ValueError: when heads do not divide the width into multiples of 4, for another number of registers or
            another word; when called, for tokens on no such grid.
    """

    accepts = "sequence"

    def __init__(
        self,
        spec: TokenSpec,
        *,
        dim: int,
        depth: int,
        heads: int,
        registers: int = 16,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        pairs: str = "axis",
    ) -> None:
        super().__init__()
        if dim % (4 * heads) or registers % 4:
            raise ValueError(
                f"encoder.heads={heads} has to divide encoder.dim={dim} into multiples of 4, and encoder.registers to "
                f"be one (got {registers})"
            )
        self.dim, self.depth, self.tap_names = dim, depth, tap_names(depth)
        self.registers = nn.Parameter(torch.randn(1, registers, dim) * 0.02)
        self.blocks = nn.ModuleList(
            RopeBlock(dim, heads, None, mlp_ratio, drop_path, norm_eps, pairs) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim, norm_eps, elementwise_affine=False)
        xavier_(self.blocks)

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes tokens.

        Args:
            tokens: embedded tokens, `x` (b, n, dim), at places `pos` of a grid.
            taps: layers to keep, of `tap_names`.

        Returns:
            Tokens with `x`, `prefix` (the registers) and `taps` filled.
        """
        assert tokens.x is not None
        count = self.registers.shape[1]
        places, mask = with_registers(tokens, count), key_mask(tokens, count)
        x = torch.cat([self.registers.to(tokens.x.dtype).expand(len(tokens.x), -1, -1), tokens.x], 1)
        kept = {"embed": x} if "embed" in taps else {}
        for i, block in enumerate(self.blocks):
            x = block(x, places, mask=mask)
            if f"block.{i}" in taps:
                kept[f"block.{i}"] = x
        x = self.norm(x)
        return tokens.but(x=x[:, count:], prefix=x[:, :count] if count else None, taps=kept)
