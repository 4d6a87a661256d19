"""Positions that are heard: a convolution over the sequence says where a token is by its neighbours."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("position/conv")
class Convolution(nn.Module):
    """A grouped convolution of the embeddings, with weight norm and a GELU (wav2vec 2.0, HuBERT, data2vec, BEATs).

    It reads embeddings and not places, so that encoders add what it says of sequences of any length, and the sequence
    has to be whole.

    Args:
        spec: sizes of the tokens.
        dim: width.
        kernel: tokens that it reads, half of them on each side.
        groups: groups of channels; they have to divide the width.

    Raises:
        ValueError: when groups do not divide the width.
    """

    def __init__(self, spec: TokenSpec, dim: int, *, kernel: int = 128, groups: int = 16) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(f"position.groups={groups} does not divide the width {dim}; choose a divisor of {dim}")
        conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4.0 / (kernel * dim)))
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv, dim=2)

    def forward(self, tokens: Tokens) -> Tensor:
        """What is to be added to the embeddings, (b, n, dim)."""
        x = tokens.x
        assert x is not None
        x = x if tokens.valid is None else x.masked_fill(~tokens.valid.unsqueeze(-1), 0.0)
        return F.gelu(self.conv(x.mT)[..., : x.shape[1]]).mT
