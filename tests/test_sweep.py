"""Sweeps without a cluster: the record, the order of jobs, launching on this machine, searching, and what is shown."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmssl import runs as listing
from mmssl.cli import main
from mmssl.report.html import write as report
from mmssl.report.sweep import axes, pick, ranked, read_sweep, status_of
from mmssl.sweep import queue
from mmssl.sweep.jobs import Record, run_job

TINY = [
    "data=sample", "trainer.max_steps=2", "trainer.log_every=2", "data.batch_size=16", "encoder.dim=24",
    "encoder.depth=1", "encoder.heads=2", "objective.pixels.predictor.dim=16", "objective.pixels.predictor.depth=1",
    "objective.pixels.predictor.heads=2", "evaluation.limit=120", "evaluation.protocols.linear=null",
]  # fmt: skip


def scored(run: Path, value: float | None, status: str = "completed", **more) -> dict:
    """A run's directory with what a sweep reads of it."""
    run.mkdir(parents=True)
    score = {} if value is None else {"knn": {"metric": "top1", "value": value, "ci95": [value - 0.1, value + 0.1]}}
    summary = {"recipe": "image/mae", "status": status, "steps": 7, "train": {"loss": 2 - (value or 0)}, "eval": score}
    summary |= {"health": {"verdict": "healthy"}} | more
    (run / "summary.json").write_text(json.dumps(summary))
    return summary


@pytest.fixture
def trained(monkeypatch):
    """Trains nothing: a run's score is a plain function of its overrides, known to the test."""

    def pretrain(recipe, overrides):
        said = dict(o.lstrip("+").split("=", 1) for o in overrides)
        rate, seed = float(said.get("optim.lr", 1)), int(said.get("seed", 0))
        if seed == 13:
            raise ValueError("seed 13 is unlucky")
        value = 1 - (math.log10(rate) + 3) ** 2 - (0.5 if recipe == "image/simmim" else 0)
        run = Path(said["run.root"]) / recipe / "20261121-120000-abcdef"
        return SimpleNamespace(path=run, summary=scored(run, value, recipe=recipe))

    monkeypatch.setattr("mmssl.api.pretrain", pretrain)


STATES = [
    # own word, Slurm's state, how the job stands
    (None, None, "pending"), (None, "PENDING", "pending"), (None, "CONFIGURING", "pending"),
    ("running", "RUNNING", "running"), ("running", "COMPLETING", "running"), ("running", None, "running"),
    ("stopped", "PENDING", "pending"), ("stopped", "RUNNING", "running"),  # queued again, and begun again
    ("stopped", "COMPLETED", "stopped"), ("completed", "RUNNING", "completed"), ("completed", "COMPLETED", "completed"),
    ("diverged", "COMPLETED", "diverged"), ("failed", "COMPLETED", "failed"),
    ("running", "COMPLETED", "failed"), (None, "COMPLETED", "failed"),  # killed before its last word
    ("running", "CANCELLED", "cancelled"), ("stopped", "CANCELLED", "cancelled"), (None, "CANCELLED", "cancelled"),
    ("running", "TIMEOUT", "timeout"), ("running", "OUT_OF_MEMORY", "out_of_memory"), ("running", "NODE_FAIL", "failed"),
]  # fmt: skip


@pytest.mark.parametrize(("own", "state", "expected"), STATES)
def test_how_a_job_stands_from_its_own_word_and_the_queue(own, state, expected):
    assert status_of(own, state) == expected


def test_axes_are_what_differs():
    rows = [{"overrides": o.split()} for o in ("recipe=a ++x.y=1 seed=0", "recipe=b ++x.y=2 seed=0", "recipe=b seed=0")]
    assert axes(rows) == {"recipe": ["a", "b", "b"], "x.y": ["1", "2", None]}
    assert axes(rows[:1]) == {}


