"""Position embeddings by name; each is called as (spec, dim) by the encoder or predictor that adds it."""

from __future__ import annotations

from mmssl.nn.positions import Learned, SinCos
from mmssl.registry import register
from mmssl.types import TokenSpec


@register("position/sincos")
def sincos(spec: TokenSpec, dim: int) -> SinCos:
    """Fixed sine-cosine positions (MAE and most masked autoencoders); class tokens get zeros."""
    return SinCos(spec, dim)


@register("position/learned")
def learned(spec: TokenSpec, dim: int) -> Learned:
    """Learned positions on a grid (ViT), resized for another grid; class tokens get none of their own."""
    return Learned(spec, dim)
