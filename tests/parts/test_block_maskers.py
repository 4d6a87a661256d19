"""Block maskers against plain loops over samples that use the same random numbers, and what their papers' codes show."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.parts.beit_maskers import BEiTBlocks, grow, sometimes, spread
from mmssl.parts.block_maskers import InverseBlocks, MultiBlock, Several, block_size
from mmssl.parts.maskers import Random
from tests.small import tokens


def draws(count=8, first=0, step=0):
    return Draws.of(0, 0, torch.arange(first, first + count), step=step)


def grid(b, rows=14, columns=14, **more):
    return tokens(b, rows * columns, width=1, grid=(rows, columns), **more)


def ask(masker, b=8, side=14, step=0, **more):
    return masker(grid(b, side, side, **more), draws(b, step * b, step), 0.0, None)


def one_size(u, sides, scale, aspect):
    """I-JEPA's block size, in Python's own numbers."""
    area = int(sides[0] * sides[1] * (scale[0] + u * (scale[1] - scale[0])))
    shape = aspect[0] + u * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
    while height >= sides[0]:
        height -= 1
    while width >= sides[1]:
        width -= 1
    return height, width


def cells(top, left, height, width):
    return {(row, column) for row in range(top, top + height) for column in range(left, left + width)}


def flat(region, columns):
    return sorted(row * columns + column for row, column in region)


def plain_multiblock(given, sides, k, scale, aspect, context, min_keep, reach):
    """I-JEPA's collator, sample by sample: (context, targets) as lists of places."""
    height, width = one_size(float(given.named("target size").batch().uniform(1)), sides, scale, aspect)
    tall, wide = one_size(float(given.named("context size").batch().uniform(1)), sides, context, (1.0, 1.0))
    found = []
    places, tries = given.named("targets").uniform(k, 2), given.named("context").uniform(k + 1, 20, 2)
    for corner, attempts in zip(places.tolist(), tries.tolist(), strict=True):
        targets = [
            cells(int(y * (sides[0] - height + reach)), int(x * (sides[1] - width + reach)), height, width)
            for y, x in corner
        ]
        chosen = None
        for dropped, level in enumerate(attempts):
            for y, x in level:
                block = cells(int(y * (sides[0] - tall + reach)), int(x * (sides[1] - wide + reach)), tall, wide)
                rest = block.difference(*targets[: k - dropped])
                if chosen is None and len(rest) > min_keep:
                    chosen = rest
        assert chosen is not None
        found.append((flat(chosen, sides[1]), [flat(target, sides[1]) for target in targets]))
    return found


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize(
    ("sides", "said"),
    [
        ((14, 14), {}),  # I-JEPA
        ((64, 8), {}),  # A-JEPA
        ((8, 8), {"targets": 5, "context": (0.2, 0.5), "min_keep": 8}),  # many second tries
        ((7, 9), {"targets": 9, "scale": (0.1, 0.4), "context": (0.5, 0.8)}),  # targets stop constraining
    ],
)
def test_multiblock_equals_a_plain_loop(sides, said, faithful):
    said = {"targets": 4, "scale": (0.15, 0.2), "aspect": (0.75, 1.5), "context": (0.85, 1.0), "min_keep": 10} | said
    for step in range(6):
        given = draws(8, step=step)
        mask = MultiBlock(**said, truncate="none", faithful=faithful)(grid(8, *sides), given, 0.0, None)
        expected = plain_multiblock(
            given, sides, said["targets"], said["scale"], said["aspect"], said["context"], said["min_keep"],
            0 if faithful else 1,
        )  # fmt: skip
        for i, (context, targets) in enumerate(expected):
            assert mask.visible[i].nonzero().flatten().tolist() == context
            assert [target.nonzero().flatten().tolist() for target in mask.targets[i]] == targets
        assert mask.visible_count is None and mask.target_count == len(expected[0][1][0])


def sides_of(block):
    rows, columns = block.reshape(14, 14).nonzero().unbind(1)
    height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
    assert height * width == int(block.sum())  # a full rectangle
    return height, width


