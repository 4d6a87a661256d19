"""Cells hidden on purpose: which, what is usual, and the errors by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.impute import SimpleImputer

from mmssl.evaluation.protocols.imputation import Filled, Imputation
from mmssl.modalities.tabular.adapter import Tabular
from mmssl.modalities.tabular.holes import holes, typical
from mmssl.modalities.tabular.sets import Tables


def test_holes_are_a_share_of_the_given_cells_and_leave_one_in_each_row():
    given = np.random.default_rng(0).random((400, 6)) < 0.8
    hidden = holes(np.zeros((400, 6)), given, 0.3, 0)
    assert not (hidden & ~given).any() and abs(hidden.sum() / given.sum() - 0.3) < 0.03
    assert np.array_equal(hidden, holes(np.zeros((400, 6)), given, 0.3, 0))
    assert not np.array_equal(hidden, holes(np.zeros((400, 6)), given, 0.3, 1))
    nearly = holes(np.zeros((400, 6)), given, 0.999, 0)
    left = (given & ~nearly).sum(1)
    assert (left[given.any(1)] == 1).mean() > 0.95 and (left[given.any(1)] >= 1).all()


def test_what_is_usual_is_scikit_learns_imputer(tmp_path):
    rng = np.random.default_rng(1)
    kinds = rng.choice(["red", "blue", "blue", "green"], 60)
    numbers = [f"{v:.3f}" if rng.random() < 0.8 else "" for v in rng.normal(5, 3, 60)]
    lines = [f"{n},{k},{i % 7}" for i, (n, k) in enumerate(zip(numbers, kinds, strict=True))]
    (tmp_path / "t.csv").write_text("\n".join(["size,colour,day", *lines]))
    adapter = Tabular()
    train = Tables(adapter, root=str(tmp_path / "t.csv"), label=False, test_share=0.0).splits()["train"]
    adapter.use(adapter.facts([train.read(i) for i in range(60)]))
    found = typical(adapter, train.table, np.arange(60))
    values = np.array([float(n) if n else np.nan for n in numbers])
    mean = SimpleImputer().fit_transform(values[:, None])[np.isnan(values)][0, 0]
    assert found[0] == pytest.approx((mean - np.nanmin(values)) / np.ptp(values[~np.isnan(values)]), abs=1e-6)
    assert found[1] == 0 and adapter.categorical.tolist() == [False, True, False]  # blue comes first


def test_the_errors_by_hand():
    truth = torch.tensor([[0.5, 2.0, 0.1], [0.2, 1.0, 0.9]]).double()
    filled = torch.tensor([[0.1, 2.0, 7.0], [0.9, 0.0, 0.6]]).double()
    hidden = torch.tensor([[True, True, False], [False, True, True]])
    score = Imputation()(None, Filled(truth, filled, hidden, torch.tensor([False, True, False])))
    assert score.metric == "rmse" and score.lower and score.chosen == {"hidden": 4}
    assert score.value == pytest.approx(math.sqrt((0.4**2 + 0.3**2) / 2))
    assert score.also["category_top1"].value == 0.5
    words = Imputation()(None, Filled(truth, filled, hidden & torch.tensor([False, True, False]), torch.ones(3).bool()))
    assert words.metric == "category_top1" and not words.lower and not words.also
    with pytest.raises(ValueError, match="not finite"):
        Imputation()(None, Filled(truth, filled.log() * math.nan, hidden, torch.tensor([False, True, False])))
