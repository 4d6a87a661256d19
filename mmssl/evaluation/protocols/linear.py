"""Linear probe of frozen features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmssl.evaluation.features import Features
from mmssl.evaluation.logistic import Logistic, Scaler
from mmssl.evaluation.protocols.score import Score, check, top1
from mmssl.evaluation.splits import stratified
from mmssl.registry import register


@dataclass(frozen=True)
class Fitted:
    """A fitted linear classifier.

    Args:
        scaler: standardises features.
        classes: label of each output, (c,) int64.
        weight: (d, c).
        bias: (c,).
    """

    scaler: Scaler
    classes: Tensor
    weight: Tensor
    bias: Tensor

    def values(self, x: Tensor) -> Tensor:
        """Answers for each row of (n, d) before the softmax, (n, c)."""
        x = self.scaler(x)
        return x @ self.weight.to(x.dtype) + self.bias.to(x.dtype)

    def predict(self, x: Tensor) -> Tensor:
        """Label of each row of (n, d), (n,) int64."""
        return self.classes[self.values(x).argmax(1)]


def strong_to_weak(path: Iterable[tuple[float, Fitted]], measure: Callable[[Fitted], float]) -> tuple[float, float]:
    """The penalty whose fit does best, and how well it does; two in a row that did worse end the search.

    Args:
        path: penalties from strong to weak, and the fit of each, made as it is asked for.
        measure: how well a fit does on what was held out, at least 0.
    """
    best, score, worse = math.nan, -1.0, 0
    for l2, fitted in path:
        found = measure(fitted)
        worse = worse + 1 if found < score else 0
        if found > score:
            best, score = l2, found
        if worse == 2:
            break
    return best, score


@register("protocol/linear")
class Linear:
    """Linear probe: multinomial logistic regression on standardised frozen features, as in Kornblith et al. (2019).

    Do Better ImageNet Models Transfer Better? Kornblith et al., 2019. arXiv:1805.08974: L-BFGS, with the penalty chosen
    on a held-out part of the training set and the fit repeated on all of it. Here the held-out part is stratified, the
    path runs warm-started from strong to weak penalties and ends once two in a row did worse; of equals the stronger
    is taken. Deterministic; the test set takes no part.

    Args:
        l2: penalties to choose from, in mean cross entropy + l2 / 2 * |W|^2, so that a value means the same for sets of
            any size (scikit-learn's C is 1 / (n * l2)). With one value nothing is held out.
        holdout: share of each class held out to choose the penalty.
        max_iter: limit on L-BFGS iterations of each fit.
        tolerance: largest gradient entry at which a fit ends.
    """

    def __init__(
        self,
        *,
        l2: Sequence[float] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
        holdout: float = 0.2,
        max_iter: int = 1000,
        tolerance: float = 1e-5,
    ) -> None:
        if len(l2) == 0 or min(l2) <= 0:
            raise ValueError(f"protocol/linear needs one or more l2, each above 0 (got {list(l2)})")
        if not 0 < holdout < 1:
            raise ValueError(f"protocol/linear needs holdout between 0 and 1 (got {holdout})")
        self.l2 = sorted(l2, reverse=True)
        self.holdout, self.max_iter, self.tolerance = holdout, max_iter, tolerance

    def __call__(self, train: Features, test: Features) -> Score:
        """Top-1 accuracy on `test` of the probe fitted on `train`."""
        check("protocol/linear", train, test)
        fitted, chosen = self.fitted(train)
        return top1(fitted.predict(test.x), test, chosen)

    def fitted(self, train: Features) -> tuple[Fitted, dict[str, Any]]:
        """The classifier fitted on all of `train`, and the penalty that was chosen."""
        chosen = self._choose(train)
        return next(self._path(train, [chosen["l2"]])), chosen

    def _choose(self, train: Features) -> dict[str, Any]:
        held = stratified(train.y, self.holdout)
        if len(self.l2) == 1 or not bool(held.any()):
            # with one sample a class nothing can be held out, and the strongest penalty errs on the safe side
            return {"l2": self.l2[0], "holdout_top1": None}
        rest = train.where(held)
        path = zip(self.l2, self._path(train.where(~held), self.l2), strict=False)
        best, score = strong_to_weak(path, lambda fitted: float((fitted.predict(rest.x) == rest.y).double().mean()))
        return {"l2": best, "holdout_top1": score}

    def _path(self, train: Features, penalties: Sequence[float]) -> Iterator[Fitted]:
        """Fits of each penalty in turn, made as they are asked for; each begins where the one before ended."""
        scaler = Scaler.fit(train.x)
        classes, y = torch.unique(train.y, return_inverse=True)
        problem = Logistic(scaler(train.x), y, len(classes))
        solution = None
        for l2 in penalties:
            solution = problem.fit(l2, start=solution, max_iter=self.max_iter, tolerance=self.tolerance)
            yield Fitted(scaler, classes, *solution)
