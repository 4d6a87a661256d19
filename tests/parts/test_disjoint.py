"""Two masks of a sample that share no visible token (LUT), or that hide everything between them (DMJD)."""

from __future__ import annotations

import pytest
import torch

import mmssl
from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.parts.disjoint import Disjoint, Favoured
from mmssl.step import LookSpec
from tests.small import PIXELS, batch, module, tokens

APART = {
    "views": {"x": [], "y": []},
    "looks": {"x": {}, "y": {"guide": {"_target_": "guide/hidden", "look": "x"}, "masker": {"_target_": "masker/favoured"}}},
}  # fmt: skip


def draws(b):
    return Draws.of(0, 0, torch.arange(b))


@pytest.mark.parametrize(("ratio", "n", "seen"), [(0.75, 196, 49), (0.6, 30, 12)])
def test_the_best_scored_are_seen_and_chance_decides_among_equals(ratio, n, seen):
    taken = torch.rand(600, n, generator=torch.Generator().manual_seed(0)).argsort(1) < seen
    mask = Favoured(ratio=ratio)(tokens(600, n), draws(600), 0.0, (~taken).float())
    assert (mask.visible.sum(1) == seen).all() and mask.visible_count == seen and mask.target_count == n - seen
    free = n - seen
    assert not (mask.visible & taken).any() if free >= seen else (mask.visible & ~taken).sum(1).eq(free).all()
    assert torch.equal(mask.targets[:, 0], ~mask.visible)
    share = mask.visible.float().sum(0) / (~taken).sum(0)  # of the free tokens each is as likely as the others
    assert float((share - seen / free).abs().max()) < 5 * (seen / free * (1 - seen / free) / (600 * free / n)) ** 0.5


def test_padding_is_neither_seen_nor_asked_for():
    valid = torch.ones(3, 20, dtype=torch.bool)
    valid[1, 8:] = False
    mask = Favoured()(tokens(3, 20, valid=valid), draws(3), 0.0, torch.ones(3, 20))
    assert mask.visible.sum(1).tolist() == [5, 2, 5] and mask.targets[:, 0].sum(1).tolist() == [15, 6, 15]
    assert not (mask.visible | mask.targets[:, 0])[1, 8:].any()


def test_two_looks_of_a_run_see_different_tokens():
    part = module(**APART, objective={"pixels": PIXELS | {"look": ["x", "y"]}})
    step = part.begin(batch(names=("x", "y")))
    a, b = step["x"].mask, step["y"].mask
    assert (a.visible.sum(1) == 4).all() and (b.visible.sum(1) == 4).all() and not (a.visible & b.visible).any()
    assert torch.isfinite(part.training_step(batch(names=("x", "y"))))


def test_bad_guides_are_refused():
    part = module(**APART, objective={"pixels": PIXELS | {"look": ["x", "y"]}})
    step = part.begin(batch(names=("x", "y")))
    spec = step["y"].spec
    with pytest.raises(ValueError, match="guide/hidden names look 'z'"):
        type(spec.guide)(None, 8, look="z")(step["y"])
    step["x"].spec = LookSpec("x", ("x",), lambda *a: Disjoint()(*a))
    step["x"].__dict__.pop("mask", None)
    with pytest.raises(ValueError, match="both views need one size, and one mask per sample"):
        spec.guide(step["y"])
    with pytest.raises(ValueError, match="masker/favoured needs a guide"):
        Favoured()(tokens(2, 16), draws(2), 0.0, None)


@pytest.mark.parametrize(
    ("unit", "ratio", "predict", "keep", "shared"),
    [(1, 0.6, 1.0, 78, 0), (2, 0.6, 1.0, 76, 0), (1, 0.75, 1.0, 49, 0), (1, 0.6, 0.8, 78, 39), (1, 0.4, 0.8, 117, 39)],
)  # fmt: skip
def test_each_mask_keeps_its_count_and_what_both_show_is_what_room_leaves(unit, ratio, predict, keep, shared):
    """`shared`: tokens that the second mask shows of the first one's visible ones."""
    mask = Disjoint(ratio=ratio, predict=predict, unit=unit)(tokens(50, 196, grid=(14, 14)), draws(50), 0.0, None)
    assert mask.visible.shape == (100, 196) and mask.row.tolist() == [i // 2 for i in range(100)]
    assert (mask.visible.sum(1) == keep).all() and (mask.visible_count, mask.target_count) == (keep, 196 - keep)
    first, second = mask.visible.unflatten(0, (50, 2)).unbind(1)
    both = (first & second).sum(1)
    extra = int(min(predict - ratio, ratio) * 196 / unit**2) * unit**2
    assert (both == keep - extra).all() and abs(int(both[0]) - shared) <= 1
    if predict == 1.0:
        assert (~first | ~second).all()  # every token is hidden at least once
    if unit == 2:
        cells = mask.visible.reshape(-1, 7, 2, 7, 2)
        assert (cells == cells[:, :, :1, :, :1]).all()
    assert len({tuple(row.tolist()) for row in first}) == 50
    uses = mask.visible.float().mean(0)
    assert float((uses - keep / 196).abs().max()) < 0.3


def test_bad_shares_and_grids_are_refused():
    with pytest.raises(ValueError, match=r"masker\.predict has to be in \[masker\.ratio=0\.6, 1\]"):
        Disjoint(predict=0.5)
    with pytest.raises(ValueError, match=r"masker\.unit=3 .* does not divide the grid"):
        Disjoint(unit=3)(tokens(2, 16, grid=(4, 4)), draws(2), 0.0, None)
    with pytest.raises(ValueError, match="needs samples of one length"):
        Disjoint()(tokens(2, 4, valid=torch.ones(2, 4, dtype=torch.bool)), draws(2), 0.0, None)
    with pytest.raises(ConfigError, match=r"masker\.predict"):
        module(masker={"_target_": "masker/disjoint", "predict": 0.5})


def test_lut_is_mae_and_half_of_byol():
    tree = mmssl.build("image/lut", ["data=sample", "data.batch_size=4", "encoder.depth=1", "encoder.dim=32"])
    part, data = tree
    part.train()
    given = data.batch([(0, i) for i in range(4)])
    step = part.begin(given)
    assert not (step["x"].mask.visible & step["other"].mask.visible).any()
    assert step["x"].mask.visible_count == step["other"].mask.visible_count == 16
    agree = part.objective["agree"]
    assert agree.weight * 2 == 1.0 and [name for name, term in part.objective.items() if hasattr(term, "target")] == [
        "pixels", "agree",
    ]  # fmt: skip
    assert part.objective["pixels"].looks == ["x"]  # the second view is not reconstructed
    part.training_step(given).backward()
    assert all(p.grad is None and not p.requires_grad for p in part.teacher.parameters())
    heads = part.heads["proj"], part.teacher.of(part.heads["proj"])
    assert step["x"].taught.x.shape[1] == 64 and step["x"].seen.x.shape[1] == 16
    before = [p.clone() for p in heads[1].parameters()]
    with torch.no_grad():
        for p in heads[0].parameters():
            p.add_(1.0)
    part.teacher.follow(0.0)
    momentum = 0.99  # data=sample
    for old, new, student in zip(before, heads[1].parameters(), heads[0].parameters(), strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * student)
