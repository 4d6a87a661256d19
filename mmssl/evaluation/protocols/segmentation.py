"""Linear segmentation of frozen tokens: a class for every pixel or point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.draws import shuffle
from mmssl.evaluation.bootstrap import Statistic
from mmssl.evaluation.logistic import Logistic, Scaler
from mmssl.evaluation.protocols.linear import Fitted, strong_to_weak
from mmssl.evaluation.protocols.score import Score, check, scored
from mmssl.evaluation.segments import SegmentFeatures, confusion
from mmssl.registry import register

_CHUNK = 1 << 24  # answers held at once


@register("protocol/segmentation")
class Segmentation:
    """Linear segmentation: a linear layer on each frozen token, its answers interpolated to pixels or points; mIoU.

    On grids bilinear, as DINOv2 (Oquab et al., 2023, arXiv:2304.07193) does; among tokens that lie anywhere between the
    3 nearest by inverse squared distance, as PointNet++ (Qi et al., 2017, arXiv:1706.02413) propagates features. Cross
    entropy of the interpolated answers over elements with a class + l2 / 2 * |W|^2 is minimised by L-BFGS. The penalty
    is chosen on held-out training samples, from strong to weak until two in a row did worse, and the fit repeated on
    all of them. Deterministic; the test set takes no part.

    The score is that of the whole test set: intersections and unions are summed over all elements before classes are
    averaged, classes that neither occur nor are answered left out. The bootstrap draws whole samples.

    Args:
        l2: penalties to choose from, as in `protocol/linear`. With one nothing is held out.
        elements: at most so many elements of each training sample, drawn once, are fitted on; null takes all, for the
            same score: answers between few tokens differ little. Of the test samples all count.
        holdout: share of the training samples held out to choose the penalty.
        max_iter: limit on L-BFGS iterations of each fit.
        tolerance: largest gradient entry at which a fit ends.
    """

    needs = "segments"

    def __init__(
        self,
        *,
        l2: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
        elements: int | None = 128,
        holdout: float = 0.2,
        max_iter: int = 1000,
        tolerance: float = 1e-4,
    ) -> None:
        if len(l2) == 0 or min(l2) <= 0 or not 0 < holdout < 1:
            raise ValueError(
                f"protocol/segmentation needs one or more l2 above 0 and holdout in (0, 1) (got {list(l2)}, {holdout})"
            )
        if elements is not None and elements < 1:
            raise ValueError(f"protocol/segmentation needs elements of 1 or more, or null for all (got {elements})")
        self.l2, self.elements, self.holdout = sorted(l2, reverse=True), elements, holdout
        self.max_iter, self.tolerance = max_iter, tolerance

    def __call__(self, train: SegmentFeatures, test: SegmentFeatures) -> Score:
        """Mean intersection over union on `test` of the head fitted on `train`, the share that is right beside it."""
        check("protocol/segmentation", train, test)
        part = train.some(self.elements)
        chosen = self._choose(part)
        fitted = next(self._path(part, [chosen["l2"]]))
        counts = tally(fitted, test)
        also = {"accuracy": scored("accuracy", statistic(counts, _share), len(test), chosen)}
        return scored("miou", statistic(counts, miou), len(test), chosen, also=also)

    def _choose(self, train: SegmentFeatures) -> dict[str, Any]:
        count = round(self.holdout * len(train))
        if len(self.l2) == 1 or count == 0:
            # with so few samples nothing can be held out, and the strongest penalty errs on the safe side
            return {"l2": self.l2[0], "holdout_miou": None}
        held = torch.zeros(len(train), dtype=torch.bool)
        held[shuffle(len(train), 0, 0)[:count]] = True
        rest = train.where(held)
        path = zip(self.l2, self._path(train.where(~held), self.l2), strict=False)
        best, score = strong_to_weak(path, lambda fitted: float(miou(tally(fitted, rest).sum(0))))
        return {"l2": best, "holdout_miou": score}

    def _path(self, train: SegmentFeatures, penalties: Sequence[float]) -> Iterator[Fitted]:
        """Fits of each penalty in turn, made as they are asked for; each begins where the one before ended."""
        flat = train.x.flatten(0, 1)
        scaler = Scaler.fit(flat if train.valid is None else flat[train.valid.flatten()])
        x = scaler(flat).float()  # a third of the time of double precision, and the same to four digits
        if train.valid is not None:
            x[~train.valid.flatten()] = 0.0
        mix, classes_of = train.mixture(x.dtype)
        classes, y = torch.unique(classes_of, return_inverse=True)
        problem = Logistic(x, y, len(classes), mix)
        solution = None
        for l2 in penalties:
            solution = problem.fit(l2, start=solution, max_iter=self.max_iter, tolerance=self.tolerance)
            yield Fitted(scaler, classes, *solution)


def predict(fitted: Fitted, features: SegmentFeatures) -> Tensor:
    """The class with the highest interpolated answer of each element, (n, m) int64."""
    size = max(features.y.shape[1], features.x.shape[1]) * len(fitted.classes)
    found = []
    for rows in torch.arange(len(features)).split(max(1, _CHUNK // size)):
        part = features.where(rows)
        found.append(fitted.classes[part.interpolated(fitted.values(part.x).float()).argmax(-1)])
    return torch.cat(found)


def tally(fitted: Fitted, features: SegmentFeatures) -> Tensor:
    """Of each sample and class how many elements are right, are of it, and are answered by it, (n, 3, classes)."""
    classes = torch.unique(torch.cat([fitted.classes, features.y[features.y >= 0]]))
    # elements without a class lie before the first, whatever place that gives them is put back to -1
    wanted = torch.searchsorted(classes, features.y).masked_fill(features.y < 0, -1)
    return confusion(torch.searchsorted(classes, predict(fitted, features)), wanted, len(classes))


def statistic(counts: Tensor, measure: Any) -> Statistic:
    """A measure of summed counts (..., 3, classes) as a function of which samples there are."""

    def of(places: Tensor) -> Tensor:
        n = len(counts)
        row = torch.arange(len(places)).unsqueeze(1) * n
        times = torch.bincount((places + row).flatten(), minlength=len(places) * n).reshape(-1, n).double()
        return measure((times @ counts.flatten(1)).unflatten(1, counts.shape[1:]))

    return of


def miou(counts: Tensor) -> Tensor:
    """Mean over classes of intersection over union, of counts (..., 3, classes); classes without a union left out."""
    right, are, answered = counts.unbind(-2)
    union = are + answered - right
    return torch.where(union > 0, right / union, torch.nan).nanmean(-1)


def _share(counts: Tensor) -> Tensor:
    right, are, _ = counts.unbind(-2)
    return right.sum(-1) / are.sum(-1)
