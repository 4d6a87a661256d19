"""The best checkpoint by a named criterion, and the process that scores checkpoints apart from training."""

from __future__ import annotations

import json
import math
import shutil
import threading

import pytest
import torch

import mmssl
from mmssl.api import watch
from mmssl.run.best import stand_for
from mmssl.run.best_criteria import CRITERIA, criterion
from mmssl.run.checkpoints import checkpoint_of
from mmssl.run.loading import load
from mmssl.run.metrics import Table
from mmssl.run.watching import Watcher
from tests.test_faults import TINY

RUN = [*TINY, "trainer.max_steps=12", "trainer.checkpoint_every=4", "optim.lr=0.003"]


def pretrain(folder, *more):
    recipe, *keys = RUN
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMSSL_RUNS", str(folder))
        return mmssl.pretrain(recipe, [*keys, *more])


def measured(run, name):
    return {
        int(row["step"]): float(row[f"val/{name}"]) for row in Table.read(run / "metrics.csv") if f"val/{name}" in row
    }


def step_of(file):
    return torch.load(file, weights_only=True)["global_step"]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A run that keeps its least uniform step but one, so that the best is not the last."""
    return pretrain(
        tmp_path_factory.mktemp("best"), "trainer.best=feature_std", "evaluation.protocols.knn={_target_: protocol/knn}"
    )


@pytest.mark.parametrize("name", CRITERIA)
def test_what_is_better(name):
    one = criterion(name)
    for worse, better in {"higher": [(0.1, 0.2)], "lower": [(0.2, 0.1)]}.get(one.better, [(1.5, 0.8), (0.4, 1.1)]):
        assert one.merit(better) > one.merit(worse) > one.merit(None) == one.merit(math.nan) == -math.inf


def test_all_monitors_are_logged(chosen):
    for name in ("rankme", "feature_std", "uniformity", "alpha_req", "lidar", "alignment", "knn", "linear"):
        values = measured(chosen.path, name)
        assert list(values) == list(range(13)) and all(map(math.isfinite, values.values())), name
    assert set(chosen.summary["health"]) >= {"rankme", "alpha_req", "lidar", "alignment"}


def test_the_best_step_is_kept_and_named(chosen):
    values = measured(chosen.path, "feature_std")
    del values[0]
    best = max(values, key=lambda step: (values[step], -step))
    assert chosen.summary["best"] == {
        "criterion": "feature_std", "value": pytest.approx(values[best]), "step": best, "checkpoint": "checkpoints/best.ckpt",
    }  # fmt: skip
    assert json.loads((chosen.path / "summary.json").read_text())["best"]["step"] == best
    file = chosen.path / "checkpoints" / "best.ckpt"
    assert step_of(file) == best and checkpoint_of(chosen.path) == file and load(chosen.path).file == file
    assert step_of(chosen.path / "checkpoints" / "last.ckpt") == 12


def test_scores_at_the_end_are_those_of_the_best(tmp_path):
    """A criterion that the first step wins: later steps are trained, but not scored."""
    run = pretrain(
        tmp_path,
        "trainer.best=loss",
        "optim.lr=0.5",
        "optim.schedule=null",
        "evaluation.protocols.knn={_target_: protocol/knn}",
    )
    best = run.summary["best"]["step"]
    assert step_of(run.path / "checkpoints" / "best.ckpt") == best < 12
    again = mmssl.evaluate(str(run.path), protocols=["knn"])
    assert again["eval"]["knn"]["value"] == run.summary["eval"]["knn"]["value"]


def test_a_resumed_run_keeps_the_best_so_far(tmp_path, chosen):
    """Cut back to step 8, it ends as the run that was never stopped."""
    run = pretrain(
        tmp_path, "trainer.best=feature_std", "evaluation.protocols.knn={_target_: protocol/knn}", "trainer.max_steps=8"
    )
    state = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)
    kept = next(value for key, value in state["callbacks"].items() if key.startswith("Best"))
    early = measured(run.path, "feature_std")
    del early[0]
    best = max(early, key=lambda step: (early[step], -step))
    assert (kept["step"], kept["value"]) == (best, early[best])
    done = mmssl.resume(run.path, ["trainer.max_steps=12"])
    values = measured(run.path, "feature_std")
    del values[0]
    expected = max(values, key=lambda step: (values[step], -step))
    assert done.summary["best"]["step"] == expected == step_of(run.path / "checkpoints" / "best.ckpt")


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    run = pretrain(
        tmp_path,
        "trainer.best=loss",
        "trainer.patience=2",
        "optim.lr=0.5",
        "optim.schedule=null",
        "trainer.max_steps=200",
        "evaluation.every_epochs=null",
    )
    summary = run.summary
    assert summary["status"] == "completed" and summary["steps"] < 200
    assert "2 measurements were not better than loss" in summary["why"]
    assert step_of(run.path / "checkpoints" / "last.ckpt") == summary["steps"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["trainer.best=rankm"], "trainer.best: there is no criterion 'rankm'; did you mean 'rankme'"),
        (["trainer.patience=3"], "trainer.patience counts measurements by a criterion"),
        (["trainer.best=rankme", "trainer.patience=0"], "trainer.patience has to be a number from 1 on"),
        (["trainer.best=rankme", "evaluation.online=false"], "trainer.best=rankme needs evaluation.online=true"),
        (["trainer.best=top1"], "trainer.best=top1 needs a term that names classes"),
        (
            ["trainer.best=rankme", "trainer.strategy=fsdp", "trainer.sharded_checkpoints=sync"],
            "trainer.best writes whole files",
        ),
    ],
)
def test_criteria_that_cannot_be(tmp_path, said, message):
    with pytest.raises(ValueError, match=message):
        pretrain(tmp_path, *said)
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_view_that_draws_nothing_tells_no_views_apart(tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.best=lidar: it was not measured, but rankme, .* were"):
        pretrain(tmp_path, "trainer.best=lidar", "views.x=[{_target_: view/resize, size: 32}]")
    file = next(tmp_path.rglob("metrics.csv"))
    assert not any("train/loss" in row for row in Table.read(file)), "refused before the first step"


def test_a_second_name_is_the_same_file_where_that_can_be(tmp_path, monkeypatch):
    (tmp_path / "last.ckpt").write_bytes(b"one")
    stand_for(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    assert (tmp_path / "best.ckpt").samefile(tmp_path / "last.ckpt")

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").write_bytes(b"two")
    stand_for(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    assert (tmp_path / "best.ckpt").read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 2


# a process apart


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory):
    """A run that measures nothing itself, and its checkpoints by step."""
    folder = tmp_path_factory.mktemp("watch")
    run = pretrain(folder, "evaluation.online=false")
    files = {}
    for name in ("previous.ckpt", "last.ckpt"):
        files[step_of(run.path / "checkpoints" / name)] = folder / name
        shutil.copy(run.path / "checkpoints" / name, folder / name)
    return run, files


def copied(unwatched, tmp_path, status="running"):
    run, files = unwatched
    path = tmp_path / "run"
    shutil.copytree(run.path, path)
    (path / "checkpoints" / "last.ckpt").unlink()
    summary = json.loads((path / "summary.json").read_text()) | {"status": status}
    (path / "summary.json").write_text(json.dumps(summary))
    return path, files


def land(file, path):
    shutil.copy(file, path / "checkpoints" / ".new")
    (path / "checkpoints" / ".new").replace(path / "checkpoints" / "last.ckpt")


def test_training_may_leave_measuring_to_others(unwatched):
    run, files = unwatched
    assert not any(name.startswith("val/") for row in Table.read(run.path / "metrics.csv") for name in row)
    assert sorted(files) == [8, 12]


def test_a_watcher_scores_as_training_does(unwatched, tmp_path, chosen):
    """The same seed and steps: the same weights, and the same numbers out of another process."""
    path, files = copied(unwatched, tmp_path)
    watcher = Watcher(path, load(files[8]).tree)
    assert watcher.look() is None, "there is no checkpoint yet"
    land(files[8], path)
    row = watcher.look()
    assert row is not None and row["step"] == 8
    for name in ("knn", "linear", "rankme", "lidar", "alignment", "alpha_req"):
        assert row[f"val/{name}"] == pytest.approx(measured(chosen.path, name)[8], rel=1e-6), name
    assert watcher.look() is None, "a step is scored once"
    again = Watcher(path, load(files[8]).tree)
    assert again.look() is None and len(again.rows) == 1
    land(files[12], path)
    assert again.look()["step"] == 12
    assert [int(row["step"]) for row in Table.read(path / "scores.csv")] == [8, 12]
    assert not list((path / "checkpoints").glob(".*"))


def test_it_goes_on_until_the_run_has_ended(unwatched, tmp_path):
    path, files = copied(unwatched, tmp_path)
    found = {}
    said = {"protocols": ["knn"], "best": "knn", "seconds": 0.05, "minutes": 2}
    thread = threading.Thread(target=lambda: found.update(watch(path, [], **said)))
    thread.start()
    land(files[8], path)
    while not (path / "scores.csv").exists():
        assert thread.is_alive()
    with pytest.raises(ValueError, match="is watched by another process already"):
        watch(path, [], **said)
    land(files[12], path)
    summary = json.loads((path / "summary.json").read_text())
    (path / ".summary").write_text(json.dumps(summary | {"status": "stopped"}))
    (path / ".summary").replace(path / "summary.json")
    thread.join(60)
    assert found["status"] == "stopped" and [row["step"] for row in found["scores"]] == [8, 12]
    scores = {row["step"]: row["val/knn"] for row in found["scores"]}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert found["best"]["step"] == best == step_of(path / "checkpoints" / "best.ckpt")
    assert json.loads((path / "summary.json").read_text())["best"]["value"] == scores[best]
    assert "val/linear" not in found["scores"][0]
    assert "val/knn" in (path / "report.html").read_text() or "knn" in (path / "report.html").read_text()


def test_it_gives_up_where_nothing_comes(unwatched, tmp_path):
    path, _ = copied(unwatched, tmp_path)
    assert watch(path, [], seconds=0.01, minutes=0.0005) == {"run": str(path), "status": "running", "scores": []}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"best": "linea"}, "best: there is no criterion 'linea'; did you mean 'linear'"),
        ({"best": "loss"}, "a checkpoint does not tell its loss"),
        ({"protocols": ["kn"]}, "protocol=kn: there is no such protocol; did you mean 'knn'"),
        ({"overrides": ["optim.lr=1"]}, "nothing of its past"),
    ],
)
def test_a_watcher_refuses(unwatched, tmp_path, said, message):
    path, _ = copied(unwatched, tmp_path)
    with pytest.raises(ValueError, match=message):
        watch(path, said.pop("overrides", []), minutes=0.001, seconds=0.01, **said)


def test_a_run_that_chooses_itself_is_not_chosen_for(chosen, tmp_path):
    with pytest.raises(ValueError, match=r"chooses its best checkpoint itself, by trainer\.best=feature_std"):
        watch(chosen.path, [], best="knn")
    with pytest.raises(ValueError, match="looks at a run's directory"):
        watch(tmp_path)
