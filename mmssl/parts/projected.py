"""A predictor for tokens that were seen: a perceptron at each of them, with norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmssl.nn.init import xavier_
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("predictor/projected")
class Projected(nn.Module):
    """Linear maps with layer norms and GELUs between, the last norm without weights, and a linear map behind (DMJD).

    It answers only where the encoder saw: DMJD's branch that distils what is visible.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        dims: widths of the projector's layers.
        norm_eps: epsilon of the layer norms.

    Raises:
        ValueError: for no layer.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        dims: Sequence[int] = (512, 512, 512),
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if not dims or min(dims) < 1:
            raise ValueError(
                f"predictor.dims are the widths of the projector's layers, at least one (got {list(dims)})"
            )
        parts: list[nn.Module] = []
        for i, dim in enumerate(dims):
            last = i == len(dims) - 1
            parts += [nn.Linear(width, dim), nn.LayerNorm(dim, norm_eps, elementwise_affine=not last)]
            parts += [] if last else [nn.GELU()]
            width = dim
        self.layers, self.head = nn.Sequential(*parts), nn.Linear(width, out)
        xavier_(self)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query, all of which must be among the seen tokens."""
        return self.head(self.layers(seen.at(query)))

    def with_class(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, 1 + t, out), the class token's in front."""
        assert seen.prefix is not None
        return self.head(self.layers(torch.cat([seen.prefix[:, :1], seen.at(query)], 1)))
