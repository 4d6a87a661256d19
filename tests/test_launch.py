"""One command, several processes: the same run as one process, on one machine, in sweeps, through signals and losses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import mmssl
from mmssl.config.compose import ConfigError
from mmssl.run import launch
from mmssl.run.metrics import Table
from mmssl.run.trainer import settings
from tests.small import photos_in

pytestmark = pytest.mark.requires("fsdp")
WORDS = [
    "image/mae", "data=folder", "data.size=16", "tokenizer.patch=4", "data.batch_size=8", "encoder.dim=24",
    "encoder.depth=1", "encoder.heads=2", "optim.base_lr=null", "optim.lr=1e-3", "trainer.log_every=1",
    "objective.pixels.predictor.dim=16", "objective.pixels.predictor.depth=1", "objective.pixels.predictor.heads=2",
    "trainer.accelerator=cpu", "trainer.max_steps=12", "trainer.checkpoint_every=3",
]  # fmt: skip
LONG = ["trainer.max_steps=100000", "trainer.checkpoint_every=4"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return [*WORDS, f"data.root={photos_in(tmp_path_factory.mktemp('photos'))}"]


def start(said, folder):
    """`mmssl ...` in the background, its runs and temporary files in a folder."""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mmssl.cli", *said], stdout=log, stderr=log,
            env=os.environ | {"MMSSL_RUNS": str(folder / "runs"), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def only(folder):
    return next((folder / "runs").glob("*/*/*/config.yaml")).parent


def trained(process, folder, step):
    """Waits until a run has taken some steps."""
    for _ in range(6000):
        file = next((folder / "runs").glob("*/*/*/metrics.csv"), None)
        if file is not None and (rows := Table.read(file)) and int(rows[-1]["step"]) >= step:
            return
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.02)
    raise AssertionError((folder / "log").read_text())


def losses(run):
    return [float(row["train/loss"]) for row in Table.read(run / "metrics.csv") if "train/loss" in row]


def ranks(folder):
    return [int(file.read_text()) for file in sorted(folder.glob("mmssl-*/pid.*"))]


def status(run):
    return json.loads((run / "summary.json").read_text())["status"]


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory):
    return mmssl.pretrain(words[0], [*words[1:], f"run.root={tmp_path_factory.mktemp('alone')}"])


def test_a_sweep_of_jobs_in_two_processes_each(words, alone, tmp_path):
    """Ranks get one frozen configuration: none of them is a sweep, and each job has one directory."""
    said = ["pretrain", "-m", *words, "seed=0,1", "trainer.devices=2"]
    assert start(said, tmp_path).wait(timeout=300) == 0, (tmp_path / "log").read_text()
    found = sorted(file.parent for file in tmp_path.rglob("config.yaml"))
    assert len(found) == 2 and [status(run) for run in found] == ["completed"] * 2
    assert len(list(tmp_path.rglob("sweep.json"))) == 1
    assert losses(found[0]) == pytest.approx(losses(alone.path), rel=1e-5)
    assert losses(found[1]) != pytest.approx(losses(alone.path), rel=1e-3)
    assert not list(tmp_path.glob("mmssl-*")), "what the ranks were told is gone"


def test_a_lost_rank_ends_all_and_loses_nothing(words, tmp_path):
    process = start(["pretrain", *words, *LONG, "trainer.devices=2"], tmp_path)
    trained(process, tmp_path, 9)
    os.kill(ranks(tmp_path)[1], signal.SIGKILL)
    assert process.wait(timeout=180) == 1
    run, told = only(tmp_path), (tmp_path / "log").read_text()
    assert f"rank 1 ended with SIGKILL; its own words stand above. Nothing before the last checkpoint is lost: mmssl resume {run}" in told  # fmt: skip
    assert status(run) == "failed"
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] >= 8 and len(kept["mmssl"]["generators"]) == 2


def test_ranks_start_again_from_the_last_checkpoint(words, tmp_path):
    slow = ["trainer.max_steps=60", "trainer.checkpoint_every=4", "trainer.devices=2"]
    process = start(["pretrain", *words, *slow, "trainer.restarts=1"], tmp_path)
    trained(process, tmp_path, 10)
    os.kill(ranks(tmp_path)[0], signal.SIGKILL)
    assert process.wait(timeout=200) == 0, (tmp_path / "log").read_text()
    run = only(tmp_path)
    assert status(run) == "completed"
    resumed = json.loads((run / "environment.json").read_text())["resumed"]
    assert len(resumed) == 1 and resumed[0]["step"] >= 8
    steps = [int(row["step"]) for row in Table.read(run / "metrics.csv") if "train/loss" in row]
    assert steps == list(range(1, 61)), "no row twice, none missing"


@pytest.mark.parametrize("pieces", ["sync", "async"])
def test_pieces_of_two_ranks_go_on_on_one(words, alone, tmp_path, pieces):
    """FSDP on two ranks, killed; its pieces are gone on from in one process, to the end of one that was left alone."""
    said = [*words, "trainer=fsdp", "trainer.devices=2", f"trainer.sharded_checkpoints={pieces}"]
    process = start(["pretrain", *said, "trainer.checkpoint_every=1", "trainer.max_steps=12"], tmp_path)
    trained(process, tmp_path, 6)
    for rank in ranks(tmp_path):
        os.kill(rank, signal.SIGKILL)
    process.wait(timeout=180)
    run = only(tmp_path)
    assert not (run / "checkpoints" / "last.ckpt").exists()
    with pytest.raises(ConfigError, match=r"is in pieces, which trainer\.strategy=fsdp reads"):
        mmssl.resume(run, ["trainer.devices=1", "trainer.strategy=auto", "trainer.sharded_checkpoints=null"])
    process = start(["resume", str(run), "trainer.devices=1"], tmp_path)
    assert process.wait(timeout=180) == 0, (tmp_path / "log").read_text()
    assert losses(run) == pytest.approx(losses(alone.path), rel=1e-5)
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    one, other = (mmssl.load(path)(pixels).pool() for path in (run, alone.path))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="is completed"):
        mmssl.resume(run)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_stops_all_ranks_after_one_step_and_one_process_goes_on(words, number, tmp_path):
    process = start(["pretrain", *words, *LONG, "trainer.checkpoint_every=0", "trainer.devices=2"], tmp_path)
    trained(process, tmp_path, 5)
    process.send_signal(number)
    assert process.wait(timeout=180) == 1
    run = only(tmp_path)
    assert status(run) == "stopped", (tmp_path / "log").read_text()
    step = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert step == json.loads((run / "summary.json").read_text())["steps"] == len(losses(run))
    if number == signal.SIGUSR1:
        process = start(["resume", str(run), "trainer.devices=1"], tmp_path)
        trained(process, tmp_path, step + 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=180) == 1 and status(run) == "stopped"
        assert [int(row["step"]) for row in Table.read(run / "metrics.csv") if "train/loss" in row] == list(range(1, len(losses(run)) + 1))  # fmt: skip


def test_what_a_rank_refuses_is_said_once(words, tmp_path):
    process = start(["pretrain", *words, "data.batch_size=41", "trainer.devices=1"], tmp_path)
    assert process.wait(timeout=180) == 2
    alone = (tmp_path / "log").read_text()
    (tmp_path / "log").unlink()
    process = start(["pretrain", *words, "data.batch_size=42", "trainer.devices=2"], tmp_path)
    assert process.wait(timeout=180) == 2
    told = (tmp_path / "log").read_text()
    assert alone.count("larger than the train split") == told.count("larger than the train split") == 1
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize(
    ("environment", "given", "message"),
    [
        ({}, {"nodes": 2}, "one command cannot start processes on other machines"),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, {"devices": 2}, "trainer.devices=2 trainer.nodes=2"),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_JOB_ID": "9", "SLURM_STEP_TASKS_PER_NODE": "2"}, {"devices": 1}, "trainer.devices=2 trainer.nodes=1"),
    ],
)  # fmt: skip
def test_processes_that_do_not_fit_the_settings(monkeypatch, environment, given, message):
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | environment)
    with pytest.raises(ConfigError, match=message):
        launch.fitted(settings(**given))


def test_a_batch_script_is_one_process_and_its_step_is_several(monkeypatch):
    job = {"SLURM_JOB_ID": "9", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | job)
    assert not launch.joined() and launch.rank() == 0
    step = {"SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
    monkeypatch.setattr(os, "environ", os.environ | step | {"SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(x1)"})
    assert launch.joined() and launch.rank() == 1
    found = launch.fitted(settings(devices="auto"))
    assert (found.devices, found.nodes) == (2, 1)
    assert os.environ["WORLD_SIZE"] == "2" and os.environ["MASTER_ADDR"] == "127.0.0.1"
