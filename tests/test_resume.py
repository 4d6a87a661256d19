"""A run that was stopped or killed goes on to the bit as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

import mmssl
from mmssl.cli import main
from mmssl.config.compose import ConfigError
from mmssl.run import generators, resume
from mmssl.run.metrics import Table
from mmssl.run.signals import Signals, Stopped
from tests.small import photos_in

TINY = [
    "data=folder", "data.size=16", "tokenizer.patch=4", "data.batch_size=8", "encoder.dim=24", "encoder.depth=1",
    "encoder.heads=2", "optim.base_lr=null", "optim.lr=1e-3", "trainer.max_steps=14", "trainer.log_every=3",
    "trainer.checkpoint_every=4", "trainer.accelerator=cpu",
]  # fmt: skip
SMALL = [
    "objective.pixels.predictor.dim=16",
    "objective.pixels.predictor.depth=1",
    "objective.pixels.predictor.heads=2",
]


def killed_at(step, monkeypatch):
    """Makes the process lose itself at the end of a step, without a chance to clean up."""

    class Gone(BaseException):
        pass

    from mmssl.run.metrics import Progress

    before = Progress.on_train_batch_end

    def die(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == step:
            raise Gone
        before(self, trainer, pl_module, outputs, batch, batch_idx)

    monkeypatch.setattr(Progress, "on_train_batch_end", die)
    return Gone


def content(run):
    return torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)


def state(run):
    found = content(run)
    return {"weights": found["state_dict"], "optimizer": found["optimizer_states"], "generators": found["mmssl"]["generators"]}  # fmt: skip


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty small pictures, five steps an epoch."""
    return photos_in(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def mae(photos):
    return ["image/mae", *TINY, *SMALL, f"data.root={photos}"]


@pytest.fixture(scope="module")
def dino(photos):
    """A teacher, a centre, drop path; and rows of metrics that checkpoints cut in two."""
    fewer = [f"~views.s{i}" for i in range(2, 9)]
    head = ["heads.proj.dims=[16,16,8]", "heads.proj.count=32", "data.small=8", "encoder.drop_path=0.3"]
    return ["image/dino", *TINY, *fewer, *head, f"data.root={photos}"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dino):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMSSL_RUNS", str(tmp_path_factory.mktemp("whole")))
        yield mmssl.pretrain(dino[0], dino[1:])


def only(runs):
    return next(runs.rglob("config.yaml")).parent


# before any checkpoint, in the middle of an epoch, at its end
@pytest.mark.parametrize(("step", "every"), [(3, 4), (9, 4), (13, 4), (7, 5), (13, 1)])
def test_a_killed_run_ends_in_the_bits_of_an_undisturbed_one(whole, dino, runs, step, every):
    with pytest.MonkeyPatch.context() as patch:
        gone = killed_at(step, patch)
        with pytest.raises(gone):
            mmssl.pretrain(dino[0], [*dino[1:], f"trainer.checkpoint_every={every}"])
    run = only(runs)
    done = mmssl.resume(run)
    assert done.path == run and done.summary["status"] == "completed" and done.summary["steps"] == 14
    assert equal(state(run), state(whole.path))
    assert (run / "metrics.csv").read_bytes() == (whole.path / "metrics.csv").read_bytes()
    assert done.summary["train"] == whole.summary["train"] and done.summary["eval"] == whole.summary["eval"]
    steps = [row["step"] for row in json.loads((run / "environment.json").read_text())["resumed"]]
    assert steps == [(step - 1) // every * every]


def test_an_epoch_has_five_steps(whole):
    """Else no checkpoint above was at the end of one."""
    found = content(whole.path)
    assert found["epoch"] == 2 and found["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [
        {"epoch": 2, "step": 4}
    ]


def test_a_run_can_be_made_longer_and_its_schedules_hold(whole, runs, tmp_path):
    import shutil

    run = tmp_path / "longer"
    shutil.copytree(whole.path, run)
    done = mmssl.resume(run, ["trainer.max_steps=17"])
    assert done.summary["steps"] == 17 and done.summary["planned_steps"] == 17
    rows = Table.read(run / "metrics.csv")
    rates = {int(row["step"]): float(row["lr"]) for row in rows if "lr" in row}
    assert content(run)["mmssl"]["horizon"] == 14
    assert rates[17] <= rates[14]
    before = Table.read(whole.path / "metrics.csv")
    assert rows[: len(before)] == before
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 17


def test_it_goes_on_with_other_accumulation(mae, runs):
    """Elastic: the same global batches, cut otherwise."""
    plain = mae
    undisturbed = mmssl.pretrain(plain[0], plain[1:])
    with pytest.MonkeyPatch.context() as patch:
        gone = killed_at(9, patch)
        with pytest.raises(gone):
            mmssl.pretrain(plain[0], [*plain[1:], f"run.root={runs}/b"])
    run = only(runs / "b")
    done = mmssl.resume(run, ["trainer.accumulate=2"])
    assert done.summary["steps"] == 14
    ours, theirs = state(run)["weights"], state(undisturbed.path)["weights"]
    apart = sum(float((ours[name] - value).square().sum()) for name, value in theirs.items())
    assert apart < 1e-8 * sum(float(value.square().sum()) for value in theirs.values())
    losses = [[float(r["train/loss"]) for r in Table.read(p / "metrics.csv") if "train/loss" in r] for p in (run, undisturbed.path)]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_keys_of_any_depth_are_changed():
    tree = {"trainer": {"max_steps": 3}, "data": {"source": {"copies": None, "storage": None}}}
    for word in ("trainer.max_steps=5", "data.source.copies=/fast", "data.source.storage.anon=true"):
        resume._change(tree, word)
    assert tree["trainer"] == {"max_steps": 5}
    assert tree["data"] == {"source": {"copies": "/fast", "storage": {"anon": True}}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr=1"], "would change the past of this run"),
        (["trainer.max_step=20"], "did you mean 'trainer.max_steps'"),
        (["trainer.max_steps=5"], "can be made longer, not shorter; it was set to 14"),
        ([], "is completed; give it a longer"),
        (["data.workers"], "no key=value"),
    ],
)
def test_resume_refuses(whole, words, message):
    with pytest.raises(ConfigError, match=message):
        mmssl.resume(whole.path, words)


def test_resume_of_no_run(tmp_path, capsys):
    assert main(["resume", str(tmp_path / "nothing")]) == 2
    assert "is no run's directory" in capsys.readouterr().err


def test_other_data_are_refused(whole, tmp_path):
    import shutil

    run = tmp_path / "other"
    shutil.copytree(whole.path, run)
    file = run / "checkpoints" / "last.ckpt"
    found = content(run)
    found["mmssl"]["fingerprint"] = "0" * 16
    torch.save(found, file)
    with pytest.raises(ConfigError, match=r"data\.root: the data are not those"):
        mmssl.resume(run, ["trainer.max_steps=20"])


def test_a_truncated_checkpoint_falls_back_on_the_one_before(whole, tmp_path, capsys):
    import shutil

    run = tmp_path / "cut"
    shutil.copytree(whole.path, run)
    file = run / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:5000])
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    mmssl.resume(run)
    told = capsys.readouterr().err
    assert "is truncated or no checkpoint" in told and "going on from step 12" in told and "previous.ckpt" in told
    assert equal(state(run), state(whole.path))
    assert (run / "metrics.csv").read_bytes() == (whole.path / "metrics.csv").read_bytes()


