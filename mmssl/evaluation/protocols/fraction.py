"""How a linear probe does with few labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.evaluation.features import Features
from mmssl.evaluation.protocols.linear import Linear
from mmssl.evaluation.protocols.score import Score, averaged, check
from mmssl.registry import register


@register("protocol/label_fraction")
class LabelFraction:
    """Linear probe with a share of the training labels, a curve over shares (semi-supervised protocol of SimCLR).

    A Simple Framework for Contrastive Learning of Visual Representations. Chen et al., 2020. arXiv:2002.05709, with 1
    and 10 % of the labels. Each subset takes the same share of every class, at least one row, and is drawn anew by each
    seed; penalties are chosen inside it. The value is that at the share `at`, the mean over seeds; the interval pools
    seeds and test noise. Every share stands in the result's `curve`.

    Args:
        fractions: shares of the labels, in (0, 1].
        at: the share whose score is the value, one of `fractions`.
        seeds: of the subsets; all labels need one only.
        l2: penalties to choose from, as `protocol/linear` does.
    """

    needs = "pooled"

    def __init__(
        self,
        *,
        fractions: Sequence[float] = (0.01, 0.1, 1.0),
        at: float = 0.1,
        seeds: Sequence[int] = (0, 1, 2),
        l2: Sequence[float] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4),
    ) -> None:
        if not fractions or not all(0 < share <= 1 for share in fractions) or at not in fractions or not seeds:
            raise ValueError(
                "protocol/label_fraction needs fractions in (0, 1], at as one of them, and one or more seeds (got "
                f"{list(fractions)}, {at} and {list(seeds)})"
            )
        self.fractions, self.at, self.seeds = sorted(fractions), at, list(seeds)
        self.probe = Linear(l2=l2)

    def __call__(self, train: Features, test: Features) -> Score:
        """Top-1 accuracy at each share."""
        check("protocol/label_fraction", train, test)
        curve = [self._at(train, test, share) for share in self.fractions]
        found = curve[self.fractions.index(self.at)]
        return Score(found.metric, found.value, found.resampled, found.n, found.chosen, curve=curve)

    def _at(self, train: Features, test: Features, share: float) -> Score:
        """The score of one share, a row per seed; with all labels every row is the same."""
        rows, count, penalties = list[Tensor](), 0, list[float]()
        for seed in self.seeds if share < 1 else self.seeds[:1]:
            part = train.where(subset(train.y, share, seed))
            found = self.probe(part, test)
            assert found.correct is not None
            rows.append(found.correct)
            count = len(part)
            penalties.append(found.chosen["l2"])
        many = rows if len(rows) == len(self.seeds) else rows * len(self.seeds)
        return averaged("top1", torch.stack(many), {"at": share, "labels": count, "l2": penalties})


def subset(y: Tensor, share: float, seed: int) -> Tensor:
    """A stratified subset, (n,) bool: the share of each class rounded, at least one of each; all with a share of 1.

    Smaller shares of one seed are parts of larger ones.
    """
    luck = Draws.of(seed, 0, torch.arange(len(y))).named("fraction").uniform()
    keep = torch.zeros(len(y), dtype=torch.bool)
    for label in torch.unique(y):
        places = (y == label).nonzero()[:, 0]
        count = max(1, math.floor(share * len(places) + 0.5))
        keep[places[torch.argsort(luck[places], stable=True)[:count]]] = True
    return keep
