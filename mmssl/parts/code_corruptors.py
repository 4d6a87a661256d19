"""A corruptor that puts codes in place of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.parts.codes import nearest, read
from mmssl.registry import register
from mmssl.types import Mask, Tokens, TokenSpec


@register("corruptor/nearest_code")
class NearestCode(nn.Module):
    """Puts the nearest code in place of the raw values of tokens that are asked for though they are visible (CCViT).

    The codes are those that `fit/kmeans` found for `target/raw`; a masker such as `masker/seen_too` says which tokens.

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts.
        dim: the encoder's width.
        path: the run that fitted the codes, or its file.

    Raises:
        ValueError: for codes of another width than the tokens' raw values.
    """

    on = "tokens"
    needs = ("sequence", "full")
    centroids: Tensor

    def __init__(self, spec: TokenSpec, accepts: str, dim: int, *, path: str) -> None:
        super().__init__()
        centroids = read(path)
        if centroids.shape[1] != spec.raw:
            raise ValueError(
                f"corruptor/nearest_code: the codes of {path} are {centroids.shape[1]} wide and tokens have {spec.raw} "
                "raw values; fit them with target/raw and the same tokenizer"
            )
        self.register_buffer("centroids", centroids, persistent=False)

    @torch.no_grad()
    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """All tokens, one row per mask."""
        whole = tokens if mask.row is None else tokens.take(tokens.index[mask.row], mask.row)
        replaced = mask.visible & mask.targets.any(1)
        code = self.centroids[nearest(whole.raw, self.centroids)].to(whole.raw.dtype)
        return whole.but(raw=torch.where(replaced.unsqueeze(-1), code, whole.raw))
