"""A real Slurm of one node (`sh tests/slurm/up.sh` starts one): runs that are disturbed, and sweeps."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mmssl.cli import main
from mmssl.config.files import CONF
from mmssl.report.sweep import read_sweep

pytestmark = pytest.mark.requires("slurm")

TINY = [
    "data=sample", "data.batch_size=16", "encoder.dim=24", "encoder.depth=1", "encoder.heads=2",
    "objective.pixels.predictor.dim=16", "objective.pixels.predictor.depth=1", "objective.pixels.predictor.heads=2",
    "evaluation.protocols.linear=null", "evaluation.limit=60",
]  # fmt: skip
STEPS = 600
RUN = [*TINY, f"trainer.max_steps={STEPS}", "trainer.log_every=5", "trainer.checkpoint_every=20", "logger=wandb",
       "logger.wandb.offline=true", "evaluation.protocols.knn=null"]  # fmt: skip
PATIENCE = 600  # seconds; on an idle machine of two cores nothing here takes a tenth of it


def say(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def wait(condition: Callable[[], object], what: str):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise TimeoutError(f"after {PATIENCE} s there was no {what}")


class Job:
    """A job of the shipped batch script, in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        folder.mkdir()
        script = shutil.copy(CONF / "slurm" / "multi_node.sbatch", folder)
        sizes = ["--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1"]
        words = ["sbatch", "--parsable", f"--chdir={folder}", *sizes, "--time=60", *options, script, "image/mae", *RUN]
        home = {"MMSSL_RUNS": str(folder / "runs"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.id = subprocess.run(
            words, env=os.environ | home, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()

    @property
    def runs(self) -> list[Path]:
        """Directories of runs; there should never be two."""
        return [file.parent for file in (self.folder / "runs").rglob("summary.json")]

    def state(self) -> str:
        return say("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={self.id}")

    def starts(self) -> int:
        return 1 + int(re.findall(r"Restarts=(\d+)", say("scontrol", "show", "job", self.id))[0])

    def reached(self, step: int) -> Path | None:
        """The run's directory, once it has a checkpoint and is beyond a step."""
        for run in self.runs:
            lines = (run / "metrics.csv").read_text().splitlines() if (run / "metrics.csv").exists() else []
            if (
                (run / "checkpoints" / "last.ckpt").exists()
                and lines[-1:]
                and int(lines[-1].split(",")[0] or 0) >= step
            ):
                return run
        return None

    def process(self) -> int:
        """The training process, which has locked its run's directory."""
        return int(re.findall(r"process (\d+)", (self.runs[0] / ".lock").read_text())[0])

    def log(self) -> str:
        return "".join(file.read_text() for file in self.folder.glob("*.log"))

    def finish(self) -> Path:
        """Waits for the end, and gives the one run's directory."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        state = wait(lambda: (found := self.state()) in ends and found, f"end of job {self.id}: {self.log()}")
        assert state == "COMPLETED", self.log()
        (run,) = self.runs
        return run


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Iterator[dict[str, Job]]:
    """All disturbed runs at once, and one that is left alone."""
    base = tmp_path_factory.mktemp("jobs")
    # Slurm looks at time limits twice a minute and keeps them in minutes: this signal comes 30 to 60 s after the start
    late = ("--time=2", "--signal=USR1@60")
    plain = ("undisturbed", "requeued", "signalled", "killed")
    found = {"out-of-time": Job(base / "out-of-time", *late)} | {name: Job(base / name) for name in plain}
    yield found
    for job in found.values():
        subprocess.run(["scancel", job.id], check=False, timeout=60)


def requeue(job: Job) -> None:
    say("scontrol", "requeue", job.id)


def signalled(job: Job) -> None:
    say("scancel", "--signal=USR1", job.id)


def kill(job: Job) -> None:
    os.kill(job.process(), signal.SIGKILL)


def halt(job: Job) -> None:
    """Stands still until its time is up; a signal that came before, while Python started, has the same end."""
    os.kill(job.process(), signal.SIGSTOP)


def told(process: int) -> bool:
    """Whether Slurm's signal waits for the process, or has woken it and ended it already."""
    try:
        words = dict(line.split(":\t") for line in Path(f"/proc/{process}/status").read_text().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return True
    waiting = int(words["SigPnd"], 16) | int(words["ShdPnd"], 16)
    return words["State"][0] != "T" or bool(waiting >> (signal.SIGUSR1 - 1) & 1)


DISTURBED = {"requeued": requeue, "signalled": signalled, "killed": kill, "out-of-time": halt}


@pytest.fixture(scope="module")
def disturbed(jobs) -> dict[str, Path]:
    """The directories before the disturbance, each of which came as soon as its run was well under way."""
    found: dict[str, Path] = {}

    def disturb() -> bool:
        for name, what in DISTURBED.items():
            if name not in found and (run := jobs[name].reached(25)):
                found[name] = run
                what(jobs[name])
        return len(found) == len(DISTURBED)

    wait(disturb, f"step 25 of every job: {[job.log() for job in jobs.values()]}")
    process = jobs["out-of-time"].process()
    if jobs["out-of-time"].starts() == 1:
        wait(lambda: told(process), "signal of Slurm")
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)
    return found


def test_a_sweep_with_a_cancelled_job_and_one_that_is_queued_again(runs, capsys):
    """The others complete, the sweep ends, and all that is shown is true of each job."""
    words = ["image/mae", "trainer.max_steps=3,200,1000000", "trainer.log_every=1", "trainer.checkpoint_minutes=null"]
    queue = ["hydra/launcher=submitit_slurm", "hydra.launcher.poll_s=0.5", "hydra.launcher.timeout_min=60"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mmssl.cli", "pretrain", "-m", *words, *TINY, *queue, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    (folder,) = wait(lambda: [file.parent for file in runs.rglob("sweep.json")], "sweep")
    rows = wait(lambda: len(found := read_sweep(folder)["jobs"]) == 3 and "id" in found[2] and found, "submission")
    wait(lambda: list(folder.glob("1/**/metrics.csv")), "running job")
    say("scancel", "--signal=USR2", rows[1]["id"])
    wait(lambda: list(folder.glob("2/**/metrics.csv")), "running job")
    say("scancel", rows[2]["id"])
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, error
    sweep = json.loads(out)
    assert sweep["status"] == "completed"
    assert [job["status"] for job in sweep["jobs"]] == ["completed", "completed", "cancelled"], error
    again, cancelled = sweep["jobs"][1:]
    assert cancelled["why"].startswith(f"job {rows[2]['id']}: CANCELLED")
    for number, row in enumerate(sweep["jobs"]):
        (run,) = [file.parent for file in (folder / str(number)).rglob("summary.json")]
        assert row["run"] == str(run), "also a cancelled job's directory is known"
    assert again["steps"] == 200
    assert len(json.loads((Path(again["run"]) / "environment.json").read_text())["resumed"]) == 1
    assert json.loads((folder / "sweep.json").read_text()) == sweep
    assert main(["runs", str(folder), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["runs"]
    values = [row["value"] for row in listed]
    assert values[:2] == sorted(values[:2], reverse=True)
    assert (listed[2]["job"], values[2], listed[2]["varied"]) == (2, None, {"trainer.max_steps": "1000000"})
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "2 completed, 1 cancelled" in page


@pytest.mark.parametrize("name", DISTURBED)
def test_a_disturbed_run_ends_as_if_nothing_had_been(name, jobs, disturbed):
    """It goes on in its own directory and W&B run, and its weights and metrics are those of the undisturbed run."""
    run, calm = jobs[name].finish(), jobs["undisturbed"].finish()
    assert run == disturbed[name]
    assert jobs[name].starts() >= 2
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("completed", STEPS)

    ids = {folder.name.split("-", 3)[3] for folder in run.glob("wandb/offline-run-*")}
    assert ids == {json.loads((run / "wandb.json").read_text())["id"]} == {run.name}
    assert len(list(run.glob("wandb/offline-run-*"))) >= 2

    ours, theirs = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (run, calm))
    assert ours["global_step"] == theirs["global_step"] == STEPS
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(value, theirs["state_dict"][key]) for key, value in ours["state_dict"].items())
    assert (run / "metrics.csv").read_bytes() == (calm / "metrics.csv").read_bytes()
