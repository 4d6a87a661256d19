"""Every shipped recipe takes one step on its shipped data: a finite loss, and a gradient for all that trains."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import mmssl
from mmssl.config.files import chain, recipes

# by recipe, patterns of parameters that have no gradient in every step, and why
IDLE: dict[str, tuple[str, ...]] = {}


def small(name):
    """A batch of a few samples, where the data are not one large graph."""
    return [] if name.startswith("graph/") else ["data.batch_size=4"]


def steps():
    """Every recipe, and those of its stages that train and are no recipe of their own."""
    for name in recipes():
        yield pytest.param(name, None, id=name)
        for stage, said in chain(name)[-1][1].get("stages", {}).items():
            if not {"fit", "recipe"} & set(said):
                yield pytest.param(name, stage, id=f"{name}-{stage}")


@pytest.mark.parametrize(("name", "stage"), [*steps()])
def test_every_recipe_takes_a_step(name, stage):
    torch.set_num_threads(1)  # the other processes of the tests have the other cores
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random teachers say so
        module, data = mmssl.build(name, ["data=sample", *small(name)], stage)
    module.train()
    batch = data.batch([(0, i) for i in range(data.batch_size)])
    found = {}
    for key, term in module.objective.items():
        term.register_forward_hook(lambda _, given, out, key=key: found.update({key: (given[0], out[1])}))
    loss = module.training_step(batch)
    loss.backward()
    for key, term in module.objective.items():  # what is known before anything is encoded
        step, weight = found[key]
        assert not term.count(step).is_floating_point()
        torch.testing.assert_close(term.count(step), weight.detach(), check_dtype=False)
    assert math.isfinite(float(loss.detach()))
    idle = [key for key, p in module.named_parameters() if p.requires_grad and p.grad is None]
    idle = [key for key in idle if not any(key.startswith(known) for known in IDLE.get(name, ()))]
    assert not idle, "these would stop training on several ranks"
    if module.teacher is not None:
        module.teacher.follow(0.5)