def test_multiblock_sizes_are_one_a_batch_and_those_of_ijepa():
    sizes = set()
    for step in range(120):
        mask = ask(MultiBlock(), b=3, step=step)
        here = {sides_of(block) for block in mask.targets.flatten(0, 1)}
        assert len(here) == 1
        sizes |= here
        assert mask.targets.shape == (3, 4, 196)
        assert not (mask.visible.unsqueeze(1) & mask.targets).any()
        assert int(mask.visible.sum(1).min()) > 10
    assert sizes == {(5, 6), (6, 5), (6, 6), (7, 5), (8, 5)}


def test_multiblock_sizes_are_reached_over_the_whole_range_of_one_number():
    u = torch.linspace(0, 1 - 2**-24, 5001)
    height, width = block_size(u, (14, 14), (0.15, 0.2), (0.75, 1.5))
    expected = [one_size(float(x), (14, 14), (0.15, 0.2), (0.75, 1.5)) for x in u]
    assert list(zip(height.tolist(), width.tolist(), strict=True)) == expected
    assert {*expected} == {(5, 6), (6, 5), (6, 6), (7, 5), (8, 5)}


def test_the_released_code_never_reaches_the_last_row_and_column():
    touched = {True: torch.zeros(196, dtype=torch.bool), False: torch.zeros(196, dtype=torch.bool)}
    for step in range(30):
        for faithful, union in touched.items():
            mask = ask(MultiBlock(faithful=faithful, truncate="none"), step=step)
            union |= mask.targets.flatten(0, 1).any(0) | mask.visible.any(0)
            if faithful:  # the context block is the 13 x 13 at (0, 0), less the targets
                corner = torch.zeros(14, 14, dtype=torch.bool)
                corner[:13, :13] = True
                assert torch.equal(mask.visible, corner.flatten() & ~mask.targets.any(1))
    inner = touched[True].reshape(14, 14)
    assert inner[:13, :13].all() and not inner[13].any() and not inner[:, 13].any()
    assert touched[False].all()


def test_a_grid_too_small_for_min_keep_has_the_largest_context_without_targets():
    mask = ask(MultiBlock(truncate="none"), side=4)  # a context block has 9 tokens, and min_keep is 10
    union = mask.targets.any(1)
    assert not (mask.visible & union).any() and mask.visible.any(1).all()
    corner = torch.zeros(4, 4, dtype=torch.bool)
    corner[:3, :3] = True
    assert torch.equal(mask.visible, corner.flatten() & ~union)


def test_contexts_are_cut_to_the_shortest_of_the_batch(monkeypatch):
    full, cut = ask(MultiBlock(truncate="none")), ask(MultiBlock())
    shortest = int(full.visible.sum(1).min())
    assert cut.visible_count == shortest < int(full.visible.sum(1).max()) and torch.equal(cut.targets, full.targets)
    for i in range(8):
        assert cut.visible[i].nonzero().flatten().tolist() == full.visible[i].nonzero().flatten()[:shortest].tolist()
    assert cut.visible_index[0].shape == (8, shortest) and cut.target_index[0].shape == (8, 4, cut.target_count)
    monkeypatch.setattr(ranks, "smallest", lambda n, device=None: min(n, 17))  # another rank has a shorter one
    assert ask(MultiBlock()).visible.sum(1).tolist() == [17] * 8


@pytest.mark.parametrize(
    "masker",
    [
        MultiBlock(truncate="none"), BEiTBlocks(), BEiTBlocks(ratio=0.5, fill="blocks"), InverseBlocks(),
        BEiTBlocks(ratio=sometimes, fill="none"), Several(masker=InverseBlocks(), count=1),
    ],
)  # fmt: skip
def test_the_mask_of_a_sample_does_not_depend_on_its_batch(masker):
    whole = masker(grid(8), draws(8), 0.0, None)
    for first, count in ((3, 1), (2, 5)):
        part = masker(grid(count), draws(count, first), 0.0, None)
        assert torch.equal(part.visible, whole.visible[first : first + count])
        assert torch.equal(part.targets, whole.targets[first : first + count])
    assert len({tuple(row) for row in whole.visible.tolist()}) > 1
    assert not torch.equal(masker(grid(8), draws(8, 8), 0.0, None).targets, whole.targets)


