"""Latent MIM: gapped patches, a teacher of hidden patches, cued queries, token InfoNCE and similarities."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import mmssl
from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.nn.positions import SinCos, sincos
from mmssl.parts.cued import Cued
from mmssl.parts.gaps import GappedCrop
from mmssl.parts.maskers import Random
from mmssl.parts.schedules import cosine
from mmssl.parts.within import TokenInfoNCE
from mmssl.types import TokenSpec, View
from tests.small import batch, module, tokens

SPEC = TokenSpec(5, 2, (4, 4))
HEAD = {"_target_": "head/mlp", "dims": [24, 12], "norm": "layer", "last_norm": "layer", "activation": "gelu"}
LATENT = {
    "_target_": "term/predict", "project": "proj", "loss": {"_target_": "loss/token_info_nce"},
    "predictor": {"_target_": "predictor/cued", "dim": 16, "depth": 2, "heads": 2},
    "target": {"_target_": "target/asked", "head": "proj"},
}  # fmt: skip
RUN = {
    "heads": {"proj": HEAD}, "objective": {"latent": LATENT},
    "teacher": {"_target_": "teacher/ema", "momentum": 0.5, "when": "before"},
}  # fmt: skip


def draws(i):
    return Draws.of(0, 0, torch.tensor([i]))


def by_loop(p, t, temperature, eps=1e-4):
    found = torch.zeros(p.shape[:2])
    for b in range(len(p)):
        q = (p[b] - p[b].mean(0)) / (p[b].std(0) + eps)
        for i in range(p.shape[1]):
            scores = torch.stack([F.cosine_similarity(q[i], key, dim=0) for key in t[b]]) / temperature
            found[b, i] = F.cross_entropy(scores[None], torch.tensor([i]))
    return found


def test_each_token_is_told_from_those_of_its_own_sample():
    generator = torch.Generator().manual_seed(0)
    p, t = torch.randn(3, 5, 7, generator=generator), torch.randn(3, 5, 7, generator=generator)
    torch.testing.assert_close(TokenInfoNCE()(p, t), by_loop(p, t, 0.2), rtol=1e-5, atol=1e-5)
    kept = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
    found = TokenInfoNCE()(p, t, kept)
    torch.testing.assert_close(found[1, :3], by_loop(p[1:2, :3], t[1:2, :3], 0.2)[0], rtol=1e-4, atol=1e-4)
    assert (found[1, 3:] == 0).all()
    with pytest.raises(ValueError, match="this batch is packed"):
        TokenInfoNCE()(p[0], t[0])


def test_alike_scores_cost_the_logarithm():
    loss = TokenInfoNCE(standardize=False)(torch.ones(1, 176, 4), torch.ones(1, 176, 4)).mean() * 0.4
    assert float(loss) == pytest.approx(2 * 0.2 * math.log(176), abs=1e-4) == pytest.approx(2.0682, abs=1e-3)


def test_the_teacher_never_sees_what_the_student_sees():
    part, given = module(**RUN), batch()
    step = part.begin(given)
    look, term = step["x"], part.objective["latent"]
    ((query, _),) = term.predict(step)
    target = term.target(look, query)
    assert target.shape == (4, 12, 12) and look.mask.visible_count == 4
    seen = look.mask.visible.reshape(4, 1, 4, 4).float()
    inside = F.interpolate(seen, scale_factor=8) > 0
    noise = View(torch.where(inside, torch.rand_like(given["x"].data), given["x"].data), "image")
    other = part.begin(given | {"x": noise})
    assert torch.equal(term.target(other["x"], query.but(raw=other["x"].tokens.take(query.index).raw)), target)
    assert not torch.allclose(term.predict(other)[0][1], term.predict(step)[0][1])
    network, head = part.teacher.of(part.networks["main"]), part.teacher.of(part.heads["proj"])
    alone = network.encoder(network.embed(look.tokens.take(query.index)))
    torch.testing.assert_close(target, head(alone.x))
    part.training_step(given).backward()
    assert all(p.grad is not None for p in part.heads["proj"].parameters())
    assert all(p.grad is None for p in part.teacher.parameters())


def test_queries_are_mask_token_cue_and_position():
    torch.manual_seed(0)
    part = Cued(SPEC, 8, 6, (), dim=16, depth=2, heads=2).eval()
    torch.nn.init.normal_(part.mask_token)
    whole = tokens(2, 16, grid=(4, 4))
    seen = whole.take(torch.tensor([[0, 3, 5, 9]] * 2)).but(x=torch.randn(2, 4, 8), prefix=torch.randn(2, 1, 8))
    query = whole.take(torch.tensor([[1, 2, 12]] * 2))
    x, table = part.embed(seen.x), SinCos(SPEC, 16).table
    cue = torch.stack([
        sum(w * x[:, j] for j, w in enumerate((table[i] @ table[seen.index[0]].T / 16**0.5).softmax(0)))
        for i in (1, 2, 12)
    ], 1)  # fmt: skip
    q = part.mask_token + cue + table[[1, 2, 12]]
    q = torch.cat([part.class_token.expand(2, -1, -1), q], 1)
    memory = torch.cat([part.embed(seen.prefix), x + table[seen.index[0]]], 1)
    for block in part.blocks:
        q = block(q, memory, None, None)
    torch.testing.assert_close(part(seen, query), part.head(part.norm(q))[:, 1:], rtol=1e-5, atol=1e-6)
    order = torch.tensor([2, 0, 3, 1])
    mixed = seen.but(x=seen.x[:, order], index=seen.index[:, order], pos=seen.pos[:, order])
    torch.testing.assert_close(part(mixed, query), part(seen, query), rtol=1e-5, atol=1e-6)
    flags = torch.tensor([[True, True, True, False]] * 2)
    short = seen.take(torch.arange(3).expand(2, 3)).but(prefix=seen.prefix)
    torch.testing.assert_close(part(seen.but(valid=flags), query), part(short, query), rtol=1e-5, atol=1e-6)


def test_similarity_is_the_mean_over_all_pairs():
    schedule = {"_target_": "schedule/cosine", "first": 0.75, "last": 0.25}
    similar = {"_target_": "term/similarity", "wanted": schedule}
    part = module(
        **RUN
        | {"objective": {"latent": LATENT, "answers": similar | {"of": "latent"}, "seen": similar | {"head": "proj"}}}
    )
    step = part.begin(batch())
    part.objective["latent"](step)
    for name, x in (
        ("answers", step.answered["latent", "x"][0][1]),
        ("seen", part.heads["proj"](step["x"].seen.x)),
    ):
        unit = F.normalize(x, dim=-1)
        wanted = (unit @ unit.mT).mean()
        total, weight = part.objective[name](step)
        torch.testing.assert_close(total, (wanted - 0.75) ** 2)
        assert float(weight) == 1 and float(part.objective[name].signals["similarity"]) == pytest.approx(
            float(wanted.detach())
        )
    with pytest.raises(ConfigError, match=r"of='latnt' has to be a term in front.*mean 'latent'"):
        module(**RUN | {"objective": {"latent": LATENT, "answers": similar | {"of": "latnt"}}})


def test_momentum_and_counts():
    assert [cosine(p, first=0.99, last=1.0) for p in (0.0, 1.0)] == [0.99, 1.0]
    mask = Random(ratio=0.8975)(tokens(1, 196, grid=(14, 14)), draws(0), 0.0, None)
    assert (mask.visible_count, mask.target_count) == (20, 176)


def test_positions_stretch_to_the_ends():
    table = SinCos(TokenSpec(5, 2, (14, 14)), 16, ends=True).table
    whole = tokens(1, 196, grid=(14, 14))
    torch.testing.assert_close(table, sincos(whole.pos[0] / 13 * 14, 16))
    part = SinCos(TokenSpec(5, 2, (14, 14)), 16, ends=True)
    torch.testing.assert_close(part(whole.but(grid=None))[0], table)
    assert not torch.allclose(table, SinCos(TokenSpec(5, 2, (14, 14)), 16).table)


@pytest.mark.parametrize(("patch", "gap", "room"), [(16, 0.25, 4), (4, 0.25, 1), (4, 0.0, 0)])
def test_patches_lie_in_cells_with_room_between(patch, gap, room):
    view = GappedCrop(size=2 * patch, patch=patch, gap=gap)
    side, found = patch + room, set()
    image = torch.arange(4 * side * side).reshape(1, 2 * side, 2 * side)
    for i in range(40):
        made = view._patches(image, draws(i))
        assert made.shape == (1, 2 * patch, 2 * patch)
        for r in range(2):
            for c in range(2):
                piece = made[0, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
                top, left = divmod(int(piece[0, 0]), 2 * side)
                assert torch.equal(piece, image[0, top : top + patch, left : left + patch])
                found.add((top - r * side, left - c * side))
    places = {(y, x) for y in range(max(room, 1)) for x in range(max(room, 1))}  # the end is excluded
    assert found == places


def test_a_gapped_crop_is_a_crop_whose_classes_go_along():
    view = GappedCrop(size=8, patch=4, gap=0.5)
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8)
    assert view(image, draws(0)).shape == (3, 8, 8) and view.crop.size == 12
    classes = torch.arange(1200).reshape(30, 40)
    assert view.segments(classes, image, draws(0)).shape == (8, 8)
    with pytest.raises(ValueError, match="patch=3 has to divide size=8"):
        GappedCrop(size=8, patch=3)


def test_the_recipe_puts_a_head_between_encoder_and_decoder():
    part, data = mmssl.build(
        "image/latent_mim", ["data=sample", "data.batch_size=2", "encoder.depth=1", "encoder.dim=32"]
    )
    assert data.views["x"][1].crop.size == 8 * (4 + 1)
    step = part.begin(data.batch([(0, 0), (0, 1)]))
    assert step["x"].mask.visible_count == 6 and [t.weight for t in part.objective.values()] == [0.4, 0.1, 0.1]
    assert part.objective["latent"].predictor.embed.in_features == 128
    assert step["x"].projected("proj") is step["x"].projected("proj")
