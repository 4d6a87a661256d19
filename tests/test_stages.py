"""`stages:`: runs before a run, in its directory, which hand on what they made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from mmssl import api
from mmssl.cli import main
from mmssl.config.compose import ConfigError
from mmssl.config.stages import composed
from mmssl.run.directory import read_summary
from mmssl.run.loading import load

RECIPE = """
# @package _global_
meta: {{paper: none, family: [distillation], command: none, expect: none}}
defaults:
  - override /modality: image
  - _self_
stages:
  first: {first}
  second: {second}
views: {{x: []}}
masker: {{_target_: masker/random, ratio: 0.75}}
corruptor: {{_target_: corruptor/drop}}
objective:
  distill:
    _target_: term/predict
    predictor: {{_target_: predictor/transformer, dim: 32, depth: 1, heads: 2}}
    target: {{_target_: target/frozen, network: {{_target_: network/run, path: "${{stage:second}}"}}}}
    loss: {{_target_: loss/mse}}
"""
RANDOM = "{objective: {distill: {target: {_target_: target/initial}}}, seed: 7}"
FROZEN = '{objective: {distill: {target: {network: {path: "${stage:first}"}}}}}'
# nine steps in all, with checkpoints often enough to be killed between
SMALL = [
    "data=sample", "data.batch_size=32", "trainer.max_steps=3", "evaluation.online=false",
    "evaluation.limit=40", "evaluation.protocols.linear=null", "data.workers=0",
]  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    def write(first=RANDOM, second=FROZEN):
        file = tmp_path / "staged.yaml"
        file.write_text(RECIPE.format(first=first, second=second))
        return str(file)

    return write


def test_a_stage_is_the_recipe_with_values_of_its_own(recipe):
    given = ["data=sample", "encoder.depth=2", "stages.first.encoder.depth=1", "trainer.max_steps=3"]
    tree = composed(recipe(), given)
    first, second = tree["stages"]["first"], tree["stages"]["second"]
    assert list(tree["stages"]) == ["first", "second"]
    assert first["objective"]["distill"]["target"] == {"_target_": "target/initial"}
    assert second["objective"]["distill"]["target"]["network"]["path"] == "stage:first"
    assert tree["objective"]["distill"]["target"]["network"]["path"] == "stage:second"
    assert (first["seed"], second["seed"], tree["seed"]) == (7, 0, 0)
    # what the command line says wins over the recipe's stages, and what it says of one stage over that
    assert (first["encoder"]["depth"], second["encoder"]["depth"], tree["encoder"]["depth"]) == (1, 2, 2)
    assert {one["trainer"]["max_steps"] for one in (first, second, tree)} == {3}
    assert "preset" not in first["data"] and first["encoder"]["dim"] == tree["encoder"]["dim"]  # the sample's small one


def test_a_stage_may_have_a_recipe_of_its_own(recipe):
    given = ["data=sample", "encoder.dim=48", "objective.distill.predictor.depth=3", "seed=5",
             "evaluation.limit=40", "evaluation.protocols.knn=null"]  # fmt: skip
    tree = composed(recipe(first="{recipe: image/simmim, optim: {lr: 0.5}}"), given)
    first = tree["stages"]["first"]
    assert first["recipe"] == "image/simmim" and first["optim"]["lr"] == 0.5 and first["seed"] == 5
    assert first["evaluation"]["limit"] == 40 and first["evaluation"]["protocols"]["knn"] is None
    assert first["encoder"]["dim"] != 48 and tree["encoder"]["dim"] == 48


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (FROZEN, RANDOM, r"stages\.first\.objective.*path: there is no stage 'first' before this one"),
        (RANDOM, FROZEN.replace("first", "fist"), r"there is no stage 'fist' before this one.* 'first'"),
        ("3", FROZEN, r"stages\.first has to hold the values that this stage changes"),
        ("{optim: {rules: {'heads.*': {freeze: 1}}}}", FROZEN, r"stages\.first: the key 'heads\.\*' is no plain name"),
        ("{objectiv: {}}", FROZEN, r"unknown key 'objectiv'.*objective"),
    ],
)
def test_what_does_not_fit_is_refused(recipe, first, second, message):
    with pytest.raises(ConfigError, match=message):
        api.resolve(recipe(first, second), ["data=sample"])


def test_a_part_of_a_stage_is_checked(recipe):
    wrong = RANDOM.replace("target/initial", "target/inital")
    with pytest.raises(ConfigError, match=r"'target/inital'; did you mean 'target/initial'"):
        api.resolve(recipe(wrong), ["data=sample"])


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_each_stage_hands_on_what_it_made(recipe, runs, capsys):
    run = api.pretrain(recipe(), SMALL)
    assert run.summary["status"] == "completed" and run.summary["steps"] == 3 and "knn" in run.summary["eval"]
    for name in ("first", "second"):
        stage = run.path / "stages" / name
        assert read_summary(stage)["status"] == "completed" and (stage / "report.html").is_file()
    said = yaml.safe_load((run.path / "config.yaml").read_text())
    path = said["objective"]["distill"]["target"]["network"]["path"]
    assert path == str(run.path / "stages" / "second")
    # the target of the run is the encoder of its second stage, which is a usable run itself
    assert load(path).network.state_dict().keys() == load(run.path).network.state_dict().keys()
    # a plain run of the stage's configuration ends in the same bits
    alone = api.pretrain(
        recipe(second="{}"), [*SMALL, "seed=7", "stages={}", "objective.distill.target._target_=target/initial"]
    )
    first, other = weights(run.path / "stages" / "first"), weights(alone.path)
    assert first.keys() == other.keys() and all(torch.equal(first[key], other[key]) for key in first)
    # the directory is listed once, and is evaluated as any run
    assert main(["runs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["runs"]
    assert sum(str(run.path.name) in one["path"] for one in listed) == 1
    assert api.evaluate(str(run.path), ["evaluation.limit=40"], ["knn"])["eval"]["knn"]["n_test"] == 40


def killed_in(name, command, runs):
    """Starts a run and kills it while it is in a stage; gives its directory."""
    before = set(runs.glob("*/*/*"))
    process = subprocess.Popen([sys.executable, "-m", "mmssl.cli", "pretrain", *command], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = [run for run in runs.glob("*/*/*") if (run / "stages" / name / "checkpoints/last.ckpt").exists()]
            if fresh := set(found) - before:
                os.kill(process.pid, signal.SIGKILL)
                return fresh.pop()
            assert process.poll() is None, "the run ended before it was killed"
            time.sleep(0.02)
        raise AssertionError(f"no checkpoint of stage {name} in two minutes")
    finally:
        process.kill()
        process.wait()


def completed(*words):
    """The directory of a run in a process of its own, which has computed nothing before: that may turn the last bit."""
    done = subprocess.run([sys.executable, "-m", "mmssl.cli", *words, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert summary["status"] == "completed"
    return Path(summary["run"])


def test_a_killed_run_goes_on_in_its_stage(recipe, runs):
    file = recipe()
    often = [*SMALL, "trainer.checkpoint_every=1"]
    whole = completed("pretrain", file, *often)
    run = killed_in("second", [file, *often], runs)
    first = (run / "stages" / "first" / "summary.json").stat().st_mtime_ns
    assert read_summary(run)["status"] == "running" and read_summary(run)["stage"] == "second"
    assert completed("resume", str(run)) == run
    assert (run / "stages" / "first" / "summary.json").stat().st_mtime_ns == first, "a completed stage was begun again"
    for part in ("stages/first", "stages/second", "."):
        ours, theirs = weights(run / part), weights(whole / part)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), part


def test_a_stage_that_diverges_ends_the_run(recipe, runs, capsys):
    run = api.pretrain(recipe(), [*SMALL, "stages.second.optim.base_lr=null", "stages.second.optim.lr=1e30"])
    assert run.summary["status"] == "diverged" and run.summary["stage"] == "second"
    assert read_summary(run.path)["status"] == "diverged"
    assert not (run.path / "checkpoints" / "last.ckpt").exists()
    assert main(["report", str(run.path)]) in (0, 2)


@pytest.mark.requires("fsdp")
def test_stages_of_two_processes(recipe, runs):
    run = api.pretrain(recipe(), [*SMALL, "trainer=ddp", "trainer.devices=2"])
    assert run.summary["status"] == "completed"
    assert read_summary(run.path / "stages" / "second")["status"] == "completed"


@pytest.mark.requires("fsdp")
def test_stages_of_processes_that_were_started_elsewhere(recipe, runs):
    """Two groups of processes one after the other in the same two processes."""
    words = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "mmssl.cli", "pretrain", recipe(), *SMALL]
    done = subprocess.run([sys.executable, *words, "trainer=ddp"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = list(runs.glob("*/*/*/summary.json"))
    assert len(found) == 1 and json.loads(found[0].read_text())["status"] == "completed"