def test_a_score_is_picked_by_its_path():
    summary = {"train": {"loss": 0.5}, "eval": {"knn": {"metric": "top1", "value": 0.25}}, "status": "completed"}
    assert pick(summary, None) == 0.25
    assert pick(summary, "train.loss") == 0.5
    assert pick(summary, "eval.linear.value") is None
    assert pick(summary, "status") is None


def sweep_of(folder: Path, values: dict[int, float | None], **facts) -> Path:
    record = Record(folder)
    folder.mkdir()
    record.write({n: {"overrides": ["recipe=image/mae", f"++optim.lr={n}e-4"]} for n in values}, **facts)
    for number, value in values.items():
        if value is not None:
            scored(folder / str(number) / "image" / "mae" / "20261121-120000-abcdef", value)
            (folder / f"job-{number}.json").write_text(json.dumps({"job": number, "status": "completed"}))
    return folder


def test_jobs_are_ranked_by_the_score_in_its_direction(tmp_path):
    folder = sweep_of(tmp_path / "s", {0: 0.2, 1: None, 2: 0.9, 3: 0.5})
    assert [row["job"] for row in ranked(read_sweep(folder))] == [2, 3, 0, 1]
    assert Record(folder).write()["best"]["job"] == 2
    Record(folder).write(score="train.loss", direction="minimize")
    assert [row["job"] for row in ranked(read_sweep(folder))] == [2, 3, 0, 1]  # the loss falls as the score rises
    Record(folder).write(score="train.loss", direction="maximize")
    assert [row["job"] for row in ranked(read_sweep(folder))] == [0, 3, 2, 1]


def test_an_error_rate_is_ranked_upwards(tmp_path):
    folder = sweep_of(tmp_path / "s", {0: 0.4, 1: 0.2})
    for file in folder.rglob("summary.json"):
        file.write_text(file.read_text().replace("top1", "rmse"))
    assert [row["job"] for row in ranked(read_sweep(folder))] == [1, 0]


def test_a_killed_jobs_directory_is_found_and_its_row_says_how_it_ended(tmp_path):
    folder = sweep_of(tmp_path / "s", {0: 0.4, 1: None})
    scored(folder / "1" / "image" / "mae" / "20261121-120500-abcdef", None, status="running")
    (folder / "job-1.json").write_text(json.dumps({"job": 1, "status": "running"}))
    assert read_sweep(folder)["jobs"][1]["status"] == "running"
    sweep = Record(folder).write({1: {"id": "12_1", "queue": "CANCELLED", "reason": "None"}})
    row = sweep["jobs"][1]
    assert (row["status"], row["why"]) == ("cancelled", "job 12_1: CANCELLED")
    assert row["run"].endswith("1/image/mae/20261121-120500-abcdef")
    assert row["steps"] == 7
    assert sweep["counts"] == {"completed": 1, "cancelled": 1}
    assert json.loads((folder / "sweep.json").read_text()) == sweep


def test_a_job_says_how_it_stands_and_a_failure_is_its_own(tmp_path, trained, capsys):
    run_job(tmp_path, 0, ["recipe=image/mae", "++optim.lr=0.001", "run.root=elsewhere"])
    run_job(tmp_path, 1, ["recipe=image/mae", "seed=13"])
    first, second = (json.loads((tmp_path / f"job-{n}.json").read_text()) for n in (0, 1))
    assert first["status"] == "completed"
    assert (second["status"], second["why"]) == ("failed", "ValueError: seed 13 is unlucky")
    assert "Traceback" in capsys.readouterr().err
    assert [p.parent.name for p in tmp_path.rglob("summary.json")] == ["20261121-120000-abcdef"]
    assert not Path("elsewhere").exists()


