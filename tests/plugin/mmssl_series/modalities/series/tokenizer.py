"""Series to patches in time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.nn.network import LinearEmbed
from mmssl.nn.patches import coordinates, cut, fold
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec, View


@register("tokenizer/series")
class SeriesTokenizer(nn.Module):
    """Standardises each channel and cuts the series into patches of equal length, as PatchTST does (arXiv:2211.14730).

    Args:
        facts: `channels`, and their `mean` and `std`.
        length: steps of a series.
        patch: steps of a patch; it has to divide the length.

    Raises:
        ValueError: when the patch does not divide the length.
    """

    mean: Tensor
    std: Tensor
    pos: Tensor

    def __init__(self, facts: Mapping[str, Any], *, length: int = 256, patch: int = 8) -> None:
        super().__init__()
        if length % patch:
            raise ValueError(f"tokenizer.patch={patch} does not divide tokenizer.length={length}")
        grid, channels = (length // patch,), int(facts["channels"])
        self.spec = TokenSpec(patch * channels, 1, grid, (patch,), channels)
        self.register_buffer("mean", torch.tensor(facts["mean"], dtype=torch.float32).view(-1, 1))
        self.register_buffer("std", torch.tensor(facts["std"], dtype=torch.float32).view(-1, 1))
        self.register_buffer("pos", coordinates(grid), persistent=False)

    def embedding(self, dim: int) -> LinearEmbed:
        """A linear embedding of patches."""
        return LinearEmbed(self.spec.raw, dim)

    def forward(self, view: View) -> Tokens:
        """Patches of a batch (b, c, t): raw (b, n, patch * c)."""
        assert self.spec.grid is not None and self.spec.cell is not None
        raw = cut((view.data - self.mean) / self.std, self.spec.cell)
        b, n = raw.shape[:2]
        index = torch.arange(n, device=raw.device).expand(b, n)
        return Tokens(raw=raw, pos=self.pos.expand(b, n, 1), index=index, grid=self.spec.grid)

    def restore(self, tokens: Tokens, shown: Tensor | None) -> Tensor:
        """Series (b, c, t) that raw values make up, for pictures; what is not shown lies at the mean."""
        assert self.spec.grid is not None and self.spec.cell is not None
        raw = tokens.raw if shown is None else tokens.raw * shown.unsqueeze(-1)
        return fold(raw, self.spec.grid, self.spec.cell) * self.std + self.mean
