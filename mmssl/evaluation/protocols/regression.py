"""Ridge regression of quantities on frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.draws import shuffle
from mmssl.evaluation.features import Features
from mmssl.evaluation.logistic import Scaler
from mmssl.evaluation.protocols.score import Score, check, scored
from mmssl.registry import register


@register("protocol/regression")
class Regression:
    """Ridge regression on standardised frozen features (Hoerl and Kennard 1970): R2 and the root mean square error.

    The penalty is chosen on a held-out part of the training rows and the fit repeated on all of them. Deterministic;
    the test set takes no part.

    Args:
        l2: penalties to choose from, in mean squared error + l2 * |w|^2 on standardised features and targets, so that
            a value means the same for sets of any size (scikit-learn's alpha is n * l2). With one nothing is held out.
        holdout: share of the rows held out to choose the penalty.
    """

    needs = "targets"

    def __init__(
        self, *, l2: Sequence[float] = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6), holdout: float = 0.2
    ) -> None:
        if len(l2) == 0 or min(l2) <= 0 or not 0 < holdout < 1:
            raise ValueError(
                f"protocol/regression needs one or more l2 above 0 and holdout in (0, 1) (got {list(l2)}, {holdout})"
            )
        self.l2, self.holdout = sorted(l2, reverse=True), holdout

    def __call__(self, train: Features, test: Features) -> Score:
        """R2 on `test` of the fit on `train`, with the root mean square error beside it."""
        check("protocol/regression", train, test)
        chosen: dict[str, Any] = {"l2": self.l2[0], "holdout_r2": None}
        count = round(self.holdout * len(train))
        if len(self.l2) > 1 and 2 <= count <= len(train) - 2:
            held = torch.zeros(len(train), dtype=torch.bool)
            held[shuffle(len(train), 0, 0)[:count]] = True
            part, rest = train.where(~held), train.where(held)
            found = [_r2(fit(rest.x), rest.y) for fit in map(_Ridge(part).at, self.l2)]
            chosen = {"l2": self.l2[found.index(max(found))], "holdout_r2": max(found)}
        return quantities(_Ridge(train).at(chosen["l2"])(test.x), test, chosen)


class _Ridge:
    """The fits of all penalties share one decomposition."""

    def __init__(self, train: Features) -> None:
        self.scaler, y = Scaler.fit(train.x), train.y.double()
        x = self.scaler(train.x).double()
        self.mean = y.mean()
        self.variance, self.axes = torch.linalg.eigh(x.T @ x / len(x))
        self.along = self.axes.T @ (x.T @ (y - self.mean)) / len(x)

    def at(self, l2: float) -> Any:
        """The prediction, a function of features (n, d)."""
        weight = self.axes @ (self.along / (self.variance.clamp(min=0) + l2))
        return lambda x: self.scaler(x).double() @ weight + self.mean


def _r2(predicted: Tensor, y: Tensor) -> float:
    y = y.double()
    return float(1 - (predicted - y).square().sum() / (y - y.mean()).square().sum().clamp(min=1e-300))


def quantities(predicted: Tensor, test: Features, chosen: dict[str, Any]) -> Score:
    """The score of predicted quantities (n_test,): the share of the variance that is explained, R2.

    The root mean square error stands beside it, in the units of the target. R2 of a resampled test set in which all
    targets are equal has no meaning and does not count.
    """
    y = test.y.double()
    error = (predicted.double() - y).square()
    apart = y - y.mean()  # the same R2, but no cancellation of large targets

    def r2(places: Tensor) -> Tensor:
        part = apart[places]
        spread = part.square().mean(1) - part.mean(1).square()
        return torch.where(spread > 0, 1 - error[places].mean(1) / spread, torch.nan)

    def rmse(places: Tensor) -> Tensor:
        return error[places].mean(1).sqrt()

    also = {"rmse": scored("rmse", rmse, len(test), chosen, lower=True)}
    return scored("r2", r2, len(test), chosen, also=also)