@pytest.mark.parametrize("masker", [MultiBlock(), BEiTBlocks(), BEiTBlocks(fill="none"), InverseBlocks()])
def test_padding_is_neither_visible_nor_asked_for(masker):
    valid = (torch.arange(196) % 14).expand(5, -1) < torch.tensor([14, 12, 14, 3, 8]).unsqueeze(1)
    mask = ask(masker, b=5, valid=valid)
    assert not (mask.visible & ~valid).any() and not (mask.targets & ~valid.unsqueeze(1)).any()
    assert mask.visible_count is None and mask.target_count is None and mask.targets.any()
    if isinstance(masker, InverseBlocks):
        assert mask.visible.sum(1).tolist() == [int(n * 0.2) for n in valid.sum(1).tolist()]


# BEiT


def plain_beit(given, count, sides, smallest, fill):
    """BEiT's generator, sample by sample: places hidden by blocks, and how many blocks there were."""
    low, high = math.log(0.3), math.log(1 / 0.3)
    found = []
    uniform = [given.named(f"block {turn}").uniform(10, 4).double().tolist() for turn in range(60)]
    for i in range(len(given.keys)):
        hidden, blocks = set(), 0
        for turn in range(60):
            missing = count[i] - len(hidden)
            if missing <= 0:
                break
            new = set()
            for a, s, y, x in uniform[turn][i]:
                area, shape = smallest + (missing - smallest) * a, math.exp(low + (high - low) * s)
                height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
                if height >= sides[0] or width >= sides[1]:
                    continue
                block = cells(int(y * (sides[0] - height + 1)), int(x * (sides[1] - width + 1)), height, width)
                if 0 < len(block - hidden) <= missing:
                    new = block - hidden
                    break
            hidden |= new
            blocks += bool(new)
            if not new and fill != "blocks":
                break
        found.append((flat(hidden, sides[1]), blocks))
    return found


@pytest.mark.parametrize(
    ("sides", "count", "smallest", "fill"),
    [
        ((14, 14), 75, 16, "random"), ((14, 14), 98, 16, "blocks"), ((14, 14), 60.7, 16, "none"),
        ((8, 20), 64, 4, "none"), ((5, 5), 12, 16, "random"),
    ],
)  # fmt: skip
def test_growing_blocks_equal_a_plain_loop(sides, count, smallest, fill):
    given = draws(24)
    wanted = torch.full((24,), float(count))
    ours = grow(given, wanted, sides, smallest, (0.3, 1 / 0.3), fill == "blocks").flatten(1)
    for i, (places, _) in enumerate(plain_beit(given, wanted.tolist(), sides, smallest, fill)):
        assert ours[i].nonzero().flatten().tolist() == places


@pytest.mark.parametrize(("ratio", "fill", "asked"), [(0.383, "random", 75), (0.4, "random", 78), (0.5, "blocks", 98)])
def test_counts_are_exact(ratio, fill, asked):
    mask = ask(BEiTBlocks(ratio=ratio, fill=fill), b=200)
    assert mask.targets.sum((1, 2)).tolist() == [asked] * 200 and (mask.visible_count, mask.target_count) == (
        196 - asked,
        asked,
    )
    assert torch.equal(mask.targets[:, 0], mask.hidden)
    small = BEiTBlocks(ratio=ratio, fill=fill)(grid(6, 4, 4), draws(6), 0.0, None)  # no block of 16 fits
    assert small.targets.sum((1, 2)).tolist() == [int(16 * ratio)] * 6


