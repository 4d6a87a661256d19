"""A predictor that answers each place from the features of that place alone."""

from __future__ import annotations

from torch import Tensor, nn

from mmssl.nn.init import trunc_normal_
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("predictor/mlp")
class MLP(nn.Module):
    """Linear, GELU, LayerNorm, linear, at each token's features (BERT's, Mockingjay's and TERA's head).

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        dim: hidden width; null takes the encoder's.
        norm_eps: added to variances.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        dim: int | None = None,
        norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        hidden = dim or width
        self.hidden, self.act = nn.Linear(width, hidden), nn.GELU()
        self.norm, self.head = nn.LayerNorm(hidden, norm_eps), nn.Linear(hidden, out)
        trunc_normal_(self)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query, all of which must be among the seen tokens."""
        return self.head(self.norm(self.act(self.hidden(seen.at(query)))))
