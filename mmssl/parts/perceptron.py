"""A predictor at each token's features, with dropout in place of a norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("predictor/perceptron")
class Perceptron(nn.Module):
    """Linear maps with ReLU and dropout between them at each token's features (MaskGAE's degree decoder; SCGC's).

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        dims: hidden widths.
        dropout: share of hidden features that are dropped in training.
        last: how many of the features are read, counted from the last: of an encoder that gives all layers side by
            side, the last layer. null for all.
        activation: applied to the answers, for instance `activation/relu`.

    Raises:
        ValueError: for more features than there are, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        dims: Sequence[int] = (256,),
        dropout: float = 0.0,
        last: int | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if last is not None and not 1 <= last <= width:
            raise ValueError(f"predictor.last reads some of the encoder's {width} features, at least one (got {last})")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"predictor.dropout is a share and has to be in [0, 1) (got {dropout:g})")
        self.read, self.activation = last or width, activation
        parts: list[nn.Module] = []
        for wide, hidden in pairwise([self.read, *dims]):
            parts += [nn.Linear(wide, hidden), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*parts, nn.Linear(dims[-1] if dims else self.read, out))

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query, all of which must be among the seen tokens."""
        answer = self.layers(seen.at(query)[..., -self.read :])
        return answer if self.activation is None else self.activation(answer)
