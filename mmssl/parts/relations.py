"""Relations between the tokens of a sample, as attention makes them of queries, keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.parts.attention import parts_of
from mmssl.parts.targets import layer_name
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("loss/token_relation")
class TokenRelation:
    """Divergence of how tokens relate to one another: by queries and keys, and by values (Hybrid Distillation).

    A relation is a row of softmax(Q K^T / sqrt(width of a head)), or of the same with V twice, over the tokens asked
    for. The loss of a token is the Kullback-Leibler divergence of the answer's rows from the target's, the mean over
    heads, summed over the two relations. Answers and targets are layers `qkv.i`, whose widths may differ.

    Args:
        heads: both are cut into so many, whatever their networks have; it has to divide a third of their widths.
    """

    def __init__(self, *, heads: int = 12) -> None:
        self.heads = heads

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number per token, (r, t), of (r, t, 3 d) and (r, t, 3 e)."""
        for name, x in (("answers", prediction), ("targets", target)):
            if x.shape[-1] % (3 * self.heads):
                raise ValueError(f"loss.heads={self.heads} does not divide a third of the {name}' width {x.shape[-1]}")
        total = prediction.new_zeros(())
        answers, targets = parts_of(prediction, self.heads), parts_of(target, self.heads)
        for one, other in ((0, 1), (2, 2)):
            mine, goal = (relation(parts[one], parts[other]) for parts in (answers, targets))
            total = total + (goal.exp() * (goal - mine)).sum(-1).mean(1)
        return total


def relation(query: Tensor, key: Tensor) -> Tensor:
    """Logarithms of the rows, (r, heads, t, t), of (r, heads, t, width)."""
    return torch.log_softmax(query @ key.mT * query.shape[-1] ** -0.5, -1)


@register("predictor/layer")
class Layer(nn.Module):
    """An inner layer's features as they are, whatever the width of the target; it answers only where the encoder saw.

    For losses that compare relations and not features.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the target.
        taps: layers that the encoder can give.
        layer: which one; `qkv.-1` is the last of its kind.

    Raises:
        ValueError: for a layer that the encoder does not have.
    """

    def __init__(self, spec: TokenSpec, width: int, out: int, taps: tuple[str, ...], *, layer: str = "qkv.-1") -> None:
        super().__init__()
        self.taps = (layer_name(layer, taps),)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """The layer (r, t, its width) at the places of the query, all of which must be among the seen tokens."""
        return seen.at(query, seen.taps[self.taps[0]][:, -seen.index.shape[1] :])
