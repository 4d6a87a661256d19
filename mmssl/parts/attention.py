"""What transformers look at: attention read out of the layers `qkv.i`, and guides that score tokens by it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmssl.parts.regions import from_end
from mmssl.parts.targets import full
from mmssl.registry import register
from mmssl.step import Look
from mmssl.types import Tokens, TokenSpec


def parts_of(tap: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (b, heads, n, width of a head) out of a layer `qkv.i`, (b, n, 3 d)."""
    query, key, value = full(tap).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def class_attention(features: Tokens, encoder: Any, layer: str) -> Tensor:
    """How much the class token attends to each token in one layer, the mean over heads, (b, n).

    Args:
        features: what the encoder gave, with this layer among its taps; without padding.
        encoder: has `blocks` of timm's kind.
        layer: a layer `qkv.i` by its full name.

    Raises:
        ValueError: where there is no class token.
    """
    if features.prefix is None:
        raise ValueError(f"attention of the class token in {layer}, but this encoder has none; set class_token to true")
    attn = encoder.blocks[int(layer.partition(".")[2])].attn
    query, key, _ = parts_of(features.taps[layer], attn.num_heads)
    query, key = attn.q_norm(query[:, :, :1]), attn.k_norm(key)
    seen = torch.softmax(query @ key.mT * key.shape[-1] ** -0.5, -1).mean(1)[:, 0]
    return seen[:, features.prefix.shape[1] :]


@register("guide/attention")
class Attention:
    """How much the teacher's class token attends to each token of the whole view, the mean over heads (AttMask).

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        layer: of which layer's queries and keys; `qkv.-1` is the last one's.
    """

    asks = ("taught",)

    def __init__(self, spec: TokenSpec, width: int, *, layer: str = "qkv.-1") -> None:
        self.taps = (layer,)

    @torch.no_grad()
    def __call__(self, look: Look) -> Tensor:
        """Scores (b, n), positive; with those of the class tokens they sum to 1."""
        encoder = look.network_of("taught").encoder
        return class_attention(look.taught, encoder, from_end(self.taps[0], encoder.tap_names))
