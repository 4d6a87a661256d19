"""Norms of gradients by module, and parameters that no gradient reaches."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from torch import nn

import mmssl
from mmssl.run.gradients import idle, norms, tell_idle
from tests.small import batch, module


def stepped():
    made = module()
    made.training_step(batch()).backward()
    return made


def test_norms_are_those_of_each_module_and_of_all():
    made = stepped()
    found = norms(made)
    parts = {
        "grad/embed": made.networks["main"].embed, "grad/encoder": made.networks["main"].encoder,
        "grad/objective.pixels": made.objective["pixels"], "grad/all": made,
    }  # fmt: skip
    assert found.keys() == parts.keys()
    for name, part in parts.items():
        squares = sum(float(p.grad.double().square().sum()) for p in part.parameters() if p.grad is not None)
        assert float(found[name]) == pytest.approx(math.sqrt(squares), rel=1e-5) and squares > 0, name


def test_a_module_without_gradients_has_no_norms():
    assert norms(module()) == {}


def test_parameters_that_no_term_depends_on_are_named(capsys):
    made = stepped()
    tell_idle(made)
    assert not list(idle(made)) and capsys.readouterr().err == ""
    made.networks["main"].lost = nn.Linear(2, 30)
    tell_idle(made)
    said = capsys.readouterr().err
    assert "no gradient reached networks.main.lost.weight, networks.main.lost.bias in the first step" in said
    made.extra = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(30)])
    tell_idle(made)
    assert "and 12 more" in capsys.readouterr().err


def test_a_run_writes_norms_beside_its_losses(tmp_path):
    run = mmssl.pretrain(
        "image/mae",
        [
            "data=sample", "data.batch_size=8", "trainer.max_steps=4", "trainer.log_every=2", "trainer.accelerator=cpu",
            "optim.clip=1e-6", "evaluation.protocols=null", "evaluation.online=false", f"run.root={tmp_path}",
        ],
    )  # fmt: skip
    with (run.path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [row["step"] for row in rows] == ["1", "2", "4"]
    for row in rows:
        parts = [float(row[f"grad/{name}"]) for name in ("embed", "encoder", "objective.pixels")]
        assert float(row["grad/all"]) == pytest.approx(math.hypot(*parts), rel=1e-5)
        assert min(parts) > 1e-4, "norms are those before clipping"
    assert "Norm of the gradient" in (run.path / "report.html").read_text()
