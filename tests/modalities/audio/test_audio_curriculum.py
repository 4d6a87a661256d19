"""A-JEPA's curriculum, bands and views for contrast, against plain references."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.audio.curriculum import Mixture, MultiBlockBands, competence
from mmssl.modalities.audio.filters import FilterBanks
from mmssl.modalities.audio.mixing import MixRecording
from mmssl.modalities.audio.views import Cycle, Loudness, Part
from mmssl.modalities.audio.waves import Wave
from mmssl.parts.block_maskers import MultiBlock
from tests.small import tokens


def draws(b=4, step=0, first=0):
    return Draws.of(0, 0, torch.arange(first, first + b), step=step).named("mask")


def one(i=0):
    return Draws.of(0, 0, torch.tensor([i]))


def wave(count=100, rate=100, channels=1):
    return Wave(torch.arange(count * channels, dtype=torch.float32).reshape(channels, count) + 1, rate)


def test_competence_of_the_paper():
    wanted = {0.0: 0.01, 0.01: 0.10049, 0.25: 0.50007, 0.5: 0.70714, 1.0: 1.0}
    for progress, value in wanted.items():
        assert competence(progress) == pytest.approx(value, abs=1e-5)
    assert competence(2.0) == 1.0 and competence(0.0, first=0.3) == pytest.approx(0.3)


def test_a_mixture_throws_once_a_step():
    masker = Mixture(first=MultiBlock(targets=4), second=MultiBlock(targets=2), share=competence)
    for progress in (0.0, 0.25, 1.0):
        kinds = []
        for step in range(150):
            mask = masker(tokens(2, 128, grid=(16, 8)), draws(2, step), progress, None)
            other = masker(tokens(2, 128, grid=(16, 8)), draws(2, step, first=7), progress, None)
            assert mask.targets.shape[1] == other.targets.shape[1]  # the same on every rank
            kinds.append(mask.targets.shape[1])
        share, sure = kinds.count(2) / 150, competence(progress)
        assert abs(share - sure) <= 4 * math.sqrt(sure * (1 - sure) / 150) + 1e-9
    plain = MultiBlock(targets=2)(tokens(2, 512, grid=(64, 8)), draws(2).named("second"), 0.0, None)
    mixed = Mixture(first=MultiBlock(), second=MultiBlock(targets=2), share=1.0)
    assert torch.equal(mixed(tokens(2, 512, grid=(64, 8)), draws(2), 0.0, None).targets, plain.targets)
    with pytest.raises(ValueError, match=r"masker\.share"):
        Mixture(first=MultiBlock(), second=MultiBlock(), share=5)


def stretches(flags):
    """Whether the True entries of a list stand in one row."""
    places = [i for i, flag in enumerate(flags) if flag]
    return bool(places) and places[-1] - places[0] + 1 == len(places)


@pytest.mark.parametrize("way", ["time", "frequency", "both"])
@pytest.mark.parametrize("grid", [(64, 8), (16, 4)])
def test_bands_are_blocks_drawn_out(grid, way):
    masker, uncut = MultiBlockBands(ways=[way]), MultiBlockBands(ways=[way], truncate="none")
    sizes, seen = set(), set()
    for step in range(25):
        mask = masker(tokens(3, grid[0] * grid[1], grid=grid), draws(3, step, first=3 * step), 0.0, None)
        assert mask.targets.shape == (3, 3, grid[0] * grid[1])
        assert mask.targets.sum(2).unique().tolist() == [mask.target_count]
        bands = mask.targets.reshape(3, 3, *grid)
        steps, rows = bands.all(-1), bands.all(-2)  # whole steps and whole rows
        assert torch.equal(bands, steps.unsqueeze(-1) | rows.unsqueeze(-2))
        for a, b in zip(steps.flatten(0, 1).tolist(), rows.flatten(0, 1).tolist(), strict=True):
            assert stretches(a) == (way != "time") and stretches(b) == (way != "frequency")
        whole = uncut(tokens(3, grid[0] * grid[1], grid=grid), draws(3, step, first=3 * step), 0.0, None).visible
        context = whole.reshape(3, *grid)
        for cut, full in zip(mask.visible, whole, strict=True):  # to the shortest of the batch, the lowest places
            assert cut.nonzero().flatten().tolist() == full.nonzero().flatten().tolist()[: int(whole.sum(1).min())]
        # every target cell's whole row or column is hidden from the context
        assert not (context.unsqueeze(1) & bands).any()
        assert mask.visible.sum(1).unique().tolist() == [mask.visible_count] and (mask.visible_count or 0) > 10
        sizes.add((int(steps[0, 0].sum()), int(rows[0, 0].sum())))
        seen |= set(map(tuple, context.nonzero()[:, 1:].tolist()))
    areas = [int(grid[0] * grid[1] * (0.05 + 0.025 * u)) for u in torch.linspace(0, 1, 100).tolist()]
    shapes = [0.75 + 0.75 * u for u in torch.linspace(0, 1, 100).tolist()]
    height = {min(round(math.sqrt(s * a)), grid[0] - 1) for s, a in zip(areas, shapes, strict=True)}
    width = {min(round(math.sqrt(s / a)), grid[1] - 1) for s, a in zip(areas, shapes, strict=True)}
    assert {h for h, _ in sizes} <= (height if way != "time" else {0})
    assert {w for _, w in sizes} <= (width if way != "frequency" else {0})
    columns = {column for _, column in seen}
    # over the steps almost every place is a context's; but bands over all times always hold the middle rows
    assert len(seen) > 0.8 * grid[0] * len(columns) and columns >= {0, grid[1] - 1}
    assert way != "frequency" or len(columns) == grid[1]


def test_contexts_are_blocks_of_the_grids_shape_without_targets():
    masker = MultiBlockBands(ways=["frequency"], truncate="none", context=(0.3, 0.3))
    places = set()
    for step in range(20):
        mask = masker(tokens(3, 512, grid=(64, 8)), draws(3, step, first=3 * step), 0.0, None)
        for seen, hidden in zip(mask.visible.reshape(3, 64, 8), mask.targets.any(1).reshape(3, 64, 8), strict=True):
            columns = seen.any(0).nonzero().flatten().tolist()
            assert len(columns) == round(8 * math.sqrt(0.3)) == columns[-1] - columns[0] + 1
            rows = seen.any(1).nonzero().flatten().tolist()
            first = max(rows[-1] - 34, 0)  # 35 of 64 steps, of which targets may cover the first and last
            assert rows[-1] - rows[0] < 35
            inside = [r for r in range(rows[0], rows[-1] + 1) if not hidden[r].any()]
            assert rows == inside and first <= rows[0]
            places.add((rows[0], columns[0]))
    assert len(places) > 30


def test_bands_of_padded_recordings():
    valid = (torch.arange(16) < torch.tensor([16, 9, 4]).unsqueeze(1)).repeat_interleave(4, dim=1)
    for step in range(30):
        mask = MultiBlockBands()(tokens(3, 64, grid=(16, 4), valid=valid), draws(3, step, first=3 * step), 0.0, None)
        assert not (mask.visible & ~valid).any() and not (mask.targets & ~valid.unsqueeze(1)).any()
        assert not (mask.visible & mask.targets.any(1)).any() and mask.visible.any(1)[:2].all()


def test_ways_change_from_step_to_step():
    counts, masker = set(), MultiBlockBands()
    for step in range(40):
        mask = masker(tokens(2, 512, grid=(64, 8)), draws(2, step), 0.0, None)
        part = masker(tokens(1, 512, grid=(64, 8)), draws(1, step, first=1), 0.0, None)
        assert torch.equal(mask.targets[1:], part.targets)  # as on another rank
        full = mask.targets.reshape(-1, 64, 8)
        counts.add((bool(full[0].all(0).any()), bool(full[0].all(1).any())))
    assert counts == {(True, False), (False, True), (True, True)}
    with pytest.raises(ValueError, match=r"masker\.ways"):
        MultiBlockBands(ways=["across"])
    with pytest.raises(ValueError, match=r"grid of two axes"):
        masker(tokens(2, 8), draws(2), 0.0, None)


def test_loudness_is_in_decibels():
    made = [float(Loudness(decibels=6)(wave(), one(i)).data[0, 9] / 10) for i in range(400)]
    low, high = 10 ** (-0.3), 10**0.3
    assert low - 1e-6 <= min(made) < low + 0.02 and high - 0.04 < max(made) <= high + 1e-6
    whole = Wave(torch.full((1, 3), 16384, dtype=torch.int16), 10)
    assert Loudness(decibels=0)(whole, one()).data.tolist() == [[0.5] * 3]
    with pytest.raises(ValueError, match=r"decibels"):
        Loudness(decibels=-1)


def test_parts_are_of_random_lengths_at_random_places():
    lengths, starts = [], []
    for i in range(300):
        part = Part(share=(0.2, 0.6))(wave(), one(i)).data[0]
        assert torch.equal(part.diff(), torch.ones(len(part) - 1))
        lengths.append(len(part))
        starts.append((float(part[0]) - 1) / (100 - len(part)))
    assert min(lengths) == 20 and max(lengths) == 60 and 38 < sum(lengths) / 300 < 42
    assert min(starts) < 0.03 and max(starts) > 0.97 and 0.45 < sum(starts) / 300 < 0.55
    assert len(Part(share=(0.001, 0.001))(wave(10), one()).data[0]) == 1
    with pytest.raises(ValueError, match=r"ascending shares"):
        Part(share=(0.5, 2))


@pytest.mark.parametrize("count", [3, 55, 1045, 5000])
def test_cycles_fill_a_spectrogram(count):
    view, rate = Cycle(frames=100), 1000
    starts = set()
    for i in range(50):
        made = view(wave(count, rate), one(i)).data
        assert made.shape == (1, 1015) and FilterBanks(rate, 8, 10.0, "ast").frames([1015]) == [100]
        values = (made[0] - 1).long().tolist()
        starts.add(values[0])
        assert values == [(values[0] + j) % count for j in range(1015)]
        if count >= 1015:
            assert values[-1] > values[0]  # its end does not meet its beginning
    assert len(starts) > (2 if count == 3 else 18)


class Recordings:
    """Constant recordings, one of which cannot be read."""

    labels: Any = None
    classes: Any = None
    in_memory = True

    def name(self, i):
        return str(i)

    def fingerprint(self):
        return ""

    def cache_key(self):
        return None

    def __len__(self):
        return 4

    def read(self, i):
        if i == 3:
            raise ValueError("broken")
        return Wave(torch.full((2, 30), float(i + 1)), 50)


def test_other_recordings_are_added_at_a_ratio():
    view = MixRecording(decibels=(6, 12), p=0.8)
    assert torch.equal(view(wave(), one()).data, wave().data)  # there is nothing to mix with yet
    view.fit(Recordings())
    view, ratios, untouched = pickle.loads(pickle.dumps(view)), [], 0
    for i in range(200):
        added = (view(wave(rate=50), one(i)).data - wave().data)[0]
        if not added.any():
            untouched += 1
            continue
        torch.testing.assert_close(added, added[:1].expand(100), rtol=1e-3, atol=1e-4)  # mono, round and round
        ratios.append(20 * math.log10(float(wave().data.square().mean().sqrt() / added.square().mean().sqrt())))
    assert 6 - 0.01 < min(ratios) < 6.3 and 11.7 < max(ratios) < 12.01
    assert 0.25 < untouched / 200 < 0.55  # 1 - 0.8 * 3 / 4
    with pytest.raises(ValueError, match=r"ascending numbers"):
        MixRecording(decibels=(9, 1))


def test_the_other_recording_goes_round_from_a_random_place():
    class Ramp(Recordings):
        def read(self, i):
            return Wave(torch.arange(7, dtype=torch.float32)[None] + 1, 50)

    view = MixRecording(decibels=(0, 0), p=1.0)
    view.fit(Ramp())
    firsts = set()
    for i in range(60):
        added = view(Wave(torch.full((1, 20), 3.0), 50), one(i)).data[0] - 3.0
        place = (added / added.min()).round().long()
        firsts.add(int(place[0]))
        assert place.tolist() == [(int(place[0]) - 1 + j) % 7 + 1 for j in range(20)]
    assert firsts == set(range(1, 8))