def test_single_tokens_only_complete_what_blocks_began():
    given = draws(50)
    blocks = grow(given, torch.full((50,), 75.0), (14, 14), 16, (0.3, 1 / 0.3)).flatten(1)
    mask = BEiTBlocks(ratio=0.383)(grid(50), given, 0.0, None)
    assert not (blocks & ~mask.hidden).any() and (blocks.sum(1) <= 75).all() and (blocks.sum(1) < 75).any()


def test_masks_of_cae_look_as_specified():
    """98 of 196, least area 16: 5.5 blocks and a lag-1 autocorrelation of the visible map of 0.76, on average."""
    given = draws(400)
    found = plain_beit(given, [98.0] * 400, (14, 14), 16, "blocks")
    assert sum(blocks for _, blocks in found) / 400 == pytest.approx(5.5, abs=0.25)
    x = BEiTBlocks(ratio=0.5, fill="blocks")(grid(400), given, 0.0, None).visible.double().reshape(400, 14, 14) - 0.5
    lag = ((x[:, 1:] * x[:, :-1]).mean() + (x[:, :, 1:] * x[:, :, :-1]).mean()) / 2 / 0.25
    assert float(lag) == pytest.approx(0.76, abs=0.02)


def test_ibot_leaves_about_half_of_the_samples_whole():
    given = draws(600)
    ratio = sometimes(given.named("ratio"), 600)
    mask = BEiTBlocks(ratio=sometimes, smallest=None, fill="none")(grid(600), given, 0.0, None)
    hidden = mask.hidden.sum(1)
    assert torch.equal(hidden == 0, ratio == 0) and abs(float((ratio == 0).double().mean()) - 0.5) < 0.07
    some = ratio[ratio > 0]
    assert float(some.min()) >= 0.1 and float(some.max()) < 0.5 and abs(float(some.mean()) - 0.3) < 0.025
    assert (hidden <= (ratio.double() * 196)).all() and (hidden > 0.9 * ratio * 196)[ratio > 0].float().mean() > 0.9
    assert torch.equal(mask.targets[:, 0], mask.hidden) and mask.visible_count is None and mask.target_count is None
    assert mask.target_index[0].shape[:2] == (600, 1) and mask.visible[ratio == 0].all()
    # the least area is that of a third of the grid's side
    assert torch.equal(
        grow(given, ratio.double() * 196, (14, 14), 16, (0.3, 1 / 0.3)).flatten(1), mask.hidden
    )  # (14 // 3)^2 = 16


def test_dinov2_masks_half_of_the_batch_with_ratios_spread_over_the_range():
    for step in range(4):
        ratio = spread(draws(9, first=9 * step), 9)
        masked = ratio[ratio > 0].sort().values.double()
        assert len(masked) == 4
        edges = torch.linspace(0.1, 0.5, 5, dtype=torch.float64)
        assert ((masked >= edges[:-1] - 1e-7) & (masked <= edges[1:] + 1e-7)).all()
    first = torch.stack([spread(draws(4, first=4 * i), 4) > 0 for i in range(500)])
    assert abs(first.double().mean(0) - 0.5).max() < 0.09  # any sample may be one of them
    assert not spread(draws(1), 1).any()


# data2vec 2.0


def test_inverse_blocks_equal_a_plain_loop():
    given = draws(40)
    mask = InverseBlocks()(grid(40), given, 0.0, None)
    centres, noise = given.named("centres").integers(0, 196, 5), given.named("rest").uniform(196)
    for i in range(40):
        kept = set()
        for centre in centres[i].tolist():
            row, column = divmod(centre, 14)
            kept |= {(y, x) for y, x in cells(row - 1, column - 1, 3, 3) if 0 <= y < 14 and 0 <= x < 14}
        kept = set(flat(kept, 14))
        order = sorted(range(196), key=lambda place, kept=kept, i=i: (place not in kept, float(noise[i, place])))
        assert mask.visible[i].nonzero().flatten().tolist() == sorted(order[:39])
    assert (mask.visible_count, mask.target_count) == (39, 157) and torch.equal(mask.targets[:, 0], mask.hidden)


