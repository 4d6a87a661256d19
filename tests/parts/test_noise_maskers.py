"""Masks of filtered noise: against scipy's filter, a plain greedy loop, and how near visible tokens lie to one another."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter, label

from mmssl.draws import Draws
from mmssl.parts.noise_maskers import SIGMAS, Noise, coloured, crowding, spread_out
from tests.small import tokens


def visible(masker, grid=(14, 14), count=256, first=0, step=0):
    n = torch.tensor(grid).prod()
    given = Draws.of(0, 0, torch.arange(first, first + count), step=step)
    return masker(tokens(count, int(n), width=1, grid=grid), given, 0.0, None).visible.reshape(count, *grid)


def alike(x, lag, axis=-1):
    """Correlation of flags with those `lag` places on."""
    x = (x.float() - x.float().mean()).movedim(axis, -1)
    return float((x[..., lag:] * x[..., :-lag]).mean() / x.square().mean())


@pytest.mark.parametrize("color", SIGMAS)
@pytest.mark.parametrize("sides", [(24, 27), (24, 25, 26)])
def test_colours_are_differences_of_wrapped_gaussians(color, sides):
    noise = torch.randn(2, *sides, generator=torch.Generator().manual_seed(0))
    sigmas = [torch.tensor([s, s + 0.3]) for s in SIGMAS[color]]
    for i, found in enumerate(coloured(noise, color, sigmas)):
        white = noise[i].double().numpy()
        blurs = [gaussian_filter(white, float(s[i]), mode="wrap", radius=11) for s in sigmas]
        plain = white
        if color == "red":
            plain = blurs[0]
        elif color == "blue":
            plain = white - blurs[0]
        elif color in ("green", "purple"):
            plain = blurs[0] - blurs[1] if color == "green" else white - (blurs[0] - blurs[1])
        torch.testing.assert_close(found.double(), torch.from_numpy(plain), rtol=0, atol=1e-4)


def test_of_a_window_exactly_the_highest_values_are_visible():
    masker = Noise(maps=8, side=20, ratio=0.7)
    count, first, step = 5, 3, 7
    found = visible(masker, (4, 6), count, first, step)
    given = Draws.of(0, 0, torch.arange(first, first + count), step=step)
    common, bank = given.batch(), masker.bank(2)
    maps: list[int] = given.named("map").integers(0, 8).tolist()
    top, left = (common.named("window").uniform(2)[0] * torch.tensor([17, 15])).long().tolist()
    flips: list[bool] = (common.named("flips").uniform(2)[0] < 0.5).tolist()
    for i, one in enumerate(maps):
        window = bank[one, top : top + 4, left : left + 6]
        for axis, turned in enumerate(flips):
            window = window.flip(axis) if turned else window
        cut = window.flatten().sort(descending=True).values[int(24 * (1 - 0.7)) - 1]
        assert torch.equal(found[i], window >= cut)


def test_colours_order_how_visible_tokens_cluster():
    maps = {color: visible(Noise(color=color, maps=256)) for color in SIGMAS}
    assert all((found.sum((1, 2)) == 49).all() for found in maps.values())
    near = {color: alike(found, 1) for color, found in maps.items()}
    assert near["red"] == pytest.approx(0.72, abs=0.03) and near["green"] == pytest.approx(0.33, abs=0.03)
    assert near["blue"] == pytest.approx(-0.12, abs=0.03) and near["purple"] == pytest.approx(-0.09, abs=0.03)
    assert abs(near["white"]) < 0.02 and alike(maps["green"], 3) == pytest.approx(-0.08, abs=0.03)
    pieces = {color: sum(label(one.numpy())[1] for one in found[:64]) / 64 for color, found in maps.items()}
    assert pieces["red"] < pieces["green"] < pieces["white"] < pieces["blue"]


def test_noise_over_time_hides_as_many_in_each_slice_and_drifts():
    sigmas = [[0.5, 1.0], [2.0, 3.0]]
    found = visible(Noise(ratio=0.9, sigmas=sigmas, per="slice", maps=16, side=[8, 20, 20]), (8, 14, 14), 32)
    assert (found.sum((2, 3)) == 20).all()
    assert 0.1 < alike(found, 1, axis=1) < 0.9  # 0 for random masks, 1 for tubes
    assert found.flatten(2).any(1).sum(1).float().mean() > 20


def test_a_step_shares_its_window_and_a_mask_is_a_function_of_sample_and_step():
    masker = Noise(maps=32)
    whole, part = visible(masker, count=8), visible(Noise(maps=32), count=3, first=5)
    assert torch.equal(whole[5:], part) and not torch.equal(whole, visible(masker, count=8, step=1))


def test_moving_visible_cells_apart_against_a_plain_loop():
    flags = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(1)) < 0.3
    weights = (1.0, 0.5)

    def crowd(one, row, column):
        return sum(
            weight * float(one[(row + a * apart) % 6, (column + b * apart) % 7])
            for apart, weight in enumerate(weights, 1) for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0))
        )  # fmt: skip

    for one, found, scores in zip(flags, spread_out(flags, weights, 4), crowding(flags, weights), strict=True):
        plain = one.clone()
        places = [(row, column) for row in range(6) for column in range(7)]
        assert scores.flatten().tolist() == pytest.approx([crowd(one, *place) for place in places])
        for _ in range(4):
            worst = max((p for p in places if plain[p]), key=lambda p: crowd(plain, *p))
            level, plain[worst] = crowd(plain, *worst), False
            best = min((p for p in places if not plain[p] and p != worst), key=lambda p: crowd(plain, *p))
            better = crowd(plain, *best) < level
            plain[best if better else worst] = True
        assert torch.equal(found, plain)


def test_regularised_noise_has_fewer_neighbours():
    plain, moved = (visible(Noise(ratio=0.8, color="blue", maps=32, side=32, swaps=n), count=64) for n in (0, 200))
    assert (moved.sum((1, 2)) == 39).all()
    pairs = [(x[:, 1:] & x[:, :-1]).sum() + (x[:, :, 1:] & x[:, :, :-1]).sum() for x in (plain, moved)]
    assert pairs[1] < 0.6 * pairs[0]


def test_padding_is_neither_visible_nor_asked_for():
    valid = torch.arange(24).expand(3, 24) < torch.tensor([[24], [12], [6]])
    given = tokens(3, 24, width=1, grid=(4, 6), valid=valid)
    mask = Noise(maps=4, side=8)(given, Draws.of(0, 0, torch.arange(3)), 0.0, None)
    assert mask.visible.sum(1).tolist() == [6, 3, 1] and mask.targets.sum((1, 2)).tolist() == [18, 9, 5]
    assert not (mask.visible & ~valid).any() and not (mask.targets[:, 0] & ~valid).any()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"color": "gren"}, "did you mean"),
        ({"sigmas": [2.0, 0.8]}, "ascending"),
        ({"color": "red", "sigmas": [1.0, 2.0]}, "red noise takes 1"),
        ({"per": "frame"}, "'sample' or 'slice'"),
        ({"ratio": 75}, r"0\.75"),
    ],
)
def test_what_fits_nothing_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Noise(**given)


def test_maps_hold_the_grid():
    with pytest.raises(ValueError, match=r"masker\.side gives maps of \(8, 8\)"):
        visible(Noise(maps=2, side=8), (9, 4), 2)
    with pytest.raises(ValueError, match="on a grid"):
        Noise(maps=2, side=8)(tokens(2, 5), Draws.of(0, 0, torch.arange(2)), 0.0, None)