def test_two_processes_do_not_write_one_run(whole, tmp_path):
    import shutil

    run = tmp_path / "twice"
    shutil.copytree(whole.path, run)
    words = f"from mmssl.run.resume import alone\nfrom pathlib import Path\nimport sys, time\nwith alone(Path({str(run)!r})):\n print('in', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"in\n"
        with pytest.raises(ConfigError, match=rf"is being trained by another process \(process {other.pid} on"):
            mmssl.resume(run, ["trainer.max_steps=20"])
    finally:
        other.kill()
        other.communicate()
    with resume.alone(run):
        pass


def test_a_moved_root(tmp_path):
    tree = {"root": "/old", "source": {"root": "/old/a", "other": "/older/b", "list": ["/old"]}}
    moved = resume._moved(tree, "/old", "/new")
    assert moved == {"root": "/new", "source": {"root": "/new/a", "other": "/older/b", "list": ["/new"]}}


# signals


def asked(number, words, after):
    """Sends this process a signal once it has trained some steps."""
    folder = Path(os.environ["MMSSL_RUNS"])

    def send():
        while True:
            time.sleep(0.01)
            file = next(folder.rglob("metrics.csv"), None)
            if file is not None and len(file.read_text().splitlines()) > after:
                os.kill(os.getpid(), number)
                return

    threading.Thread(target=send, daemon=True).start()
    return mmssl.pretrain(words[0], words[1:])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_with_a_checkpoint(number, mae, runs, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    words = [*mae, "trainer.max_steps=100000", "trainer.checkpoint_every=0", "trainer.log_every=1"]
    before = signal.getsignal(number)
    run = asked(number, words, 4)
    assert signal.getsignal(number) == before
    assert run.summary["status"] == "stopped"
    assert content(run.path)["global_step"] == run.summary["steps"] >= 3
    rows = [row for row in Table.read(run.path / "metrics.csv") if "train/loss" in row]
    assert int(rows[-1]["step"]) == run.summary["steps"]


def test_a_signal_outside_of_training_ends_at_once():
    with Signals() as signals:
        with pytest.raises(Stopped, match="SIGUSR2"):
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(1)
        assert signals.again


def test_a_requeued_slurm_job_finds_its_run(runs, monkeypatch, whole):
    tree = {"run": {"root": None}, "seed": 1}
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert resume.remembered(tree) is None
    resume.remember(tree, whole.path)
    assert resume.remembered(tree) is None, "the same job, not queued again: a second run"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert resume.remembered(tree) == whole.path
    assert resume.remembered(tree | {"seed": 2}) is None
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    assert resume.remembered(tree) is None


# generators and tables


def test_generators_come_back():
    import random

    import numpy as np

    def draw():
        return random.random(), float(np.random.rand()), torch.rand(3).tolist()

    generators.seed_all(3, 1, 7)
    before = generators.state()
    first = draw()
    assert draw() != first
    generators.restore(before)
    assert draw() == first
    generators.seed_all(3, 1, 7)
    assert draw() == first
    for other in ((4, 1, 7), (3, 0, 7), (3, 1, 8)):
        generators.seed_all(*other)
        assert draw() != first


def test_a_table_is_cut_back(tmp_path):
    table = Table(tmp_path / "t.csv", ["step", "loss"])
    table.add({"step": 1, "loss": 0.1 + 0.2})
    kept = (tmp_path / "t.csv").read_bytes()
    table.add({"step": 2, "loss": 1.0, "late": 5})
    again = Table(tmp_path / "t.csv", ["step", "loss"], keep=1)
    assert (tmp_path / "t.csv").read_bytes() == kept
    again.add({"step": 2, "loss": 1.0, "late": 5})
    assert Table.read(tmp_path / "t.csv")[1] == {"step": "2", "loss": "1.0", "late": "5"}
