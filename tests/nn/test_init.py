"""Initialisation against the statistics of the authors' own models (tests/golden/init.json), over the same twenty seeds."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from mmssl.nn.init import scale_by_depth_, trunc_normal_, xavier_
from mmssl.nn.network import LinearEmbed
from mmssl.parts.encoders.vit import ViT
from mmssl.parts.formats import crossmae, mae, simmim
from mmssl.types import TokenSpec
from tests.small import CROSS, DECODER, PIXELS, module

GOLDEN = Path(__file__).parents[1] / "golden"
VIT = {"_target_": "encoder/vit", "dim": 48, "depth": 3, "heads": 4}
BEIT = {"_target_": "encoder/beit", "dim": 48, "depth": 2, "heads": 4}
RAW = {"target": {"_target_": "target/raw"}}
MODELS = {
    "mae": (mae, {"encoder": VIT, "objective": {"pixels": PIXELS | {"predictor": DECODER | {"depth": 2}}}}),
    "crossmae": (
        crossmae,
        {"encoder": VIT | {"final_norm": False}, "objective": {"pixels": PIXELS | {"predictor": CROSS | {"dim": 32, "depth": 3}}}},
    ),
    "simmim_vit": (
        simmim,
        {"encoder": BEIT, "masker": {"_target_": "masker/units"}, "corruptor": {"_target_": "corruptor/token", "cut": 0.02},
         "objective": {"pixels": PIXELS | RAW | {"predictor": {"_target_": "predictor/linear"}}}},
    ),
}  # fmt: skip
SEEDS = 20
# what differs, and how: the embedding's bias is zero as the paper says; CrossMAE's mixing weights are normal as its text says
DIFFERS = {
    ("mae", "patch_embed.proj.bias"): (0.0, 0.0), ("crossmae", "patch_embed.proj.bias"): (0.0, 0.0),
    ("crossmae", "wfm.linear.weight"): (0.0, 0.5),
}  # fmt: skip


@functools.cache
def golden(name):
    shapes = json.loads((GOLDEN / f"{name}.json").read_text())["parameters"]
    shapes = shapes.items() if isinstance(shapes, dict) else shapes
    shapes = {entry[0]: entry[1]["shape"] if isinstance(entry[1], dict) else entry[1] for entry in shapes}
    return json.loads((GOLDEN / "init.json").read_text())["statistics"][name], shapes


@functools.cache
def official(name):
    """Our initial weights in the official layout, (seeds, elements) by official name: converters say what goes where."""
    _, shapes = golden(name)
    convert, changes = MODELS[name]
    total, labelled, spans = 0, {}, {}
    for key, shape in shapes.items():
        count = math.prod(shape)
        labelled[key] = (torch.arange(count, dtype=torch.float64) + total).reshape(shape)
        spans[key] = (total, total + count)
        total += count
    flat = torch.zeros(SEEDS, total)
    for seed in range(SEEDS):
        part = module(seed=seed, **changes)
        own = dict(part.named_parameters())
        places = convert(labelled, part)
        assert set(places) == set(own)
        for key, place in places.items():
            flat[seed, place.flatten().long()] = own[key].detach().flatten()
    return {key: flat[:, start:stop] for key, (start, stop) in spans.items()}


def statistics(values):
    """[mean, deviation, minimum, maximum] of each seed, averaged over seeds."""
    rows = [values.mean(1), values.std(1, unbiased=False), values.amin(1), values.amax(1)]
    return [float(row.double().mean()) for row in rows]


CASES = [(name, key) for name in MODELS for key in golden(name)[1]]


@pytest.mark.parametrize(
    ("name", "key"),
    [case for case in CASES],
)
def test_initial_weights_are_distributed_as_the_authors(name, key):
    values = official(name)[key]
    mean, std, low, high = golden(name)[0][key]
    found = statistics(values)
    n = values.shape[1]
    if (name, key) in DIFFERS:
        mean, std = DIFFERS[name, key]
        low = high = None
    error = std / math.sqrt(SEEDS * n)
    assert abs(found[0] - mean) <= 4.5 * error * math.sqrt(2) + 1e-7
    assert abs(found[1] - std) <= 4.5 * error + std / n + 1e-7
    if low is not None:
        # extremes of a normal vary by half a deviation, those of a bounded distribution by its width over n
        slack = 0.75 * std if "token" in key else 6 * abs(high) / n
        assert abs(found[2] - low) <= slack + 1e-7 and abs(found[3] - high) <= slack + 1e-7


def test_xavier_is_bounded_by_the_fused_matrix():
    torch.manual_seed(0)
    part = ViT(TokenSpec(12, 2, (4, 4)), dim=64, depth=1, heads=4)
    qkv = part.blocks[0].attn.qkv.weight.detach()
    bound = math.sqrt(6 / (64 + 192))
    assert 0.98 * bound < float(qkv.abs().max()) <= bound


def test_xavier_resets_norms_and_biases():
    part = nn.Sequential(
        nn.Linear(3, 4), nn.LayerNorm(4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2, bias=False)
    )
    for parameter in part.parameters():
        nn.init.constant_(parameter, 7.0)
    xavier_(part)
    assert not part[0].bias.any() and not part[1].bias.any() and torch.equal(part[1].weight, torch.ones(4))
    assert float(part[0].weight.detach().abs().max()) <= math.sqrt(6 / 7)


@pytest.mark.parametrize(("cut", "std"), [(2.0, 0.02), (0.02, 0.0107941)])
def test_truncated_normal(cut, std):
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(200, 200), nn.LayerNorm(200))
    trunc_normal_(part, std=0.02, cut=cut)
    weight = part[0].weight.detach()
    assert float(weight.abs().max()) <= cut and not part[0].bias.any()
    assert float(weight.std()) == pytest.approx(std, rel=0.02)


def test_output_matrices_are_scaled_by_depth():
    torch.manual_seed(0)
    blocks = ViT(TokenSpec(12, 2, (4, 4)), dim=16, depth=3, heads=4).blocks
    before = [(b.attn.proj.weight.detach().clone(), b.mlp.fc2.weight.detach().clone(), b.mlp.fc1.weight.detach().clone()) for b in blocks]  # fmt: skip
    scale_by_depth_(blocks)
    for depth, (block, (proj, fc2, fc1)) in enumerate(zip(blocks, before, strict=True), start=1):
        torch.testing.assert_close(block.attn.proj.weight.detach(), proj / math.sqrt(2 * depth))
        torch.testing.assert_close(block.mlp.fc2.weight.detach(), fc2 / math.sqrt(2 * depth))
        assert torch.equal(block.mlp.fc1.weight.detach(), fc1)


def test_vit_may_be_initialised_as_vit():
    torch.manual_seed(0)
    part = ViT(TokenSpec(12, 2, (4, 4)), dim=128, depth=2, heads=4, init="beit")
    assert float(part.blocks[1].attn.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(part.blocks[1].mlp.fc2.weight.detach().std()) == pytest.approx(0.02 / 2, rel=0.05)


def test_embedding_is_xavier_as_a_matrix():
    torch.manual_seed(0)
    part = LinearEmbed(768, 192)
    bound = math.sqrt(6 / (768 + 192))
    assert 0.99 * bound < float(part.proj.weight.detach().abs().max()) <= bound and not part.proj.bias.any()
