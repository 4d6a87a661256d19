"""Boosted trees beside scores: scikit-learn's own numbers, categories as categories, missing cells as missing."""

import math

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from mmssl.evaluation.features import Features
from mmssl.evaluation.protocols import Knn
from mmssl.evaluation.protocols.clustering import Clustering
from mmssl.evaluation.protocols.regression import Regression
from mmssl.evaluation.trees import boosted_trees


def rows(n, seed):
    """The class is whether the category is odd; the quantity is a step of the number; some cells are missing."""
    g = np.random.default_rng(seed)
    category, number = g.integers(0, 12, n), g.normal(size=n)
    x = np.stack([category, np.where(g.random(n) < 0.1, np.nan, number), g.normal(size=n)], 1)
    return torch.from_numpy(x).float(), torch.from_numpy(category % 2), torch.from_numpy(number.round() * 5)


def test_trees_are_scikit_learns_and_fitted_once():
    (x, y, q), (asked, wanted, values) = rows(300, 0), rows(120, 1)
    y[::7] = -1
    calls = []
    categorical = torch.tensor([True, False, False])

    def cells():
        calls.append(1)
        return Features(x, y), Features(asked, wanted), categorical

    scores = boosted_trees(cells)
    own = Knn(k=3)(Features(x[y >= 0].nan_to_num(), y[y >= 0]), Features(asked.nan_to_num(), wanted))
    found = scores(own)
    again = scores(own)
    assert found is not None and again is not None and calls == [1]
    keep = (y >= 0).numpy()
    model = HistGradientBoostingClassifier(categorical_features=[0], random_state=0).fit(
        x.numpy()[keep], y.numpy()[keep]
    )
    assert found.value == model.score(asked.numpy(), wanted.numpy()) > 0.95
    assert found.n == own.n == 120
    cluster = Clustering()(Features(x.nan_to_num(), y.clamp(min=0)), Features(asked.nan_to_num(), wanted))
    assert scores(cluster) is None  # trees have nothing to say to mutual information

    scores = boosted_trees(lambda: (Features(x, q), Features(asked, values), categorical))
    own = Regression()(Features(x.nan_to_num(), q), Features(asked.nan_to_num(), values))
    found = scores(own)
    regressor = HistGradientBoostingRegressor(categorical_features=[0], random_state=0).fit(x.numpy(), q.numpy())
    assert found is not None and math.isclose(found.value, regressor.score(asked.numpy(), values.numpy()))
    assert "rmse" in found.also
