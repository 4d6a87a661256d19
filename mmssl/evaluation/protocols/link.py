"""Link prediction from frozen node features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.evaluation.bootstrap import Statistic
from mmssl.evaluation.features import Features
from mmssl.evaluation.links import Pairs
from mmssl.evaluation.protocols.linear import Linear
from mmssl.evaluation.protocols.score import Score, check, scored
from mmssl.registry import register

DECODERS = ("hadamard", "dot")


@register("protocol/link")
class Link:
    """Link prediction: do features of two nodes tell whether there is an edge? Area under the ROC curve, and AP.

    Variational Graph Auto-Encoders. Kipf and Welling, 2016. arXiv:1611.07308: a tenth of the edges is the test set,
    with as many pairs without an edge. The encoder to be scored sees the graph without them. Another tenth is hidden
    too and fits the decoder, so that both sets are alike. A run that was trained on the whole graph has met the edges
    in training: its score holds what its weights remember of them. The bootstrap draws an edge and a pair without one
    together, so that halves stay equal.

    Args:
        decoder: `hadamard`, logistic regression on the product of both nodes' features, feature by feature, as
            `protocol/linear` fits it; or `dot`, the dot product, which fits nothing.
        l2: penalties to choose from.
    """

    needs = "links"

    def __init__(self, *, decoder: str = "hadamard", l2: Sequence[float] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)) -> None:
        if decoder not in DECODERS:
            raise ValueError(f"protocol/link: decoder is one of {', '.join(DECODERS)} (got {decoder!r})")
        self.decoder, self.probe = decoder, Linear(l2=l2)

    def __call__(self, train: Pairs, test: Pairs) -> Score:
        """Area under the ROC curve on `test`, with the average precision beside it."""
        chosen: dict[str, Any] = {"decoder": self.decoder}
        known, asked = (Features(_product(part), part.y) for part in (train, test))
        check("protocol/link", known, asked)
        if self.decoder == "dot":
            answers = asked.x.double().sum(1)
        else:
            fitted, found = self.probe.fitted(known)
            values = fitted.values(asked.x)
            answers, chosen = (values[:, 1] - values[:, 0]).double(), chosen | found
        m = len(test) // 2
        also = {"ap": scored("ap", ranking(answers[:m], answers[m:], _precision), m, chosen)}
        return scored("auc", ranking(answers[:m], answers[m:], _area), m, chosen, also=also)


def _product(part: Pairs) -> Tensor:
    return part.x[part.pairs[:, 0]] * part.x[part.pairs[:, 1]]


def ranking(positive: Tensor, negative: Tensor, measure: Any) -> Statistic:
    """A measure of how positives rank among negatives, as a function of which (positive, negative) couples there are.

    Args:
        positive: answers, (m,).
        negative: answers, (m,).
        measure: of how many positives and negatives have each distinct answer, ascending, (r, levels) float64 each.
    """
    levels, level = torch.unique(torch.cat([positive, negative]), return_inverse=True)
    both = level.tensor_split(2)

    def of(places: Tensor) -> Tensor:
        row = torch.arange(len(places)).unsqueeze(1) * len(levels)
        size = len(places) * len(levels)
        counts = [torch.bincount((side[places] + row).flatten(), minlength=size) for side in both]
        return measure(*(count.reshape(len(places), -1).double() for count in counts))

    return of


def _area(positive: Tensor, negative: Tensor) -> Tensor:
    """Share of couples of a positive and a negative that are in order; equal answers count half."""
    below = negative.cumsum(1) - negative
    return (positive * (below + negative / 2)).sum(1) / (positive.sum(1) * negative.sum(1))


def _precision(positive: Tensor, negative: Tensor) -> Tensor:
    """Mean precision at the positives, best answers first; equal answers are one threshold."""
    hits, misses = (part.flip(1).cumsum(1) for part in (positive, negative))
    precision = hits / (hits + misses).clamp(min=1)
    return (positive.flip(1) * precision).sum(1) / positive.sum(1)
