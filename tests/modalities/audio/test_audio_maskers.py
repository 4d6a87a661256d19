import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.audio.corruptors import Alter
from mmssl.modalities.audio.maskers import Bands, Blocks, TimeFrequency
from mmssl.types import Mask, TokenSpec
from tests.small import tokens


def draws(b, seed=0):
    return Draws.of(seed, 0, torch.arange(b)).named("mask")


def padded(b, n, counts, width=80):
    valid = torch.arange(n) < torch.tensor(counts).unsqueeze(1)
    return tokens(b, n, width, valid=valid)


@pytest.mark.parametrize(("time", "frequency", "count"), [(0.7, 0.3, 95), (0.6, 0.5, 100), (0.2, 0.2, 306)])
def test_time_frequency_keeps_the_papers_counts(time, frequency, count):
    mask = TimeFrequency(time=time, frequency=frequency)(tokens(6, 512, grid=(64, 8)), draws(6), 0.0, None)
    assert mask.visible_count == count and mask.target_count == 512 - count
    seen = mask.visible.reshape(6, 64, 8)
    steps, rows = seen.any(2), seen.any(1)
    assert torch.equal(seen, steps.unsqueeze(2) & rows.unsqueeze(1))  # an outer product: whole steps, whole rows
    assert set(steps.sum(1).tolist()) == {int(64 * (1 - time))} and set(rows.sum(1).tolist()) == {
        int(8 * (1 - frequency))
    }
    assert torch.equal(mask.targets[:, 0], ~mask.visible)
    assert len({tuple(row.tolist()) for row in steps}) == 6
    every = torch.stack(
        [TimeFrequency()(tokens(8, 32, grid=(8, 4)), draws(8, s), 0.0, None).visible for s in range(100)]
    )
    share = every.float().mean((0, 1))
    assert (share - 3 * 2 / 32).abs().max() < 0.06  # every place is as likely


def test_time_frequency_of_padded_samples_is_that_of_their_own_steps():
    valid = (torch.arange(10) < torch.tensor([10, 6, 1]).unsqueeze(1)).repeat_interleave(4, dim=1)
    mask = TimeFrequency(time=0.5, frequency=0.5)(tokens(3, 40, grid=(10, 4), valid=valid), draws(3), 0.0, None)
    assert mask.visible.sum(1).tolist() == [10, 6, 2]  # 5, 3 and at least one step, of two rows each
    assert torch.equal(mask.visible | mask.targets[:, 0], valid) and not (mask.visible & mask.targets[:, 0]).any()


@pytest.mark.parametrize("grid", [(16, 8), (5, 3)])
def test_blocks_hide_the_share_in_rectangles(grid):
    n = grid[0] * grid[1]
    mask = Blocks(ratio=0.5, time=(3, 5), frequency=(2, 4))(tokens(20, n, grid=grid), draws(20), 0.0, None)
    hidden = ~mask.visible
    assert mask.target_count == n // 2 and hidden.sum(1).tolist() == [n // 2] * 20
    assert torch.equal(mask.targets[:, 0], hidden) and mask.visible_count == n - n // 2
    grids = hidden.reshape(20, *grid)
    same = (grids[:, 1:] == grids[:, :-1]).float().mean() + (grids[:, :, 1:] == grids[:, :, :-1]).float().mean()
    assert same > (1.25 if n == 128 else 1.05)  # chance would be 1.0


def test_one_block_is_one_rectangle():
    mask = Blocks(ratio=12.0 / 128, time=(4, 4), frequency=(3, 3), tries=8)(
        tokens(30, 128, grid=(16, 8)), draws(30), 0.0, None
    )
    places = set()
    for row in (~mask.visible).reshape(30, 16, 8):
        time, frequency = row.any(1).nonzero()[:, 0], row.any(0).nonzero()[:, 0]
        assert len(time) == 4 and len(frequency) == 3 and int(row.sum()) == 12
        places.add((int(time[0]), int(frequency[0])))
    assert len(places) > 15


def test_blocks_of_padded_samples():
    valid = (torch.arange(8) < torch.tensor([8, 4, 1]).unsqueeze(1)).repeat_interleave(4, dim=1)
    mask = Blocks(ratio=0.5)(tokens(3, 32, grid=(8, 4), valid=valid), draws(3), 0.0, None)
    assert mask.targets.sum(2)[:, 0].tolist() == [16, 8, 2]
    assert torch.equal(mask.visible | mask.targets[:, 0], valid)


def spans_of(row):
    """Starts and lengths of the runs of True in a row."""
    edges = torch.diff(torch.nn.functional.pad(row.int(), (1, 1)))
    starts = (edges == 1).nonzero()[:, 0]
    return starts, (edges == -1).nonzero()[:, 0] - starts


