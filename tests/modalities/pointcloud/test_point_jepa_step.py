"""Point-JEPA's recipe: its sizes, and one step written out block by block and cloud by cloud."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import compose
from mmssl.types import View

torch.set_num_threads(1)  # everything is small: threads would only wait for one another

FACTS = {"channels": 3, "points": [1024, 1024], "meshes": 0, "samples": 8}
SMALL = [
    "data=clouds", "data.root=none", "data.size=96", "data.batch_size=3", "tokenizer.groups=24", "tokenizer.size=8",
    "tokenizer.hidden=16", "encoder.dim=24", "encoder.depth=3", "encoder.heads=3", "encoder.drop_path=0.0",
    "objective.latent.predictor.dim=20", "objective.latent.predictor.depth=2", "objective.latent.predictor.heads=2",
    "objective.latent.predictor.drop_path=0.0", "objective.latent.target.layers=[block.2]",
]  # fmt: skip


def made(*overrides):
    tree = compose("pointcloud/point_jepa", list(overrides))
    check(tree)
    return build.module(tree, FACTS)


def batch(b, n):
    points = torch.randn(b, n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {"x": View(points, "pointcloud"), "id": torch.arange(b), "epoch": torch.zeros(b, dtype=torch.int64)}


def count(part):
    return sum(p.numel() for p in part.parameters() if p.requires_grad)


def test_the_recipe_has_the_papers_sizes():
    module = made("data=clouds", "data.root=none")
    main, predictor = module.networks["main"], module.objective["latent"].predictor
    assert count(main.embed) == 494_464 and count(main.encoder.position) == 50_048
    block = 4 * 192 + 4 * 192 * 192 + 4 * 192 + 8 * 192 * 192 + 5 * 192
    position = 3 * 128 + 128 + 128 * 192 + 192
    assert count(predictor) == 384 * 192 + 192 + 192 + position + 6 * block + 2 * 192 + 192 * 384 + 384
    rates = [block.drop_path1.drop_prob for block in main.encoder.blocks[1:]]
    assert rates == pytest.approx([0.25 * i / 11 for i in range(1, 12)])
    mask = module.begin(batch(3, 128))["x"].mask
    assert mask.targets.shape == (3, 4, 64) and 9 <= int(mask.targets[0, 0].sum()) <= 12
    assert (module.teacher.momentum(0.0), module.teacher.momentum(1.0)) == pytest.approx((0.9995, 0.99999))


def test_the_teacher_averages_the_transformer_alone():
    module = made(*SMALL)
    main, twin = module.networks["main"], module.teacher.of(module.networks["main"])
    before = {name: p.clone() for name, p in twin.named_parameters()}
    with torch.no_grad():
        for p in main.parameters():
            p.add_(1.0)
    module.teacher.follow(0.0)
    for name, p in twin.named_parameters():
        copied = name.startswith(("embed.", "encoder.position."))
        torch.testing.assert_close(p, before[name] + (1.0 if copied else 0.0005), atol=1e-5, rtol=1e-5)


def test_one_step_is_the_mean_over_blocks():
    module = made(*SMALL).double().eval()
    main, predictor = module.networks["main"], module.objective["latent"].predictor
    twin = module.teacher.of(main)
    with torch.no_grad():
        for p in twin.encoder.blocks.parameters():
            p.mul_(1.3)
    data = batch(3, 96)
    step = module.begin(data)
    total, weight = module.objective["latent"](step)

    mask, tokens = step["x"].mask, main.tokenizer(data["x"])
    x, place, narrow = main.embed(tokens).x, main.encoder.position(tokens), predictor.position(tokens)
    taught = twin.embed(tokens).x
    for block in twin.encoder.blocks:  # positions before every block; the last norm is left out
        taught = block(taught + place)
    taught = F.layer_norm(taught, taught.shape[-1:])
    losses = []
    for i in range(3):
        seen = mask.visible[i].nonzero().flatten()
        context = x[i, seen][None]
        for block in main.encoder.blocks:
            context = block(context + place[i, seen])
        context = predictor.embed(main.encoder.norm(context))[0] + narrow[i, seen]
        for k in range(4):  # one pass of the predictor for each target block
            asked = mask.targets[i, k].nonzero().flatten()
            answer = torch.cat([context, predictor.mask_token[0] + narrow[i, asked]])[None]
            for block in predictor.blocks:
                answer = block(answer)
            answer = predictor.head(predictor.norm(answer[0, len(seen) :]))
            error = (answer - taught[i, asked]).abs()
            losses.append(torch.where(error < 2.0, error.square() / 4.0, error - 1.0).mean())
    assert float((total / weight).detach()) == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-6)
