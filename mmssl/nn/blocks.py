"""Transformer blocks that compute no more than is asked of them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor


class AskedBlock(Block):
    """timm's block, which can answer at the last tokens of a sequence alone: the last block of a decoder.

    All tokens are read, but only those asked for have queries and go through the MLP. Answers and gradients are those
    of the whole block.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # no decoder of ours is causal
        self, x: Tensor, attn_mask: Tensor | None = None, asked: int | None = None
    ) -> Tensor:
        """x (b, n, d) to (b, n, d), or to (b, asked, d): what the block gives at the last `asked` tokens."""
        if asked is None or asked == x.shape[1]:
            return super().forward(x, attn_mask=attn_mask)
        attn: Any = self.attn
        read = self.norm1(x)
        first, width = x.shape[1] - asked, x.shape[2]
        weight, bias = attn.qkv.weight, attn.qkv.bias
        of_query, of_memory = weight.split((width, 2 * width))
        query_bias, memory_bias = (None, None) if bias is None else bias.split((width, 2 * width))
        query = F.linear(read[:, first:], of_query, query_bias).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        memory = F.linear(read, of_memory, memory_bias).unflatten(-1, (2, attn.num_heads, -1))
        key, value = memory.permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        x = x[:, first:] + self.drop_path1(self.ls1(attn.proj(found.transpose(1, 2).flatten(2))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
