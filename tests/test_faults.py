"""What runs meet: a full disk, a lost loader, a rank that hangs, want of memory, a clock that goes back. Nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import mmssl
from mmssl.run.metrics import Table
from mmssl.run.watchdog import remedy

TINY = [
    "image/mae", "data=sample", "data.batch_size=16", "encoder.dim=24", "encoder.depth=1", "encoder.heads=2",
    "objective.pixels.predictor.dim=16", "objective.pixels.predictor.depth=1", "objective.pixels.predictor.heads=2",
    "evaluation.protocols.linear=null", "evaluation.protocols.knn=null", "evaluation.limit=40", "trainer.accelerator=cpu",
    "trainer.log_every=1",
]  # fmt: skip
LONG = ["trainer.max_steps=100000", "trainer.checkpoint_every=4"]


def start(words, folder, **options):
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mmssl.cli", *words], stdout=log, stderr=log,
            env=os.environ | {"MMSSL_RUNS": str(folder / "runs"), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}, **options,
        )  # fmt: skip


def told(folder):
    return (folder / "log").read_text()


def wait(process, folder, step):
    """The run's directory, once it has taken some steps."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        file = next((folder / "runs").glob("*/*/*/metrics.csv"), None)
        if file is not None and (rows := Table.read(file)) and int(rows[-1]["step"]) >= step:
            return file.parent
        assert process.poll() is None, told(folder)
        time.sleep(0.02)
    raise TimeoutError(told(folder))


def kept(run):
    """The step of the last checkpoint, which is whole."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def summary(run):
    return json.loads((run / "summary.json").read_text())


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(tmp_path):
    """The system itself refuses to write on, in the middle of a file."""
    process = start(["pretrain", *TINY, *LONG], tmp_path)
    run = wait(process, tmp_path, 6)
    before = (run / "checkpoints" / "last.ckpt").stat().st_size
    assert before > 40_000
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (before // 2, before // 2))
    assert process.wait(timeout=240) == 2
    assert f"the checkpoint {run}/checkpoints/last.ckpt cannot be written" in told(tmp_path)
    assert "The one before is intact" in told(tmp_path) and summary(run)["status"] == "failed"
    assert kept(run) >= 4 and not list((run / "checkpoints").glob(".*"))
    process = start(["resume", str(run)], tmp_path)
    wait(process, tmp_path, kept(run) + 6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) == 1 and summary(run)["status"] == "stopped"


def test_a_lost_loader_worker_is_named_and_the_run_goes_on(tmp_path):
    process = start(["pretrain", *TINY, *LONG, "data.workers=1"], tmp_path)
    run = wait(process, tmp_path, 6)
    workers = []
    for file in Path(f"/proc/{process.pid}/task").glob("*/children"):
        workers += [int(word) for word in file.read_text().split()]
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert process.wait(timeout=240) == 2
    assert "A process that reads data was lost" in told(tmp_path) and "data.workers=0" in told(tmp_path)
    assert f"mmssl resume {run}" in told(tmp_path)
    assert summary(run)["status"] == "failed" and kept(run) >= 4
    process = start(["resume", str(run), "data.workers=0"], tmp_path)
    wait(process, tmp_path, kept(run) + 6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) == 1


@pytest.mark.requires("fsdp")
def test_a_rank_that_hangs_ends_all_with_their_stacks(tmp_path):
    process = start(["pretrain", *TINY, *LONG, "trainer.devices=2", "trainer.timeout_minutes=0.4"], tmp_path)
    run = wait(process, tmp_path, 6)
    hung = next(int(file.read_text()) for file in tmp_path.glob("mmssl-*/pid.1"))
    os.kill(hung, signal.SIGSTOP)
    end = time.monotonic() + 240
    while not (run / "stacks" / "rank0.txt").stat().st_size and time.monotonic() < end:
        time.sleep(0.2)
    os.kill(hung, signal.SIGCONT)
    assert process.wait(timeout=240) == 1
    assert f"Where each rank hung stands in {run}/stacks" in told(tmp_path)
    stack = (run / "stacks" / "rank0.txt").read_text()
    assert "all_reduce" in stack or "run_backward" in stack, "gradients meet inside the backward pass"
    assert summary(run)["status"] == "failed" and kept(run) >= 4


HANGS = """
import time
from pathlib import Path
from mmssl.run.watchdog import Watchdog

def asleep_at_the_wheel():
    time.sleep(100)

dog = Watchdog(Path("stacks"), 0.02)
dog.on_train_start(None, None)
asleep_at_the_wheel()
"""


def test_the_watchdog_says_where_a_process_stood(tmp_path):
    done = subprocess.run([sys.executable, "-c", HANGS], cwd=tmp_path, timeout=90, check=False)
    assert done.returncode == 1
    assert "in asleep_at_the_wheel" in (tmp_path / "stacks" / "rank0.txt").read_text()


def test_a_run_that_ends_leaves_no_stacks(tmp_path):
    run = mmssl.pretrain(TINY[0], [*TINY[1:], "trainer.max_steps=2", f"run.root={tmp_path}"])
    assert not (run.path / "stacks").exists()


def test_want_of_memory_names_the_keys_to_change(tmp_path, monkeypatch, capsys):
    from mmssl.cli import main
    from mmssl.module import SSLModule

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(SSLModule, "training_step", full)
    assert main(["pretrain", *TINY, "trainer.max_steps=2", f"run.root={tmp_path}"]) == 2
    said = capsys.readouterr().err
    for key in ("trainer.accumulate=2", "trainer.chunk", "trainer.checkpoint_activations=true", "trainer.precision"):
        assert key in said
    assert "Tried to allocate 20.00 GiB" in said
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack(), "nothing of the run is left behind"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), "not enough memory"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "data.workers"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
    ],
)
def test_remedies(error, words):
    assert words in remedy(error)


def test_other_errors_have_no_remedy():
    assert remedy(RuntimeError("shapes do not fit")) is None
    assert remedy(ValueError("a key")) is None


def test_a_clock_that_goes_back_changes_nothing(tmp_path, monkeypatch):
    """The time of day names directories and stands in reports; nothing is decided by it."""
    words = [*TINY[1:], "trainer.max_steps=6", "trainer.checkpoint_every=2"]
    calm = mmssl.pretrain(TINY[0], [*words, f"run.root={tmp_path}"])
    now = [time.time()]

    def back():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", back)
    monkeypatch.setattr(time, "strftime", lambda form, *_, real=time.strftime: real(form, time.gmtime(back())))
    stopped = mmssl.pretrain(TINY[0], [*words[:-1], "trainer.max_steps=4", f"run.root={tmp_path}"])
    longer = mmssl.resume(stopped.path, ["trainer.max_steps=6"])
    assert longer.summary["steps"] == 6 and longer.summary["wall_s"] >= stopped.summary["wall_s"] >= 0
    again = mmssl.pretrain(TINY[0], [*words, f"run.root={tmp_path}"])
    assert again.path.name < calm.path.name and again.summary["status"] == "completed"
    assert (again.path / "metrics.csv").read_bytes() == (calm.path / "metrics.csv").read_bytes()