def test_tera_marks_21_spans_of_1000_frames():
    """round(1000 * 0.15 / 7) = 21 spans of 7 frames that start below 993, so at most 147 frames."""
    given = tokens(200, 1000, 8)
    mask = Bands(frequency=0.0)(given, draws(200), 0.0, None)
    hidden = ~mask.visible
    counts = hidden.sum(1)
    assert counts.max() <= 147 and counts.float().mean() > 130
    assert (counts == 147).any()  # nothing overlaps: exactly 21 spans
    for row in hidden[:20]:
        starts, lengths = spans_of(row)
        assert (lengths >= 7).all() and starts.max() < 993
    assert mask.elements is not None and torch.equal(mask.elements.all(2), hidden)
    assert torch.equal(mask.targets[:, 0], hidden)


def test_tera_band_is_up_to_a_fifth_of_the_bins_in_all_frames():
    mask = Bands(time=0.0)(tokens(2000, 9, 80), draws(2000), 0.0, None)
    assert mask.elements is not None and mask.visible.all()
    band = mask.elements[:, 0]
    assert torch.equal(mask.elements, band.unsqueeze(1).expand_as(mask.elements))
    wide = band.sum(1)
    empty = wide == 80  # a band of width 0 marks nothing: then all values are scored
    width = torch.where(empty, 0, wide)
    counts = torch.bincount(width, minlength=17)
    assert len(counts) == 17 and (counts - 2000 / 17).abs().max() < 5 * (2000 / 17) ** 0.5
    for row in band[~empty][:50]:
        _, lengths = spans_of(row)
        assert len(lengths) == 1


def test_nothing_marked_means_that_all_valid_values_are_scored():
    given = padded(3, 20, [20, 11, 4])
    mask = Bands(time=0.0, frequency=0.0)(given, draws(3), 0.0, None)
    assert mask.elements is not None and given.valid is not None
    assert torch.equal(mask.elements, given.valid.unsqueeze(2).expand(-1, -1, 80))
    assert torch.equal(mask.targets[:, 0], given.valid) and torch.equal(mask.visible, given.valid)


@pytest.mark.parametrize(("count", "spans"), [(1, 0), (5, 0), (24, 1), (70, 2), (400, 9)])
def test_spans_of_short_recordings(count, spans):
    """round(n * 0.15 / 7) with halves to even, as Python's round; short recordings have one start at least."""
    mask = Bands(frequency=0.0, time=0.15)(padded(60, 400, [count] * 60), draws(60), 0.0, None)
    hidden = ~mask.visible[:, :count]
    assert not mask.visible[:, count:].any() and not mask.targets[:, 0, count:].any()
    assert hidden.sum(1).max() == spans * 7 if spans < 9 else hidden.sum(1).max() <= 63


def test_padding_never_counts():
    given = padded(2, 300, [300, 120])
    mask = Bands()(given, draws(2), 0.0, None)
    assert mask.elements is not None and not mask.elements[1, 120:].any() and not mask.visible[1, 120:].any()
    alone = Bands()(tokens(1, 120, 80), Draws.of(0, 0, torch.tensor([1])).named("mask"), 0.0, None)
    assert alone.elements is not None and torch.equal(alone.elements[0], mask.elements[1, :120])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeFrequency(time=60), r"masker\.time is a share .*did you mean 0\.6"),
        (lambda: Bands(width=0), r"masker\.width has to be at least one frame"),
        (lambda: Bands(frequency=1.0), r"masker\.frequency is a share"),
        (lambda: Blocks(time=(5, 2)), r"masker\.time has to be two ascending numbers of tokens \(got \[5, 2\]\)"),
        (lambda: TimeFrequency(time=0.99)(tokens(1, 32, grid=(8, 4)), draws(1), 0.0, None), "leave nothing of the grid 8 x 4"),
        (lambda: TimeFrequency()(tokens(1, 32), draws(1), 0.0, None), "needs tokens on a grid.*choose masker/random"),
        (lambda: Alter(TokenSpec(80, 1), "full", 8, zero=0.9, swap=0.2), "zero . swap is at most 1"),
        (
            lambda: Alter(TokenSpec(80, 1), "full", 8)(tokens(1, 4), Mask(torch.ones(1, 4).bool(), torch.ones(1, 1, 4).bool()), draws(1)),
            "corruptor/alter needs a masker that marks single values",
        ),
    ],
)  # fmt: skip
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def altered(given, mask, b, seed=0, **said):
    corruptor = Alter(TokenSpec(80, 1), "full", 8, **said)
    made = corruptor(given, mask, Draws.of(seed, 0, torch.arange(b)).named("corrupt"))
    assert made.valid is given.valid and torch.equal(made.index, given.index)
    return made.raw


