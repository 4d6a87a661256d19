"""What speaks of all places of a sample at once: a predictor out of one vector, and a loss over yes and no."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("predictor/pooled")
class Pooled(nn.Module):
    """One linear map from a sample's mean feature to all of its places (VIME's heads), for encoders of whole samples.

    Args:
        spec: sizes of the tokens; every sample has to have as many.
        width: the encoder's width.
        out: width of the answer at each place.
        taps: layers that the encoder can give; none is read.
        activation: applied to the answers, for instance `activation/sigmoid`; null for none.

    Raises:
        ValueError: for samples of unequal length.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if spec.length is None:
            raise ValueError("predictor/pooled answers a fixed number of places, but samples are unequally long")
        self.out, self.activation = out, activation
        self.head = nn.Linear(width, spec.length * out)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        every = self.head(seen.pool()).unflatten(-1, (-1, self.out))
        answer = every.gather(1, query.index.unsqueeze(-1).expand(-1, -1, self.out))
        return answer if self.activation is None else self.activation(answer)


@register("loss/bce")
def bce(prediction: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of logits with targets in [0, 1], averaged over features.

    Args:
        prediction: logits (..., o).
        target: (..., o).

    Returns:
        (...).
    """
    return F.binary_cross_entropy_with_logits(prediction.to(target.dtype), target, reduction="none").mean(-1)
