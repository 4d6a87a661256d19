"""W&B over several starts of one run, offline: one id, no row lost, our step as the x-axis."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmssl.run.loggers import wandb as logger

HEAD = "step,loss,val/knn\n"


def records(folder: Path) -> list[dict]:
    """What one start has written, by W&B's own reader; a file cut short by a kill may hold nothing."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def rows(folder: Path) -> list[dict]:
    return [record["history"]["item"] for record in records(folder) if record["type"] == "history"]


def starts(run: Path) -> list[Path]:
    """The directories of a run's starts, in order; W&B tells two of the same second apart by a `-1` at the end."""
    return sorted((run / "wandb").glob("offline-run-*"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "image" / "mae" / "20261121-120000-abcdef"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 3\noptim: {lr: 0.5}\n")
    (folder / "metrics.csv").write_text(HEAD)
    return folder


def train(run: Path, steps: range, known: int = 0) -> Any:
    """Logs as a run does: metrics.csv is cut back to `known` steps, the checkpoint's, then grows with W&B."""
    table = run / "metrics.csv"
    kept = [line for line in table.read_text().splitlines()[1:] if int(line.split(",")[0]) <= known]
    table.write_text(HEAD + "".join(f"{line}\n" for line in kept))
    live = logger(run, offline=True)
    assert live.experiment.offline  # Lightning asks for it before the first row
    for step in steps:
        with table.open("a") as file:
            file.write(f"{step},{1 / step},\n")
        live.log_metrics({"step": step, "loss": 1 / step}, step)
    return live


def _killed(*arguments: Any) -> None:
    train(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_goes_on_keeps_its_id_and_a_killed_start_loses_no_row(run):
    train(run, range(1, 6)).finalize("success")  # stopped in order
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_killed, args=(run, range(6, 10), 5))  # at 9, with a checkpoint at 7
    child.start()
    child.join(timeout=120)
    assert child.exitcode == -signal.SIGKILL
    train(run, range(8, 12), known=7).finalize("success")
    first, second, third = starts(run)
    assert {file.name for folder in (first, second, third) for file in folder.glob("*.wandb")} == {
        f"run-{run.name}.wandb"
    }
    assert json.loads((run / "wandb.json").read_text()) == {"id": run.name, "through": 11}
    found = [rows(folder) for folder in (first, second, third)]
    assert [row["step"] for row in found[0]] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in found[2]] == [6, 7, 8, 9, 10, 11], "what died with the second start is told again"
    assert all(row["loss"] == 1 / row["step"] for part in found for row in part)
    # `wandb sync` reads the starts one after the other, and would drop rows whose own step falls
    own = [row["_step"] for part in found for row in part]
    assert own == sorted(set(own))


def test_the_id_stays_when_the_directory_is_renamed(run):
    assert logger(run, offline=True).version == run.name
    moved = run.rename(run.with_name("renamed"))
    assert logger(moved, offline=True).version == run.name


def test_runs_of_one_process_do_not_mix(run, tmp_path):
    """As the jobs of a sweep in one process."""
    other = tmp_path / "other"
    other.mkdir()
    for folder in (run, other):
        live = logger(folder, offline=True)
        live.log_metrics({"loss": 1.0}, 1)
        live.finalize("success")
    assert [len(rows(starts(folder)[0])) for folder in (run, other)] == [1, 1]


def test_charts_are_drawn_over_our_step_and_the_configuration_is_told(run):
    live = logger(run, offline=True)
    assert live.experiment.config["optim"] == {"lr": 0.5}
    live.log_metrics({"loss": 1.0}, 40)
    live.log_metrics({"loss": 2.0}, 20)  # a step backwards, as after a kill
    live.finalize("success")
    assert [(row["step"], row["loss"]) for row in rows(starts(run)[0])] == [(40, 1.0), (20, 2.0)]
    metrics = [record["metric"] for record in records(starts(run)[0]) if record["type"] == "metric"]
    assert {metric.get("glob_name"): metric.get("step_metric") for metric in metrics}["*"] == "step"
