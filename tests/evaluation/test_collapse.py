"""Every kind of collapse, caused on purpose in a small run, is seen and named."""

from __future__ import annotations

import pytest
import torch

from mmssl.evaluation.collapse import findings
from mmssl.evaluation.health import verdict
from tests.small import batch, module

PLAIN = {"masker": None, "corruptor": None, "views": {"a": [], "b": []}}
PROJ = {"proj": {"_target_": "head/mlp", "dims": [32, 16], "norm": "layer"}}
MANY = {"proj": {"_target_": "head/prototypes", "dims": [32, 16], "count": 32}}
EMA = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.9}}


def trained(term, heads=PROJ, teacher=None, steps=120, lr=3e-3):
    """The signals at the end of a short run on noise images."""
    torch.manual_seed(0)
    part = module(objective={"term": term}, heads=heads, teacher=teacher, data={"batch_size": 16}, **PLAIN)
    part.train()
    optimizer = torch.optim.AdamW([p for p in part.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        part.training_step(batch(16, 16 * (step % 4), ("a", "b"))).backward()
        optimizer.step()
        if part.teacher is not None:
            part.teacher.follow(0.0)
    signals = {name: float(value) for name, value in part.latest.items() if "/" in name}
    return signals | {"term/loss": float(part.latest["term"])}


def of_set(kind, **more):
    return {"_target_": "term/set", "head": "proj", "loss": {"_target_": f"set/{kind}"} | more}


def prototypes(**more):
    return {
        "_target_": "term/match", "head": "proj", "loss": {"_target_": "loss/soft_ce"},
        "normalize": {"_target_": "norm/center"} | more,
    }  # fmt: skip


def named(signals):
    """The verdict and its causes, as a run of many steps with features in order would get them."""
    rows = [{"step": 50.0 * i, "loss": 2.0 - 0.01 * i} for i in range(20)]
    found = verdict(rows, {"feature_std": 0.2, "rankme": 20.0}, 32, signals=signals)
    return found.verdict, " ".join(found.causes), " ".join(found.remedies)


def test_without_a_stop_gradient_answers_become_the_same():
    word, cause, remedy = named(trained(of_set("invariance")))
    assert word == "collapsed" and "Answers of term 'term' are nearly the same" in cause and "stop-gradient" in remedy


def test_without_a_variance_term_answers_become_the_same():
    word, cause, remedy = named(trained(of_set("vicreg", variance=0.0)))
    assert word == "collapsed" and "nearly the same" in cause and "variance term" in remedy
    assert named(trained(of_set("vicreg")))[0] == "healthy"


def test_behind_a_batch_norm_answers_shrink_to_a_point_instead():
    heads = {"proj": {"_target_": "head/mlp", "dims": [32, 16]}}
    word, cause, remedy = named(trained(of_set("vicreg", variance=0.0, covariance=0.0), heads, steps=250, lr=1e-2))
    assert word == "collapsed" and "shrink to a point" in cause and "variance" in remedy
    assert named(trained(of_set("vicreg"), heads))[0] == "healthy"


def test_without_centring_one_prototype_takes_all():
    word, cause, remedy = named(trained(prototypes(momentum=1.0), MANY, EMA, steps=400, lr=1e-2))
    assert word == "collapsed" and "all samples the same target" in cause and "norm/center" in remedy


def test_too_high_a_temperature_makes_targets_say_nothing():
    word, cause, remedy = named(trained(prototypes(temperature=5.0), MANY, EMA))
    assert word == "collapsed" and "say nothing" in cause and "normalize.temperature" in remedy


def test_too_high_a_temperature_leaves_the_loss_at_chance():
    word, cause, remedy = named(trained(of_set("ntxent", temperature=200.0)))
    assert word == "warning" and "at its chance value" in cause and "temperature" in remedy
    assert named(trained(of_set("ntxent", temperature=0.5)))[0] == "healthy"


def test_a_teacher_that_never_follows():
    word, cause, remedy = named({"teacher/ema_distance": 1.5})
    assert word == "warning" and "does not follow" in cause and "teacher.momentum" in remedy


@pytest.mark.parametrize(
    "signals",
    [
        {"t/spread": 0.6, "t/entropy": 0.5, "t/usage": 0.9, "t/chance": 4.0, "t/loss": 2.0},
        {"t/spread": float("nan")},
        {},
    ],
)
def test_nothing_is_said_of_a_run_in_order(signals):
    assert findings(signals) == []