def test_zeroed_spans_and_band():
    given = padded(4, 60, [60, 60, 30, 50])
    before = given.raw.clone()
    mask = Bands()(given, draws(4), 0.0, None)
    raw = altered(given, mask, 4, zero=1.0, swap=0.0, noise=0.0)
    assert torch.equal(given.raw, before)  # the target stays as it was, to the bit
    assert torch.equal(raw, given.raw.masked_fill(mask.elements, 0.0))


def test_kept_spans_still_lose_the_band():
    given = padded(4, 60, [60, 60, 30, 50])
    mask = Bands()(given, draws(4), 0.0, None)
    raw = altered(given, mask, 4, zero=0.0, swap=0.0, noise=0.0)
    for i in range(4):
        outside = mask.visible[i].nonzero()[0, 0]
        band = mask.elements[i, outside]
        assert given.valid is not None
        gone = band & given.valid[i].unsqueeze(1)
        assert torch.equal(raw[i], given.raw[i].masked_fill(gone, 0.0))


def test_swapped_spans_come_from_elsewhere_in_the_recording():
    """Each run of hidden frames becomes some other stretch of the same recording, frame by frame in order."""
    n, counts = 90, [90, 40, 12, 7]
    given = padded(4, n, counts)
    given = given.but(
        raw=torch.arange(n).float().reshape(1, n, 1) + 1000 * torch.arange(4).reshape(4, 1, 1) + torch.zeros(80) + 1
    )
    mask = Bands(frequency=0.0, time=0.4)(given, draws(4), 0.0, None)
    seen = set()
    for seed in range(20):
        raw = altered(given, mask, 4, seed, zero=0.0, swap=1.0, noise=0.0)
        for i, count in enumerate(counts):
            hidden = ~mask.visible[i, :count]
            assert torch.equal(raw[i, :count][~hidden], given.raw[i, :count][~hidden])
            assert torch.equal(raw[i, count:], given.raw[i, count:])
            for start, length in zip(*(part.tolist() for part in spans_of(hidden)), strict=True):
                source = raw[i, start : start + length, 0] - 1000 * i - 1
                assert torch.equal(source, source[0] + torch.arange(length))
                assert 0 <= source[0] and source[-1] < count
                seen.add((i, start, int(source[0])))
    assert len(seen) > 60


def test_one_throw_decides_for_a_whole_recording():
    b = 1500
    given = tokens(b, 30, 80)
    mask = Bands(frequency=0.0)(given, draws(b), 0.0, None)
    raw = altered(given, mask, b, noise=0.0)
    hidden = mask.hidden
    zeroed = torch.stack([(raw[i][hidden[i]] == 0).all() for i in range(b)])
    kept = torch.tensor([torch.equal(raw[i], given.raw[i]) for i in range(b)])
    none = torch.stack([(raw[i][hidden[i]] == 0).any() for i in range(b)])
    assert torch.equal(zeroed, none)
    assert abs(float(zeroed.float().mean()) - 0.8) < 0.05
    # a stretch of 30 frames may also be replaced by itself, with probability 1 / 24
    assert abs(float(kept.float().mean()) - 0.1) < 0.035


def test_noise_is_normal_and_falls_on_some_recordings():
    b = 600
    given = padded(b, 12, [9] * b)
    mask = Bands(time=0.0, frequency=0.0)(given, draws(b), 0.0, None)
    change = altered(given, mask, b, zero=0.0, swap=0.0) - given.raw
    noisy = change.flatten(1).any(1)
    assert abs(float(noisy.float().mean()) - 0.15) < 0.05
    assert not change[:, 9:].any()
    values = change[noisy, :9].flatten()
    assert abs(float(values.mean())) < 0.005 and abs(float(values.std()) - 0.2) < 0.003
    assert abs(float((values.abs() < 0.2).float().mean()) - 0.6827) < 0.01
    every = altered(given, mask, b, zero=0.0, swap=0.0, noise=1.0) - given.raw
    torch.testing.assert_close(every[noisy], change[noisy])


def test_what_is_altered_does_not_depend_on_the_padding():
    short, long = padded(2, 40, [40, 25]), padded(2, 64, [40, 25])
    long = long.but(raw=torch.cat([short.raw, torch.randn(2, 24, 80)], 1))
    one, two = (altered(t, Bands()(t, draws(2), 0.0, None), 2, zero=0.3, swap=0.7, noise=1.0) for t in (short, long))
    assert torch.equal(one[0], two[0, :40]) and torch.equal(one[1, :25], two[1, :25])
