"""Parameter groups, rates and steps of the optimizers as recipes name them."""

from __future__ import annotations

import pytest
import torch

from mmssl.config.compose import ConfigError
from mmssl.parts.optim import adamw, lars, peak_rate, sgd
from tests.small import VIT, batch, module

MAKERS = {"adamw": adamw, "lars": lars, "sgd": sgd}


def treatment(optim, part, batch_size=256):
    """Rate and decay of every parameter by name, at the start."""
    optimizer = optim.build(part, batch_size)
    names = {id(p): name for name, p in part.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in optimizer.param_groups)
    return found


def test_peak_rate_scales_with_the_batch():
    assert peak_rate(None, 1.5e-4, 256, 4096) == pytest.approx(2.4e-3)  # MAE
    assert peak_rate(None, 1e-4, 512, 2048) == pytest.approx(4e-4)  # SimMIM
    assert peak_rate(1e-3, None, 256, 4096) == 1e-3
    assert peak_rate(0.0, None, 256, 4096) == 0.0


@pytest.mark.parametrize(("lr", "base_lr"), [(1e-3, 1e-4), (None, None)])
def test_exactly_one_rate_is_given(lr, base_lr):
    message = (
        rf"[Ee]xactly one of optim\.lr .* and optim\.base_lr .*got optim\.lr={lr} and optim\.base_lr={base_lr}.*=null"
    )
    with pytest.raises(ValueError, match=message):
        peak_rate(lr, base_lr, 256, 64)
    for make in MAKERS.values():
        with pytest.raises(ValueError, match=message):
            make(lr=lr, base_lr=base_lr)
    with pytest.raises(ConfigError, match=message):
        module(optim={"_target_": "optim/adamw", "lr": lr, "base_lr": base_lr})


@pytest.mark.parametrize("name", MAKERS)
def test_norms_and_biases_are_not_decayed(name):
    part = module()
    found = treatment(MAKERS[name](lr=0.1, weight_decay=0.3), part)
    assert set(found) == {n for n, p in part.named_parameters() if p.requires_grad}
    for key, (rate, decay) in found.items():
        free = key.endswith(".bias") or ".norm" in key
        assert (rate, decay) == (0.1, 0.0 if free else 0.3), key
    assert found["objective.pixels.predictor.mask_token"][1] == 0.3  # MAE decays its tokens
    assert found["networks.main.encoder.prefix"][1] == 0.3


def test_patterns_are_not_decayed():
    found = treatment(adamw(lr=0.1, weight_decay=0.3, no_decay=["*mask_token", "*encoder.prefix"]), module())
    assert found["objective.pixels.predictor.mask_token"][1] == found["networks.main.encoder.prefix"][1] == 0.0
    assert found["networks.main.embed.proj.weight"][1] == 0.3


@pytest.mark.parametrize("where", ["no_decay", "rules"])
def test_a_pattern_has_to_match(where):
    value = ["*msk*"] if where == "no_decay" else {"*msk*": {"lr": 0.1}}
    with pytest.raises(ValueError, match=r"optim: the pattern '\*msk\*' matches no trainable parameter"):
        adamw(lr=0.1, **{where: value}).build(module(), 256)


def test_rules_give_their_own_rate_and_decay():
    rules = {"objective.*.head.*": {"lr": 10.0}, "objective.*": {"lr": 0.5, "weight_decay": 0.7}}
    found = treatment(adamw(lr=0.1, weight_decay=0.3, rules=rules), module())
    assert found["objective.pixels.predictor.head.weight"] == pytest.approx((1.0, 0.3))  # the first match counts
    assert found["objective.pixels.predictor.head.bias"] == pytest.approx((1.0, 0.0))
    assert found["objective.pixels.predictor.embed.weight"] == pytest.approx((0.05, 0.7))
    assert found["objective.pixels.predictor.norm.weight"] == pytest.approx((0.05, 0.7))
    assert found["networks.main.embed.proj.weight"] == (0.1, 0.3)


def test_layer_decay_is_beits():
    """Factor d^(L + 1 - i): i = 0 for embedding and tokens, b + 1 for block b, none behind the blocks."""
    part = module(encoder=VIT | {"depth": 3, "position": {"_target_": "position/learned"}})
    found = treatment(adamw(lr=1.0, layer_decay=0.5), part)
    expected = {
        "networks.main.embed.proj.weight": 4, "networks.main.encoder.prefix": 4, "networks.main.encoder.position.table": 4,
        "networks.main.encoder.blocks.0.attn.qkv.weight": 3, "networks.main.encoder.blocks.1.norm1.weight": 2,
        "networks.main.encoder.blocks.2.mlp.fc2.bias": 1, "networks.main.encoder.norm.weight": 0,
        "objective.pixels.predictor.blocks.0.attn.qkv.weight": 0, "objective.pixels.predictor.embed.weight": 0,
    }  # fmt: skip
    for key, power in expected.items():
        assert found[key][0] == pytest.approx(0.5**power), key


def test_schedules_of_rate_and_decay():
    part = module()
    optim = adamw(
        base_lr=0.1, base_batch=64, weight_decay=lambda p: 0.04 + 0.36 * p, schedule=lambda p: 1 - p,
        rules={"objective.*": {"lr": 0.1}},
    )  # fmt: skip
    optimizer = optim.build(part, 128)
    for progress in (0.0, 0.25, 1.0):
        rate = optim.set(optimizer, progress)
        assert rate == pytest.approx(0.2 * (1 - progress))
        rates = {round(g["lr"], 9) for g in optimizer.param_groups}
        assert rates == {round(0.2 * (1 - progress), 9), round(0.02 * (1 - progress), 9)}
        assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.04 + 0.36 * progress}


def test_frozen_parameters_are_left_out():
    part = module()
    part.networks["main"].embed.requires_grad_(False)
    assert not any("embed.proj" in name for name in treatment(adamw(lr=0.1), part))


def test_parameters_of_one_treatment_share_a_group():
    assert len(adamw(lr=0.1).build(module(), 256).param_groups) == 2


@pytest.mark.parametrize("name", MAKERS)
def test_a_step_lowers_the_loss(name):
    part = module(data={"batch_size": 4})
    optim = MAKERS[name](lr={"adamw": 1e-3, "lars": 1.0, "sgd": 1e-2}[name])
    optimizer = optim.build(part, 4)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = part.training_step(batch())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_adamw_takes_a_step_as_written_in_its_paper():
    part = module()
    optim = adamw(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    optimizer = optim.build(part, 256)
    weight = part.networks["main"].embed.proj.weight
    w, m, v = weight.detach().clone().double(), 0.0, 0.0
    for t in (1, 2, 3):
        g = torch.full_like(weight, 0.1 * t)
        weight.grad = g.clone()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * g.double(), 0.9 * v + 0.1 * g.double() ** 2
        w = w * (1 - 0.01 * 0.1) - 0.01 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-6)
        torch.testing.assert_close(weight.detach().double(), w, rtol=1e-5, atol=1e-6)


def test_defaults_of_recipes():
    assert type(adamw(lr=0.1).build(module(), 4)).__name__ == "AdamW"
    assert adamw(lr=0.1).build(module(), 4).defaults["betas"] == (0.9, 0.999)
    assert sgd(lr=0.1).build(module(), 4).defaults["momentum"] == 0.9
    assert lars(lr=0.1).build(module(), 4).defaults["trust"] == 0.001
