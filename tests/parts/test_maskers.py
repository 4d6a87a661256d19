"""Maskers: exact counts, honest randomness, and masks that do not depend on the batch."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.draws import Draws
from mmssl.parts.maskers import Random, Units, check_ratio, fewest
from tests.small import tokens


def draws(count=8, first=0):
    return Draws.of(0, 0, torch.arange(first, first + count))


def ragged(counts):
    counts = torch.tensor(counts)
    n = int(counts.max())
    return tokens(len(counts), n, valid=torch.arange(n) < counts.unsqueeze(1))


@pytest.mark.parametrize(
    ("n", "ratio", "predict", "visible", "asked"),
    [
        (196, 0.75, None, 49, 147),  # MAE
        (196, 0.75, 0.75, 49, 147),  # CrossMAE, everything
        (196, 0.75, 0.25, 49, 49),  # CrossMAE, a third
        (256, 0.75, None, 64, 192),
        (196, 0.9, None, 19, 177),  # int(19.6), as the released code rounds
        (196, 0.0, None, 196, 0),
        (7, 0.5, 0.3, 3, 3),
    ],
)
def test_random_counts(n, ratio, predict, visible, asked):
    mask = Random(ratio=ratio, predict=predict)(tokens(8, n), draws(), 0.0, None)
    assert (mask.visible_count, mask.target_count) == (visible, asked)
    assert mask.visible.sum(1).tolist() == [visible] * 8
    assert mask.targets.sum((1, 2)).tolist() == [asked] * 8 and mask.targets.shape == (8, 1, n)
    assert not (mask.visible & mask.targets[:, 0]).any()
    if predict is None:
        assert torch.equal(mask.targets[:, 0], mask.hidden)
    assert mask.visible_index[0].shape == (8, visible) and mask.target_index[0].shape == (8, 1, asked)


def test_random_hides_every_place_equally_often():
    mask = Random(ratio=0.75, predict=0.25)(tokens(4000, 16), draws(4000), 0.0, None)
    for flags, share in ((mask.visible, 0.25), (mask.targets[:, 0], 0.25)):
        z = (flags.double().mean(0) - share) / math.sqrt(share * (1 - share) / 4000)
        assert float(z.abs().max()) < 4.5
    pairs = mask.visible.double().T @ mask.visible.double() / 4000  # of two places: 4/16 * 3/15
    off = pairs[~torch.eye(16, dtype=torch.bool)]
    assert float((off - 0.05).abs().max()) < 4.5 * math.sqrt(0.05 * 0.95 / 4000)


def test_random_is_the_order_of_its_noise():
    """random-keep written plainly: argsort the noise, keep the first, ask for the last."""
    noise = draws().uniform(20)
    mask = Random(ratio=0.6, predict=0.3)(tokens(8, 20), draws(), 0.0, None)
    for i in range(8):
        order = sorted(range(20), key=lambda place: float(noise[i, place]))
        assert mask.visible[i].nonzero().flatten().tolist() == sorted(order[:8])
        assert mask.targets[i, 0].nonzero().flatten().tolist() == sorted(order[14:])


@pytest.mark.parametrize("masker", [Random(predict=0.5), Units(unit=2)])
def test_the_mask_of_a_sample_does_not_depend_on_its_batch(masker):
    whole = masker(tokens(8, 36, grid=(6, 6)), draws(8), 0.0, None)
    for first, count in ((3, 1), (2, 5)):
        part = masker(tokens(count, 36, grid=(6, 6)), draws(count, first), 0.0, None)
        assert torch.equal(part.visible, whole.visible[first : first + count])
        assert torch.equal(part.targets, whole.targets[first : first + count])
    again = masker(tokens(8, 36, grid=(6, 6)), draws(8), 0.7, None)
    assert torch.equal(again.visible, whole.visible)


def test_random_leaves_padding_alone():
    counts = [16, 5, 9, 1, 12]
    given = ragged(counts)
    mask = Random(ratio=0.75, predict=0.5)(given, draws(5), 0.0, None)
    assert mask.visible_count is None and mask.target_count is None
    assert not (mask.visible & ~given.valid).any() and not (mask.targets[:, 0] & ~given.valid).any()
    assert mask.visible.sum(1).tolist() == [int(n * 0.25) for n in counts]
    assert mask.targets.sum((1, 2)).tolist() == [n - int(n * 0.25) - int(n * 0.25) for n in counts]
    whole = Random(ratio=0.75)(given, draws(5), 0.0, None)
    assert torch.equal(whole.targets[:, 0], given.valid & ~whole.visible)


@pytest.mark.parametrize("ratio", [0.75, 0.9, 0.7, 0.6, 0.8])
@pytest.mark.parametrize("n", [10, 16, 30, 50])
def test_padding_of_the_batch_does_not_change_a_samples_mask(n, ratio):
    masker = Random(ratio=ratio, predict=0.5)
    alone = masker(tokens(4, n), draws(4), 0.0, None)
    padded = masker(ragged([n, n, n, n, n + 7]), draws(5), 0.0, None)
    assert torch.equal(padded.visible[:4, :n], alone.visible)
    assert torch.equal(padded.targets[:4, :, :n], alone.targets)


@pytest.mark.parametrize(
    ("grid", "unit", "ratio", "hidden"),
    [
        ((14, 14), 2, 0.6, 120),
        ((48, 48), 8, 0.6, 1408),
        ((6, 6), 1, 0.6, 22),
        ((4, 8), 2, 0.5, 16),
        ((4, 4), 2, 0.0, 0),
    ],
)
def test_units_hide_whole_squares(grid, unit, ratio, hidden):
    n = math.prod(grid)
    mask = Units(ratio=ratio, unit=unit)(tokens(8, n, grid=grid), draws(), 0.0, None)
    assert mask.hidden.sum(1).tolist() == [hidden] * 8
    assert (mask.visible_count, mask.target_count) == (n - hidden, hidden)
    assert torch.equal(mask.targets[:, 0], mask.hidden)
    squares = mask.hidden.reshape(8, grid[0] // unit, unit, grid[1] // unit, unit)
    corner = squares[:, :, :1, :, :1]
    assert bool((squares == corner).all())
    if 0 < hidden:
        assert len({tuple(row) for row in mask.hidden.tolist()}) > 1


def test_units_on_three_axes():
    mask = Units(ratio=0.5, unit=2)(tokens(3, 64, grid=(4, 4, 4)), draws(3), 0.0, None)
    cubes = mask.hidden.reshape(3, 2, 2, 2, 2, 2, 2)
    assert bool((cubes == cubes[:, :, :1, :, :1, :, :1]).all()) and mask.hidden.sum(1).tolist() == [32] * 3


def test_units_need_a_grid_they_divide():
    for given in (tokens(1, 15, grid=(3, 5)), tokens(1, 16)):
        with pytest.raises(ValueError, match=r"masker\.unit=2 .*does not divide the grid.*masker/random"):
            Units(unit=2)(given, draws(1), 0.0, None)


@pytest.mark.parametrize("part", [Random, Units])
@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (75, r"masker\.ratio .*\[0, 1\) \(got 75\); did you mean 0\.75\?"), (1.0, r"\(got 1\) MAE hides 0\.75"),
        (-0.1, r"\(got -0\.1\)"), (float("nan"), r"\(got nan\)"),
    ],
)  # fmt: skip
def test_ratio_is_a_share(part, ratio, message):
    with pytest.raises(ValueError, match=message):
        part(ratio=ratio)


@pytest.mark.parametrize("predict", [0.0, 0.8, -1.0])
def test_predict_is_at_most_the_ratio(predict):
    with pytest.raises(
        ValueError, match=rf"masker\.predict has to be in \(0, masker\.ratio=0\.75\] \(got {predict:g}\)"
    ):
        Random(predict=predict)


def test_check_ratio_accepts_shares():
    for ratio in (0.0, 0.5, 0.999):
        check_ratio(ratio)


def test_fewest_marks_the_smallest():
    score = torch.tensor([[3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert fewest(score, 2).tolist() == [[False, True, False, True], [True, True, False, False]]


def test_either_count_may_be_rounded_down():
    whole = tokens(3, 64)
    for floor, want in (("visible", 25), ("hidden", 26)):  # int(64 * 0.4) = 25 stay, or int(64 * 0.6) = 38 go
        found = Random(ratio=0.6, floor=floor)(whole, Draws.of(0, 0, torch.arange(3)), 0.0, None)
        assert found.visible_count == want and found.visible.sum(1).tolist() == [want] * 3
        assert found.target_count == 64 - want
    with pytest.raises(ValueError, match=r"masker\.floor has to be"):
        Random(floor="both")
