"""The imputation protocol that reproduces ReMasker: holes, scaling, scores, and one job end to end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.reproduce import tabular

torch.set_num_threads(1)


def table(rows=4000, columns=12):
    rng = np.random.default_rng(1)
    return tabular.scaled(rng.normal(size=(rows, columns)) * np.arange(1, columns + 1) + 5)


def test_scaling():
    values = np.array([[1.0, 5.0, 2.0], [3.0, 5.0, -2.0], [2.0, 5.0, 0.0]])
    assert tabular.scaled(values).tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.5]]


def test_holes_completely_at_random():
    values = table()
    missing = tabular.holes(values, "mcar", 0.3, np.random.default_rng(0))
    shares = missing.mean(0)
    touched = shares > 0
    assert touched.sum() == 8
    assert np.abs(shares[touched] - 0.3).max() < 4.5 * math.sqrt(0.3 * 0.7 / len(values))
    assert tabular.holes(table(columns=5), "mcar", 0.3, np.random.default_rng(0)).any(0).all()


def test_holes_that_depend_on_other_columns():
    values = table()
    missing = tabular.holes(values, "mar", 0.3, np.random.default_rng(0))
    touched = np.flatnonzero(missing.any(0))
    assert len(touched) == 4, "of eight columns half stay complete"
    assert np.abs(missing[:, touched].mean(0) - 0.3).max() < 4.5 * math.sqrt(0.3 * 0.7 / len(values))
    whole = np.setdiff1d(np.arange(12), touched)
    for column in touched:
        with_holes = [abs(np.corrcoef(values[:, j], missing[:, column])[0, 1]) for j in whole]
        assert max(with_holes) > 0.1, "what is missing follows the complete columns"
        assert abs(np.corrcoef(values[:, column], missing[:, column])[0, 1]) < 0.08, "and not the cell itself"


def test_the_error_is_over_missing_cells_alone():
    truth, found = np.zeros((2, 2)), np.array([[3.0, 9.0], [9.0, 4.0]])
    assert tabular.rmse(found, truth, np.eye(2, dtype=bool)) == pytest.approx(math.sqrt(12.5))


def test_tables_keep_all_digits(tmp_path):
    values = np.array([[1 / 3, np.nan], [np.nan, 1e-17], [0.0, 1.0]])
    tabular.write(tmp_path / "t.csv", values)
    np.testing.assert_array_equal(tabular.read(tmp_path / "t.csv"), values)


def test_every_job_is_named():
    names = list(tabular.jobs())
    assert len(names) == len(set(names)) == 9 * 2 * 3 and "tabular-remasker/yacht-mcar/seed0" in names


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_one_job_end_to_end(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 1)) + 0.1 * rng.normal(size=(96, 4))
    folder = tmp_path / "tabular" / "uci_remasker"
    folder.mkdir(parents=True)
    tabular.write(folder / "yacht.csv", np.concatenate([x, x[:, :1]], 1))
    monkeypatch.setitem(tabular.SIZES, "yacht", (16, 1, 1))
    job = tabular.jobs()["tabular-remasker/yacht-mcar/seed0"]
    result = job(tmp_path, tmp_path / "runs", epochs=30)
    assert set(result["rmse"]) == {"remasker", "mean", "knn", "iterative", "forest"}
    assert all(0 < value < 1 for value in result["rmse"].values()) and result["value"] == result["rmse"]["remasker"]
    assert result["rmse"]["iterative"] < result["rmse"]["mean"] and 1 <= result["rank"] <= 5
    assert result["missing"] == round(np.isnan(tabular.read(tmp_path / "runs" / "holes.csv")).sum())
