"""A transformer that knows places by distance alone: no position embedding, a bias on attention (ALiBi)."""

from __future__ import annotations

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mmssl.nn.mlp import LeanMlp
from mmssl.parts.encoders.vit import tap_names, walk
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


def slopes(heads: int) -> Tensor:
    """How fast attention falls with distance, 2 ** (-8 i / heads) for head i from 1 on, (heads,) float32."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)


class DistanceBias(nn.Module):
    """What is added to attention: minus slope times Euclidean distance between the places of two tokens.

    The linear biases of Press et al. 2022 on any number of axes, as CROMA (Fuller et al. 2023) has them between
    patches. Where the number of heads is no power of 2 the formula stays, which those papers replace.

    Args:
        heads: attention heads.
    """

    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", slopes(heads), persistent=False)

    def forward(self, query: Tokens, keys: Tokens, dtype: torch.dtype) -> Tensor:
        """The bias between tokens, (b, heads, n, m) in a dtype; keys that are padding get minus infinity."""
        apart = query.pos.float().unsqueeze(2) - keys.pos.float().unsqueeze(1)
        distance = apart.square().sum(-1).sqrt().unsqueeze(1)
        bias = (-self.slopes.float().view(-1, 1, 1) * distance).to(dtype)
        return bias if keys.valid is None else bias.masked_fill(~keys.valid[:, None, None, :], -torch.inf)


@register("encoder/alibi")
class Alibi(nn.Module):
    """Pre-norm transformer whose attention falls with the distance between tokens (CROMA, Fuller et al. 2023).

    It has neither position embedding nor class token, and reads larger inputs than it was trained on. Weights keep
    torch's own initialisation, as in the reference code.

    Args:
        spec: sizes of the tokens.
        dim: width.
        depth: number of blocks.
        heads: attention heads; they have to divide the width.
        mlp_ratio: hidden width of the MLPs over the width.
        qkv_bias: whether queries, keys and values have biases.
        norm_eps: epsilon of the layer norms.
        drop_path: stochastic depth at the last block, rising linearly from 0.

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
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        norm_eps: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"encoder.heads={heads} does not divide encoder.dim={dim}; choose a divisor of {dim}")
        self.dim, self.depth, self.tap_names = dim, depth, tap_names(depth)
        self.bias = DistanceBias(heads)
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.blocks = nn.ModuleList(
            Block(
                dim, heads, mlp_ratio, qkv_bias=qkv_bias, drop_path=drop_path * i / max(depth - 1, 1),
                mlp_layer=LeanMlp, norm_layer=norm,  # pyright: ignore[reportArgumentType]  # timm declares a class but calls it: any maker does
            )
            for i in range(depth)
        )  # fmt: skip
        self.norm = norm(dim)

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes tokens.

        Args:
            tokens: embedded tokens, `x` (b, n, dim), at places `pos`.
            taps: layers to keep, of `tap_names`.

        Returns:
            Tokens with `x` and `taps` filled.
        """
        assert tokens.x is not None
        x, kept = walk(self.blocks, tokens.x, taps, attn_mask=self.bias(tokens, tokens, tokens.x.dtype))
        return tokens.but(x=self.norm(x), taps=kept)
