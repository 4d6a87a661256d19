"""Gradient-boosted trees on raw cells: what an encoder of tables has to beat."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mmssl.evaluation.features import Features
from mmssl.evaluation.protocols import Score, top1
from mmssl.evaluation.protocols.regression import quantities

_CATEGORIES = 255  # scikit-learn's limit for a column whose categories are split as such


def boosted_trees(cells: Callable[[], tuple[Features, Features, Tensor]]) -> Callable[[Score], Score | None]:
    """Scikit-learn's histogram gradient boosting with its own settings, beside scores of classes or quantities.

    Grinsztajn et al., 2022 (arXiv:2207.08815): on tables trees are hard to beat. They see every label whatever the
    protocol, so that curves over labels and scores of other kinds have none.

    Args:
        cells: raw cells of the training and the test rows, NaN where missing, with labels or quantities; and which
            columns hold codes of categories, (c,) bool. Called once, when first needed.

    Returns:
        Of a protocol's score, that of the trees; None where they have nothing to say.
    """

    @cache
    def fitted() -> tuple[Tensor, Features]:
        train, test, categorical = cells()
        train, test = train.labelled(), test.labelled()
        return _predicted(train, test, categorical), test

    def scores(own: Score) -> Score | None:
        if own.curve or own.metric not in ("top1", "r2"):
            return None
        predicted, test = fitted()
        return top1(predicted, test, {}) if own.metric == "top1" else quantities(predicted, test, {})

    return scores


def _predicted(train: Features, test: Features, categorical: Tensor) -> Tensor:
    """Predictions for the test rows, labels or quantities."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    x, y = train.x.double().numpy(), train.y.numpy()
    if not train.y.is_floating_point() and len(torch.unique(train.y)) == 1:
        return train.y[:1].expand(len(test))
    codes = x.max(0, where=~np.isnan(x), initial=-1)
    columns = categorical.numpy() & (codes < _CATEGORIES)
    kind = HistGradientBoostingRegressor if train.y.is_floating_point() else HistGradientBoostingClassifier
    trees = kind(categorical_features=columns, random_state=0).fit(x, y)
    return torch.from_numpy(trees.predict(test.x.double().numpy()))
