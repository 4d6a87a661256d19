"""Predictors of codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.parts.norms import check_temperature
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("predictor/code_cosine")
class CodeCosine(nn.Module):
    """Logits of codes: the cosine of a linear map of the features with each code's own learned vector (HuBERT).

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: number of codes.
        taps: layers that the encoder can give; none is read.
        dim: width of the codes' vectors.
        temperature: of the cosines.
    """

    def __init__(
        self, spec: TokenSpec, width: int, out: int, taps: tuple[str, ...], *, dim: int = 256, temperature: float = 0.1
    ) -> None:
        super().__init__()
        check_temperature(temperature, "predictor/code_cosine: temperature")
        self.temperature = temperature
        self.proj, self.codes = nn.Linear(width, dim), nn.Parameter(torch.rand(out, dim))

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Logits (r, t, out) at the places of the query, all of which must be among the seen tokens."""
        return (
            F.linear(F.normalize(self.proj(seen.at(query)), dim=-1), F.normalize(self.codes, dim=-1)) / self.temperature
        )
