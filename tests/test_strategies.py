"""Blocks that are computed again or compiled, batch norms over ranks: the numbers stay; and the words of a strategy."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from mmssl import ranks
from mmssl.nn.norm import BatchNorm, synchronise
from mmssl.run import strategies
from tests.small import PIXELS, VIT, batch, gradients, module

EMA = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.9}}
# dropout in a post-norm encoder, drop path in a pre-norm one
DROPPED = {
    "dropout": VIT | {"_target_": "encoder/postnorm", "dropout": 0.3},
    "drop path": VIT | {"drop_path": 0.5},
}


def taken(part, step=0):
    torch.manual_seed(step)
    loss = part.train().training_step(batch(4, 10 * step))
    loss.backward()
    return loss.detach(), gradients(part)


@pytest.mark.parametrize("encoder", DROPPED)
def test_recomputed_blocks_have_the_same_gradients(encoder):
    plain = module(encoder=DROPPED[encoder], teacher=EMA)
    again, calls = copy.deepcopy(plain), []
    block = again.networks["main"].encoder.blocks[0]
    once = block.forward
    block.forward = lambda *args, **kwargs: (calls.append(1), once(*args, **kwargs))[1]
    strategies.prepare(again, checkpoint_activations=True, compiled=False, sync_batchnorm=False)
    names = list(plain.state_dict())
    (loss, wanted), (other, found) = taken(plain), taken(again)
    assert len(calls) == 2, "once on the way there, once on the way back"
    assert torch.equal(loss, other) and list(again.state_dict()) == names
    for name, gradient in wanted.items():
        assert (gradient is None) == (found[name] is None)
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=0)
    with torch.no_grad():
        again.training_step(batch(4))
    again.eval().training_step(batch(4))
    assert len(calls) == 4, "nothing is kept where there is no way back, or no training"


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_compiled_blocks_have_the_same_losses(monkeypatch):
    """Traced and differentiated as torch.compile does it, but run by torch's own kernels: C++ takes a minute."""
    linear = {"pixels": PIXELS | {"predictor": {"_target_": "predictor/linear"}}}
    plain = module(encoder=VIT | {"depth": 1}, objective=linear, corruptor={"_target_": "corruptor/token"})
    quick, seen, compiler = copy.deepcopy(plain), [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: (seen.append(f), compiler(f, backend="aot_eager"))[1])
    strategies.prepare(quick, checkpoint_activations=True, compiled=True, sync_batchnorm=False)
    assert len(seen) == 1
    for step in range(2):
        (loss, wanted), (other, found) = taken(plain, step), taken(quick, step)
        torch.testing.assert_close(other, loss, rtol=1e-5, atol=0)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    quick.eval().training_step(batch(4))  # as it is, without the compiler


def test_foreign_batch_norms_run_over_ranks(monkeypatch):
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), BatchNormAct2d(5, act_layer=nn.SiLU)
    )
    plain = plain.double()
    ours = copy.deepcopy(plain)
    synchronise(ours)
    assert isinstance(ours[1], BatchNorm) and isinstance(ours[3], BatchNorm)
    assert list(ours.state_dict()) == list(plain.state_dict())
    # two ranks that hold the same rows, so that the sum over ranks is twice one's own
    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(ranks, "total", lambda x: 2 * x)
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    wanted, found = plain(torch.cat([x, x]))[:6], ours(x)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


def test_words_of_a_strategy():
    assert strategies.strategy("auto", 1) == "auto"
    assert isinstance(strategies.strategy("auto", 2), DDPStrategy)
    assert isinstance(strategies.strategy("ddp", 1), DDPStrategy)
    assert isinstance(strategies.strategy("fsdp", 2), strategies.Sharded)
    assert strategies.precision("ddp", "16-mixed", "cuda") == {"precision": "16-mixed"}
