"""V-JEPA's recipe: its sizes, and one step written out mask by mask and sample by sample."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import compose
from mmssl.types import View

torch.set_num_threads(1)  # everything is small: threads would only wait for one another

FACTS = {"channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
SMALL = [
    "data=folder", "data.root=.", "data.batch_size=3", "data.size=48", "tokenizer.frames=4", "tokenizer.patch=8",
    "encoder.dim=24", "encoder.depth=2", "encoder.heads=3", "objective.latent.predictor.dim=20",
    "objective.latent.predictor.depth=2", "objective.latent.predictor.heads=2",
]  # fmt: skip


def module(*overrides):
    tree = compose("video/vjepa", list(overrides))
    check(tree)
    return build.module(tree, FACTS)


def count(part):
    return sum(p.numel() for p in part.parameters())


def block(dim):
    return 4 * dim + 4 * dim * dim + 4 * dim + 8 * dim * dim + 5 * dim


def test_the_recipe_has_the_papers_sizes():
    with torch.device("meta"):
        ours = module("data=folder", "data.root=.", "data.batch_size=64")
    main, predictor = ours.networks["main"], ours.objective["latent"].predictor
    assert main.spec.grid == (8, 14, 14) and main.encoder.prefix is None
    assert count(main) == 1536 * 1024 + 1024 + 24 * block(1024) + 2 * 1024
    assert count(predictor) == 1024 * 384 + 384 + 2 * 384 + 12 * block(384) + 2 * 384 + 384 * 1024 + 1024
    teacher, optim = ours.teacher, cast(Any, ours.optim)
    momentum, decay = teacher.momentum, optim.weight_decay
    assert (momentum(0.0), momentum(1.0)) == pytest.approx((0.998, 0.998 + 0.002 / 1.25))
    assert decay(0.0) == pytest.approx(0.04) and decay(1.0) == pytest.approx(0.3656)
    rate = [6.25e-4 * optim.schedule(p) for p in (0.0, 12 / 90, 1.0)]
    assert rate == pytest.approx([2e-4, 6.25e-4, 7.5e-5], rel=1e-4)


def through(blocks, norm, x):
    for one in blocks:
        x = one(x)
    return norm(x)


def test_one_step_is_the_mean_over_masks_and_their_targets():
    ours = module(*SMALL).double()
    clips = torch.randint(0, 256, (3, 4, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    main, predictor = ours.networks["main"], ours.objective["latent"].predictor
    twin = ours.teacher.of(main)
    with torch.no_grad():
        predictor.mask_token.normal_()
        for p in twin.parameters():
            p.mul_(1.3)
    step = ours.begin({"x": View(clips / 255.0, "video"), "id": torch.arange(3), "epoch": torch.zeros(3).long()})
    total, weight = ours.objective["latent"](step)

    mask = step["x"].mask
    tokens = main.tokenizer(View(clips / 255.0, "video"))
    tokens = tokens.but(raw=tokens.raw.double())
    place = main.encoder.position(tokens)[0].double()
    narrow = predictor.position(tokens)[0].double()
    taught = through(twin.encoder.blocks, twin.encoder.norm, twin.embed(tokens).x + place)
    taught = F.layer_norm(taught, taught.shape[-1:])
    assert float(taught.square().mean()) == pytest.approx(1, abs=1e-3)  # what an answer of zero costs with squares
    means = []
    for kind in range(2):
        lost = []
        for i in range(3):
            seen = mask.visible[3 * kind + i].nonzero().flatten()
            asked = mask.targets[3 * kind + i, 0].nonzero().flatten()
            context = through(main.encoder.blocks, main.encoder.norm, (main.embed(tokens).x[i] + place)[seen][None])
            sequence = [predictor.embed(context)[0] + narrow[seen], predictor.mask_token[kind] + narrow[asked]]
            answer = through(predictor.blocks, predictor.norm, torch.cat(sequence)[None])[0, len(seen) :]
            lost.append((predictor.head(answer) - taught[i, asked]).abs())
        means.append(torch.cat(lost).mean())
    assert float((total / weight).detach()) == pytest.approx(float(torch.stack(means).mean().detach()), rel=1e-6)
    assert float((means[0] - means[1]).detach().abs()) > 1e-6
    (total / weight).backward()
    assert all(p.grad is None for p in twin.parameters()) and predictor.mask_token.grad.abs().sum((1, 2)).min() > 0