def test_any_grid_has_inverse_blocks():
    for sides, keep, block, visible in (((8, 8), 0.2, 3, 12), ((4, 4), 0.25, 3, 4), ((64, 8), 0.3, 2, 153)):
        mask = InverseBlocks(keep=keep, block=block)(grid(5, *sides), draws(5), 0.0, None)
        assert mask.visible.sum(1).tolist() == [visible] * 5


def test_several_masks_of_one_sample():
    mask = ask(Several(masker=InverseBlocks()), b=3)
    assert mask.visible.shape == (48, 196) and mask.targets.shape == (48, 1, 196)
    assert mask.row is not None and mask.row.tolist() == [0] * 16 + [1] * 16 + [2] * 16
    assert mask.visible.sum(1).tolist() == [39] * 48 and (mask.visible_count, mask.target_count) == (39, 157)
    assert len({tuple(row) for row in mask.visible.tolist()}) == 48
    for i in (0, 7, 15):
        alone = InverseBlocks()(grid(3), draws(3).named(f"copy {i}"), 0.0, None)
        assert torch.equal(mask.visible[i::16], alone.visible) and torch.equal(mask.targets[i::16], alone.targets)


def test_several_masks_of_unequal_counts_are_padded():
    mask = ask(Several(masker=MultiBlock(), count=3), b=2, step=1)
    counts = mask.visible.sum(1).reshape(2, 3)
    assert mask.targets.shape == (6, 4, 196) and torch.equal(counts[0], counts[1])
    assert mask.visible_count == (int(counts[0, 0]) if len(set(counts[0].tolist())) == 1 else None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiBlock(truncate="some"), r"masker\.truncate has to be 'batch_min' or 'none' \(got 'some'\)"),
        (lambda: MultiBlock(targets=0), r"masker\.targets has to be at least one block \(got 0\)"),
        (lambda: MultiBlock(scale=(0.2, 0.1)), r"masker\.scale has to be two ascending numbers above 0 and at most 1"),
        (lambda: MultiBlock(context=(85, 100)), r"masker\.context .* at most 1 \(got \[85, 100\]\)"),
        (lambda: MultiBlock(aspect=(0.0, 1.0)), r"masker\.aspect has to be two ascending numbers above 0 \(got"),
        (lambda: BEiTBlocks(ratio=40), r"masker\.ratio .*did you mean 0\.4\?"),
        (lambda: BEiTBlocks(fill="yes"), r"masker\.fill has to be 'random', 'blocks' or 'none'"),
        (lambda: InverseBlocks(keep=0.0), r"masker\.keep is the share of tokens that stay visible"),
        (lambda: Several(masker=Random(), count=0), r"masker\.count is the number of masks per sample"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("masker", [MultiBlock(), BEiTBlocks(), InverseBlocks()])
def test_blocks_need_a_grid_of_two_axes(masker):
    for given in (tokens(2, 16), tokens(2, 64, grid=(4, 4)).but(grid=(4, 4, 4))):
        with pytest.raises(ValueError, match=r"masker/\w+ needs whole tokens on a grid of two axes"):
            masker(given, draws(2), 0.0, None)


def test_a_context_is_found_among_what_is_no_padding():
    """Recordings of which only the first rows are there: all of them lie in target blocks now and then."""
    grid, rows = (12, 8), torch.arange(1, 9)
    valid = (torch.arange(12) < rows.unsqueeze(1)).repeat_interleave(8, 1)
    padded = tokens(8, 96, grid=grid, valid=valid)
    for step in range(20):
        mask = MultiBlock(faithful=False)(padded, Draws.of(0, 0, torch.arange(8), step=step), 0.0, None)
        assert not (mask.visible & ~valid).any() and not (mask.targets & ~valid.unsqueeze(1)).any()
        assert (mask.visible.sum(1) > 0).all()
        assert (mask.visible.sum(1)[4:] > 10).all()  # samples with 40 tokens and more keep what is asked
