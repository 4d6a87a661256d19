"""`mmssl runs`: all runs, those of some key, and in the order of a score."""

from __future__ import annotations

import json

import pytest

from mmssl.cli import main
from mmssl.config.compose import ConfigError
from mmssl.run.directory import write_config, write_json
from mmssl.runs import find

RUNS = {
    # name: (recipe, rate, status, loss, kNN, error)
    "1": ("image/mae", 1e-4, "completed", 0.5, 0.7, None),
    "2": ("image/ijepa", 3e-4, "completed", 0.3, 0.9, None),
    "3": ("tabular/remasker", 1e-4, "completed", 0.1, None, 0.2),
    "4": ("tabular/remasker", 1e-3, "completed", 0.2, None, 0.1),
    "5": ("image/mae", 1e-3, "failed", None, None, None),
}


@pytest.fixture
def runs(tmp_path):
    for name, (recipe, rate, status, loss, knn, error) in RUNS.items():
        folder = tmp_path / recipe / name
        folder.mkdir(parents=True)
        scores = {} if knn is None else {"knn": {"metric": "top1", "value": knn, "ci95": [knn, knn]}}
        if error is not None:
            scores["imputation"] = {"metric": "rmse", "value": error, "ci95": [error, error], "better": "lower"}
        summary = {"recipe": recipe, "status": status, "steps": 10, "train": {"loss": loss}, "eval": scores}
        write_json(folder / "summary.json", summary)
        write_config(folder / "config.yaml", {"recipe": recipe, "optim": {"lr": rate}, "data": {"root": "a/b"}})
    return str(tmp_path)


def names(rows):
    return [row["path"].rpartition("/")[2] for row in rows]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({}, "12345"),
        ({"recipe": "image/*"}, "125"),
        ({"recipe": "image/mae", "status": "completed"}, "1"),
        ({"optim.lr": "1e-4"}, "13"),
        ({"optim.lr": "0.0010"}, "45"),
        ({"optim.lr": "0.001", "recipe": "tabular/remasker"}, "4"),
        ({"data.root": "a/*"}, "12345"),
        ({"data.root": "b"}, ""),
    ],
)
def test_runs_are_found_by_their_keys(runs, where, found):
    rows = find(runs, where)
    assert names(rows) == list(found)
    for key in where.keys() - {"recipe", "status"}:
        assert all(key in row["varied"] for row in rows), "what was asked for is shown"


@pytest.mark.parametrize(
    ("sort", "found"), [("knn", "21345"), ("loss", "34215"), ("imputation", "43125"), ("steps", "12345")]
)
def test_the_best_come_first_and_runs_without_the_score_last(runs, sort, found):
    assert names(find(runs, sort=sort)) == list(found)


def test_what_no_run_has_is_refused_with_what_was_meant(runs):
    with pytest.raises(ConfigError, match=r"no run here has the key 'optim.rl'; did you mean 'optim.lr'\?"):
        find(runs, {"optim.rl": "1"})
    with pytest.raises(ConfigError, match=r"no run here has the score 'kmn'; did you mean 'knn'\?"):
        find(runs, sort="kmn")


def test_a_run_that_is_being_made_is_listed_but_matches_no_key(runs, tmp_path):
    folder = tmp_path / "image" / "mae" / "6"
    folder.mkdir()
    write_json(folder / "summary.json", {"recipe": "image/mae", "status": "running"})
    assert names(find(runs))[-1] == "6" and "6" not in names(find(runs, {"optim.lr": "*"}))


def test_the_command_line_takes_them(runs, capsys):
    assert main(["runs", runs, "recipe=image/*", "optim.lr=*", "sort=knn", "--json"]) == 0
    assert names(json.loads(capsys.readouterr().out)["runs"]) == ["2", "1", "5"]
    assert main(["runs", runs, "recipe=image/*", "optim.lr=*", "sort=knn"]) == 0
    first, best, *_ = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == ["recipe", "optim.lr"] and best.split()[:2] == ["image/ijepa", "0.0003"]
    assert main(["runs", runs, "recipe=audio/*"]) == 0
    assert "no run here has recipe=audio/*" in capsys.readouterr().out
    assert main(["runs", runs, "another"]) == 2
