"""Predictors for several masks of each sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.nn.positions import SinCos
from mmssl.parts.predictors import Position, Transformer
from mmssl.registry import register
from mmssl.types import TokenSpec


@register("predictor/transformer_per_mask")
class PerMask(Transformer):
    """`predictor/transformer` with a mask token of its own for each mask of a sample (V-JEPA's predictor).

    Rows have to come as maskers of several masks give them: those of the first mask of all samples, then those of the
    second, and so on (masker/multiblock_tubes).

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        masks: masks per sample.
        dim: width of the predictor.
        depth: number of blocks.
        heads: attention heads.
        position: position embedding, called as (spec, dim).
        mlp_ratio: hidden width of the MLPs over the width.
        norm_eps: epsilon of the layer norms.
        drop_path: stochastic depth at the last block, rising linearly from 0.

    Raises:
        ValueError: when heads do not divide the width; when called, for a number of rows that `masks` does not divide.
    """

    def __init__(
        self, spec: TokenSpec, width: int, out: int, taps: tuple[str, ...], *, masks: int = 2, dim: int = 384,
        depth: int = 12, heads: int = 16, position: Position = SinCos, mlp_ratio: float = 4.0, norm_eps: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(
            spec, width, out, taps, dim=dim, depth=depth, heads=heads, position=position, mlp_ratio=mlp_ratio,
            norm_eps=norm_eps, drop_path=drop_path, prefix="none",
        )  # fmt: skip
        if masks < 1:
            raise ValueError(f"predictor.masks is the number of masks per sample, at least 1 (got {masks})")
        self.masks = masks
        self.mask_token = nn.Parameter(torch.zeros(masks, 1, dim))

    def _asking(self, rows: int, places: int) -> Tensor:
        """The token of each row's mask, (rows, places, dim)."""
        if rows % self.masks:
            raise ValueError(
                f"predictor.masks={self.masks} does not divide the {rows} rows of the masks of this batch; set it to "
                "the number of masks that the masker gives each sample (masker.scales)"
            )
        return self.mask_token.repeat_interleave(rows // self.masks, 0).expand(-1, places, -1)