def test_only_the_first_rank_of_a_job_writes_its_row(tmp_path, trained, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    run_job(tmp_path, 0, ["recipe=image/mae"])
    assert not (tmp_path / "job-0.json").exists()


# Lines as squeue 22.05 and sacct 23.11 print them.
SQUEUE = "12_0|COMPLETED|None\n12_1|RUNNING|None\n12_2|PENDING|launch failed requeued held\n12_3|PENDING|Resources\n"
SACCT = "12_4|CANCELLED by 1000|None\n12_4.batch|CANCELLED|None\n"


def tools(folder: Path, monkeypatch, **scripts: str) -> None:
    for name, script in scripts.items():
        file = folder / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_states_of_slurm_with_accounting(tmp_path, monkeypatch):
    tools(tmp_path, monkeypatch, squeue=f"printf '{SQUEUE}'", sacct=f"printf '{SACCT}'")
    assert queue.states(f"12_{i}" for i in range(6)) == {
        "12_0": ("COMPLETED", "None"),
        "12_1": ("RUNNING", "None"),
        "12_2": ("FAILED", "launch failed requeued held"),  # it would wait for ever
        "12_3": ("PENDING", "Resources"),
        "12_4": ("CANCELLED", "None"),
        "12_5": queue.GONE,
    }


def test_states_of_slurm_without_accounting(tmp_path, monkeypatch):
    without = "echo 'Slurm accounting storage is disabled' >&2; exit 1"
    tools(
        tmp_path,
        monkeypatch,
        squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
        sacct=without,
    )
    assert queue.states(["12"]) == {"12": queue.GONE}
    tools(tmp_path, monkeypatch, squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    assert queue.states(["12"]) == {}, "no answer is no end"


def test_a_sweep_is_listed_best_first_with_its_axes_as_columns(tmp_path, capsys):
    folder = sweep_of(tmp_path / "s", {0: 0.25, 1: None, 2: 0.75})
    assert main(["runs", str(folder)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["job", "recipe", "optim.lr", "status", "steps", "loss", "verdict", "knn", "path"]
    assert [line.split()[:4] for line in lines] == [
        ["2", "image/mae", "2e-4", "completed"], ["0", "image/mae", "0e-4", "completed"], ["1", "-", "1e-4", "pending"],
    ]  # fmt: skip
    assert [row["value"] for row in listing.find(str(folder))] == [0.75, 0.25, None]
    assert [len(listing.find(str(folder / str(n)))) for n in range(3)] == [1, 0, 1], "a plain folder of runs as before"


def test_the_report_of_a_sweep_ranks_its_jobs(tmp_path, capsys):
    folder = sweep_of(tmp_path / "s", {0: 0.25, 1: None, 2: 0.75})
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert page.index("Sweep of 3 jobs") < page.index("Best by the first score: job 2: lr 2e-4, with 0.75")
    rows = [page.index(f'<th scope="row">{number}</th>') for number in (2, 0, 1)]
    assert rows == sorted(rows)
    assert "2 completed, 1 pending" in page
    empty = sweep_of(tmp_path / "t", {0: None})
    assert "No job has a score yet" in report(empty).read_text()


def test_a_run_of_a_sweep_is_the_run_of_its_job(runs, trained, capsys):
    words = ["image/mae,image/simmim", "optim.lr=1e-4,1e-3", "seed=1"]
    assert main(["pretrain", "-m", *words, "--json"]) == 0
    sweep = json.loads(capsys.readouterr().out)
    assert [job["value"] for job in sweep["jobs"]] == pytest.approx([0.0, 1.0, -0.5, 0.5])
    assert sweep["best"]["job"] == 1
    assert [Path(job["run"]).relative_to(sweep["path"]).parts[0] for job in sweep["jobs"]] == ["0", "1", "2", "3"]


def test_a_sweep_that_cannot_start_leaves_nothing(runs, capsys):
    assert main(["pretrain", "-m", "image/mae", "hydra/launcher=submitit_slrm"]) == 2
    error = capsys.readouterr().err
    assert "submitit_slrm" in error
    assert "submitit_slurm" in error
    assert not list(runs.rglob("sweep.json"))


def test_jobs_on_this_machine_some_at_a_time(runs, capsys):
    """One works, one is refused, and both are processes of their own."""
    words = ["pretrain", "-m", "image/mae", "tokenizer.patch=4,5", "--json", *TINY, "evaluation.protocols.knn=null"]
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.parallel=2", "hydra.launcher.poll_s=0.2"]
    assert main([*words, *launcher]) == 1
    sweep = json.loads(capsys.readouterr().out)
    assert [job["status"] for job in sweep["jobs"]] == ["completed", "failed"]
    assert "does not divide" in sweep["jobs"][1]["why"]
    assert "does not divide" in Path(sweep["jobs"][1]["log"]).read_text()
    assert len({job["id"] for job in sweep["jobs"]}) == 2
    assert json.loads(Path(sweep["path"], "sweep.json").read_text())["status"] == "completed"


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is an extra")
class TestSearch:
    SEARCH = ("hydra/sweeper=optuna", "optim.lr=tag(log,interval(1e-5,1e-1))")

    def test_it_finds_the_rate_and_the_recipe(self, runs, trained, capsys):
        words = ["image/simmim,image/mae", *self.SEARCH, "hydra.sweeper.n_trials=24", "hydra.sweeper.n_jobs=2"]
        assert main(["pretrain", "-m", *words, "--json"]) == 0
        sweep = json.loads(capsys.readouterr().out)
        assert len(sweep["jobs"]) == 24
        best = dict(o.lstrip("+").split("=", 1) for o in sweep["best"]["overrides"])
        # the score is 1 - (log10 lr + 3)^2, and a half less for simmim
        assert best["recipe"] == "image/mae"
        assert abs(math.log10(float(best["optim.lr"])) + 3) < 0.3
        tried = [math.log10(float(job["overrides"][-1].split("=")[1])) for job in sweep["jobs"]]
        late = sum(abs(value + 3) < 1 for value in tried[-8:])
        assert late > sum(abs(value + 3) < 1 for value in tried[:8]), "it looks closer where it was good"

    def test_a_named_score_is_minimised(self, runs, trained, capsys):
        score = ["hydra.sweeper.score=train.loss", "hydra.sweeper.direction=minimize", "hydra.sweeper.n_trials=8"]
        assert (
            main(
                [
                    "pretrain",
                    "-m",
                    "image/mae",
                    "seed=range(0,4)",
                    "optim.lr=1e-5,1e-3",
                    *score,
                    *self.SEARCH[:1],
                    "--json",
                ]
            )
            == 0
        )
        sweep = json.loads(capsys.readouterr().out)
        assert (sweep["score"], sweep["direction"]) == ("train.loss", "minimize")
        assert sweep["best"]["value"] == pytest.approx(min(job["train"]["loss"] for job in sweep["jobs"]))
        assert {float(job["overrides"][-1].split("=")[1]) for job in sweep["jobs"]} == {1e-5, 1e-3}

    def test_a_failed_job_is_a_failed_trial(self, runs, trained, capsys):
        study = runs / "study.db"
        words = [f"hydra.sweeper.storage=sqlite:///{study}", "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=8"]
        assert main(["pretrain", "-m", "image/mae", "seed=12,13", *self.SEARCH, *words, "--json"]) == 1
        sweep = json.loads(capsys.readouterr().out)
        assert sweep["counts"].keys() == {"completed", "failed"}
        import optuna

        trials = optuna.load_study(study_name="s", storage=f"sqlite:///{study}").trials
        states = {"completed": "COMPLETE", "failed": "FAIL"}
        assert [trial.state.name for trial in trials] == [states[job["status"]] for job in sweep["jobs"]]

    def test_a_score_that_is_not_there_is_named(self, runs, trained, capsys):
        words = ["hydra.sweeper.score=eval.knm.value", "hydra.sweeper.n_trials=4"]
        assert main(["pretrain", "-m", "image/mae", *self.SEARCH, *words]) == 2
        assert "there is train.loss, and eval.knn.value" in capsys.readouterr().err

    def test_nothing_to_vary(self, runs, trained, capsys):
        assert main(["pretrain", "-m", "image/mae", "hydra/sweeper=optuna"]) == 2
        assert "nothing to vary" in capsys.readouterr().err
