"""Targets against their formulas; they never carry a gradient."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from mmssl.config import build
from mmssl.masks import Mask
from tests.small import FACTS, PIXELS, batch, module

TEACHER = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.9}}
FROZEN = {"_target_": "network/timm", "name": "vit_tiny_patch16_224", "pretrained": False}


def pixels(**target):
    return PIXELS | {"target": target, "predictor": {"_target_": "predictor/linear"}, "at": "all"}


def answered(part):
    """The target of the term at every token, with its query."""
    step = part.begin(batch())
    term = part.objective["pixels"]
    query, _ = term.predict(step)[0]
    return step["x"], query, term.target(step["x"], query)


def test_raw_values_are_the_normalised_pixels():
    part = module(objective={"pixels": pixels(_target_="target/raw")}, corruptor=None)
    look, _, target = answered(part)
    mean, std = (torch.tensor(FACTS[name]).view(3, 1, 1) for name in ("mean", "std"))
    image = (batch()["x"].data - mean) / std
    for place in (0, 5, 15):
        row, column = place // 4 * 8, place % 4 * 8
        patch = image[:, :, row : row + 8, column : column + 8].permute(0, 2, 3, 1).flatten(1)
        torch.testing.assert_close(target[:, place], patch, rtol=1e-4, atol=1e-5)
    assert torch.equal(target, look.tokens.raw)


def test_normalised_raw_values_have_unit_variance():
    part = module(objective={"pixels": pixels(_target_="target/raw", normalize=True)}, corruptor=None)
    look, query, target = answered(part)
    raw = look.tokens.raw
    expected = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, keepdim=True, unbiased=True) + 1e-6).sqrt()
    torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(target.var(-1), torch.ones(4, 16), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(part.objective["pixels"].target.restore(query, target), raw, rtol=1e-4, atol=1e-4)


def test_a_flat_patch_is_normalised_to_zero():
    part = module(objective={"pixels": pixels(_target_="target/raw", normalize=True)})
    look, query, _ = answered(part)
    flat = query.but(raw=torch.full_like(query.raw, 3.0))
    assert not part.objective["pixels"].target(look, flat).any()


def test_unnormalised_values_are_restored_as_they_are():
    part = module(objective={"pixels": pixels(_target_="target/raw")})
    prediction = torch.randn(1, 2, 3)
    assert part.objective["pixels"].target.restore(None, prediction) is prediction


def test_teachers_features_of_the_whole_view():
    part = module(
        objective={"pixels": pixels(_target_="target/teacher") | {"at": "hidden", "predictor": PIXELS["predictor"]}},
        teacher=TEACHER,
    )  # fmt: skip
    for parameter in part.teacher.twins["main"].embed.parameters():
        parameter.data.mul_(1.2)
    _, query, target = answered(part)
    x = part.teacher.twins["main"](batch()["x"]).x
    expected = torch.stack([x[i, query.index[i]] for i in range(4)])
    torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-5)
    assert not target.requires_grad


def test_a_training_step_gives_the_teacher_no_gradient():
    part = module(
        objective={"pixels": PIXELS | {"target": {"_target_": "target/teacher"}}}, teacher=TEACHER
    )  # fmt: skip
    part.training_step(batch()).backward()
    assert all(p.grad is None and not p.requires_grad for p in part.teacher.parameters())


@pytest.fixture
def mimic():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return module(objective={"pixels": pixels(_target_="target/frozen", network=FROZEN)}, corruptor=None)


def test_frozen_features_are_timms(mimic):
    import timm

    _, _, target = answered(mimic)
    network = mimic.objective["pixels"].target._network[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, global_pool="", img_size=32, patch_size=8
        ).eval()
    known = timm.get_pretrained_cfg("vit_tiny_patch16_224")
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (known.mean, known.std))
    with torch.no_grad():
        expected = model((batch()["x"].data - mean) / std)[:, 1:]
    assert network.dim == 192
    torch.testing.assert_close(target, expected, rtol=1e-3, atol=1e-3)


def test_a_frozen_network_is_no_part_of_the_checkpoint(mimic):
    assert not any("_network" in name or "target" in name for name in mimic.state_dict())
    assert not any("target" in name for name, _ in mimic.named_parameters())
    network = mimic.objective["pixels"].target._network[0]
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    mimic.train()
    assert not network.training
    mimic.double()
    assert all(p.dtype == torch.float64 for p in network.parameters())  # it moves with the module
    assert mimic.objective["pixels"].predictor.head.out_features == 192


def test_a_random_frozen_network_warns():
    with pytest.warns(UserWarning, match="random weights, so it teaches nothing; give weights=FILE"):
        module(objective={"pixels": pixels(_target_="target/frozen", network=FROZEN)}, corruptor=None)


def test_a_frozen_network_on_another_grid_is_refused(mimic):
    class Other(nn.Module):
        dim = 192

        def forward(self, view):
            return build.network(
                {"tokenizer": {"_target_": "tokenizer/image", "size": 32, "patch": 16},
                 "encoder": {"_target_": "encoder/vit", "dim": 192, "depth": 1, "heads": 3}}, FACTS,
            )(view)  # fmt: skip

    mimic.objective["pixels"].target._network = (Other(),)
    with pytest.raises(
        ValueError, match=r"target/frozen: the frozen network has tokens on \(2, 2\), the student on \(4, 4\)"
    ):
        answered(mimic)


@pytest.mark.parametrize("kind", ["target/teacher", "target/frozen"])
def test_rows_of_several_masks_read_their_own_sample(kind):
    target = {"_target_": kind} | ({"network": FROZEN} if kind == "target/frozen" else {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = module(objective={"pixels": PIXELS | {"target": target}})
    order = torch.rand(8, 16, generator=torch.Generator().manual_seed(0)).argsort(1)
    targets = torch.stack([order < 2, (order >= 2) & (order < 4)], 1)
    row = torch.tensor([3, 0, 0, 1, 1, 2, 2, 3])
    part.looks["x"].masker = lambda *_: Mask(order >= 8, targets, row, 8, 2)
    _, query, found = answered(part)
    assert found.shape[:2] == (16, 2)
    whole = module_features(part)
    for i in range(16):
        torch.testing.assert_close(found[i], whole[row[i // 2], query.index[i]], rtol=1e-3, atol=1e-4)


def module_features(part):
    """The target at all places of all samples, computed without masks."""
    target = part.objective["pixels"].target
    look = part.begin(batch())["x"]
    look.__dict__["mask"] = Mask(torch.ones(4, 16, dtype=torch.bool), torch.ones(4, 1, 16, dtype=torch.bool))
    return target(look, look.tokens)


@pytest.mark.parametrize("how", [None, "layer", "instance"])
def test_the_mean_of_the_teachers_layers(how):
    target = {"_target_": "target/teacher", "layers": ["block.0", "block.1"], "layer_norm": how}
    part = module(objective={"pixels": PIXELS | {"target": target}}, teacher=TEACHER)
    _, query, found = answered(part)
    taps = part.teacher.twins["main"](batch()["x"], ("block.0", "block.1")).taps
    layers = []
    for tap in taps.values():
        x = tap[:, 1:].detach()  # the class token stands in front
        axis = {"layer": -1, "instance": 1}.get(how)
        if axis is not None:
            x = (x - x.mean(axis, keepdim=True)) / (x.var(axis, keepdim=True, unbiased=False) + 1e-5).sqrt()
        layers.append(x)
    expected = torch.stack([(layers[0] + layers[1])[i, query.index[i]] / 2 for i in range(4)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_layers_that_the_encoder_lacks_are_refused():
    target = {"_target_": "target/teacher", "layers": ["block.9"]}
    with pytest.raises(ValueError, match=r"reads layers \['block.9'\]"):
        module(objective={"pixels": PIXELS | {"target": target}})


def test_the_initial_network_stays_as_it_was():
    part = module(objective={"pixels": PIXELS | {"target": {"_target_": "target/initial"}}})
    _, query, before = answered(part)
    x = part.networks["main"](batch()["x"]).x.detach()
    torch.testing.assert_close(before, torch.stack([x[i, query.index[i]] for i in range(4)]), rtol=1e-4, atol=1e-5)
    for parameter in part.networks.parameters():
        parameter.data.mul_(2.0)
    assert torch.equal(answered(part)[2], before)
    assert not any(p.requires_grad for p in part.objective["pixels"].target.parameters())
