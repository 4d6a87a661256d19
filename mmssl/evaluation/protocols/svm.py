"""Support vector machine on frozen features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from mmssl.evaluation.features import Features
from mmssl.evaluation.logistic import Scaler
from mmssl.evaluation.protocols.score import Score, check, top1
from mmssl.registry import register


@register("protocol/svm")
class Svm:
    """Support vector machine on standardised frozen features, customary for points (Point-MAE) and graphs (GraphMAE).

    C is chosen by the mean accuracy over stratified folds inside the training set, of equals the smaller; the fit is
    repeated on all of it. Deterministic; the test set takes no part.

    Args:
        c: values to choose from.
        kernel: `linear`, as for point clouds; or `rbf`, as for graphs, of width 1 / (d var), scikit-learn's `scale`.
        folds: number of folds; fewer where the smallest class has fewer rows, and none with one.
        max_iter: limit on iterations of each fit; reaching it is told in `chosen`.
    """

    needs = "pooled"

    def __init__(
        self,
        *,
        c: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0),
        kernel: str = "linear",
        folds: int = 5,
        max_iter: int = 2000,
    ) -> None:
        if len(c) == 0 or min(c) <= 0 or kernel not in ("linear", "rbf") or folds < 2 or max_iter < 1:
            raise ValueError(
                "protocol/svm needs one or more c above 0, kernel linear or rbf, folds of 2 or more and max_iter of 1 "
                f"or more (got {list(c)}, {kernel!r}, {folds} and {max_iter})"
            )
        self.c, self.kernel, self.folds, self.max_iter = sorted(c), kernel, folds, max_iter

    def __call__(self, train: Features, test: Features) -> Score:
        """Top-1 accuracy on `test` of the machine fitted on `train`."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.model_selection import StratifiedKFold, cross_val_score

        check("protocol/svm", train, test)
        labels, count = torch.unique(train.y, return_counts=True)
        if len(labels) == 1:  # nothing to separate
            return top1(labels.expand(len(test)), test, {"c": self.c[0], "folds_top1": None, "kernel": self.kernel})
        scaler = Scaler.fit(train.x)
        x, asked, y = scaler(train.x), scaler(test.x), train.y.numpy()
        if self.kernel == "linear" and len(x) < x.shape[1]:  # the weights lie in the span of the training rows
            axes = torch.linalg.svd(x, full_matrices=False)[2].T
            x, asked = x @ axes, asked @ axes
        x, asked = x.numpy(), asked.numpy()
        folds = min(self.folds, int(count.min()))
        best, score = self.c[0], None
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ConvergenceWarning)
            if folds >= 2 and len(self.c) > 1:
                parts = StratifiedKFold(folds, shuffle=True, random_state=0)
                found = [float(cross_val_score(self._machine(c), x, y, cv=parts).mean()) for c in self.c]
                score = max(found)
                best = self.c[found.index(score)]
            del told[:]
            machine = self._machine(best).fit(x, y)
        chosen = {"c": best, "folds_top1": score, "kernel": self.kernel, "converged": not told}
        return top1(torch.from_numpy(machine.predict(asked)), test, chosen)

    def _machine(self, c: float) -> Any:
        from sklearn.svm import SVC, LinearSVC

        if self.kernel == "rbf":
            return SVC(C=c, kernel="rbf", gamma="scale")
        linear: Any = LinearSVC  # whose annotations say str for truth values
        return linear(C=c, dual=False, max_iter=self.max_iter, random_state=0)
