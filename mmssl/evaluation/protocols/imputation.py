"""How well a run fills in cells that were hidden on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmssl.evaluation.protocols.score import Score, scored
from mmssl.registry import register


@dataclass(frozen=True)
class Filled:
    """Cells with holes, and what was put there.

    Args:
        truth: (n, c) float64: numbers scaled to [0, 1] by the training data, categories as codes.
        filled: the same, of an imputer; only what was hidden counts.
        hidden: which cells were, (n, c) bool.
        categorical: which columns are categories, (c,) bool.
    """

    truth: Tensor
    filled: Tensor
    hidden: Tensor
    categorical: Tensor

    def __len__(self) -> int:
        """Number of rows, n."""
        return len(self.truth)


@register("protocol/imputation")
class Imputation:
    """Imputation as in ReMasker (Du et al., 2024, arXiv:2309.13793): the error in cells that were hidden on purpose.

    A share of the cells of the test rows is hidden, completely at random; the run fills them in from the others. The
    score is the root of the mean squared error of hidden numbers, scaled to [0, 1] by the training data; beside it the
    share of hidden categories that is right. `mean_imputer` fills in the column's mean over the training rows, or its
    commonest category. A table without numbers has the categories' score alone. The bootstrap draws rows.
    """

    needs = "cells"

    def __call__(self, train: Any, test: Filled) -> Score:
        """The error on `test`; `train` is not looked at."""
        if not bool(torch.isfinite(test.filled[test.hidden]).all()):
            raise ValueError("protocol/imputation: the run fills in values that are not finite; it diverged.")
        chosen = {"hidden": int(test.hidden.sum())}
        wrong = (test.filled - test.truth).square()
        right = (test.filled == test.truth).double()
        numbers, words = test.hidden & ~test.categorical, test.hidden & test.categorical
        found = {}
        if bool(numbers.any()):
            error = _mean(wrong, numbers)
            found["rmse"] = scored("rmse", lambda places: error(places).sqrt(), len(test), chosen, lower=True)
        if bool(words.any()):
            found["category_top1"] = scored("category_top1", _mean(right, words), len(test), chosen)
        if not found:
            raise ValueError("protocol/imputation: no cell could be hidden; the test rows hold none that are given.")
        first = found.pop(next(iter(found)))
        return Score(first.metric, first.value, first.resampled, first.n, chosen, lower=first.lower, also=found)


def _mean(values: Tensor, keep: Tensor) -> Any:
    """The mean over the kept cells, as a function of the rows."""
    total, count = torch.where(keep, values, 0.0).sum(1), keep.sum(1).double()

    def of(places: Tensor) -> Tensor:
        cells = count[places].sum(1)
        return torch.where(cells > 0, total[places].sum(1) / cells.clamp(min=1), torch.nan)

    return of
