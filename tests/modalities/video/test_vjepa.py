"""V-JEPA's masks, positions and predictor, and colours of clips, against plain references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.video.maskers import MultiBlockTubes
from mmssl.modalities.video.predictors import PerMask
from mmssl.modalities.video.views import StackFrames, UnstackFrames
from mmssl.parts.color_views import ColorJitter, Grayscale
from mmssl.parts.positions import SinCosParts
from mmssl.parts.predictors import Transformer
from mmssl.types import Tokens, TokenSpec

torch.set_num_threads(1)  # everything is small: threads would only wait for one another


def tokens(grid, b=3):
    n = math.prod(grid)
    index = torch.arange(n).expand(b, n)
    pos = torch.stack(torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij"), -1).reshape(1, n, -1)
    return Tokens(raw=torch.zeros(b, n, 1), pos=pos.expand(b, -1, -1).float(), index=index, grid=grid)


def draws(b=3, step=0, first=0):
    return Draws.of(0, 0, torch.arange(first, first + b), step=step).named("mask")


def test_sizes_of_the_paper():
    masker = MultiBlockTubes(aspect=(1.0, 1.0))
    assert masker.size(14, 14, 0.15, 0.3) == (5, 5) and masker.size(14, 14, 0.7, 0.3) == (12, 12)
    for unit in np.linspace(0, 1, 50):
        for scale in (0.15, 0.7):
            cells, aspect = int(196 * scale), 0.75 + 0.75 * unit
            wanted = tuple(min(14, round(math.sqrt(area))) for area in (cells * aspect, cells / aspect))
            assert MultiBlockTubes().size(14, 14, scale, unit) == wanted


def unions(slice_, size, count):
    """Whether a slice is the union of `count` rectangles of this size, which may overlap."""
    places = list(
        itertools.product(*(range(side - length + 1) for side, length in zip(slice_.shape, size, strict=True)))
    )
    inside = [p for p in places if slice_[p[0] : p[0] + size[0], p[1] : p[1] + size[1]].all()]
    covered = torch.zeros_like(slice_)
    for top, left in inside:
        covered[top : top + size[0], left : left + size[1]] = True
    return torch.equal(covered, slice_) and 0 < slice_.sum() <= count * size[0] * size[1]


def test_two_masks_of_each_sample_as_tubes():
    masker, grid = MultiBlockTubes(truncate="none"), (3, 14, 14)
    found = set()
    for step in range(20):
        mask = masker(tokens(grid, 4), draws(4, step), 0.0, None)
        assert (
            mask.row is not None and mask.row.tolist() == [0, 1, 2, 3, 0, 1, 2, 3] and mask.targets.shape == (8, 1, 588)
        )
        assert torch.equal(mask.targets[:, 0], mask.hidden) and mask.visible.any(1).all()
        slices = mask.hidden.reshape(8, *grid)
        assert torch.equal(slices, slices[:, :1].expand_as(slices))  # tubes through all slices
        for i, (scale, count) in enumerate(((0.15, 8), (0.7, 2))):
            fits = [
                s
                for s in {masker.size(14, 14, scale, u) for u in np.linspace(0, 1, 200)}
                if all(unions(one[0], s, count) for one in slices[4 * i : 4 * i + 4])
            ]
            assert fits  # one size for the whole batch
            found.add((i, fits[0]))
        assert len({tuple(row.tolist()) for row in mask.hidden[:4]}) == 4  # places of one's own
    assert len({size for kind, size in found if kind == 1}) > 3


def test_long_range_contexts_are_the_published_share():
    masker, share = MultiBlockTubes(truncate="none"), []
    for step in range(150):
        mask = masker(tokens((1, 14, 14), 4), draws(4, step), 0.0, None)
        share.append(mask.visible.float().mean(1)[4:].mean())
    assert float(torch.stack(share).mean()) == pytest.approx(0.18, abs=0.015)


def test_lists_are_cut_to_the_shortest_and_the_latest_go():
    grid = (4, 8, 8)
    whole = MultiBlockTubes(truncate="none")(tokens(grid, 6), draws(6), 0.0, None)
    mask = MultiBlockTubes()(tokens(grid, 6), draws(6), 0.0, None)
    for kind in (slice(0, 6), slice(6, 12)):
        for cut, full in ((mask.visible[kind], whole.visible[kind]), (mask.targets[kind, 0], whole.targets[kind, 0])):
            shortest = int(full.sum(1).min())
            for a, b in zip(cut, full, strict=True):
                assert a.nonzero().flatten().tolist() == b.nonzero().flatten().tolist()[:shortest]
    assert not (mask.visible & mask.targets[:, 0]).any()


def test_sizes_are_the_batchs_and_places_the_samples():
    """Another part of the batch, as on another rank, has the masks it would have in the whole."""
    masker = MultiBlockTubes(truncate="none")
    whole = masker(tokens((2, 14, 14), 6), draws(6, 5), 0.0, None)
    part = masker(tokens((2, 14, 14), 2), draws(2, 5, first=4), 0.0, None)
    assert torch.equal(part.visible, whole.visible[[4, 5, 10, 11]])


def test_something_is_always_seen():
    masker = MultiBlockTubes(scales=[0.7], blocks=[2], aspect=(1.5, 1.5), truncate="none")  # 14 x 10: two may cover all
    assert masker.size(14, 14, 0.7, 0.0) == (14, 10)
    mask = masker(tokens((1, 14, 14), 500), draws(500), 0.0, None)
    seen = mask.visible.sum(1)
    assert int(seen.min()) == 14 and int(seen.max()) == 56  # from one column to four
    crowd = MultiBlockTubes(scales=[0.5], blocks=[40], truncate="none")(tokens((1, 6, 6), 50), draws(50), 0.0, None)
    assert crowd.visible.any(1).all()
    with pytest.raises(ValueError, match=r"can be the whole slice"):
        MultiBlockTubes(scales=[0.99], blocks=[1])(tokens((1, 4, 4)), draws(), 0.0, None)


@pytest.mark.parametrize("said", [{"scales": [0.1]}, {"scales": [15, 70]}, {"aspect": (2, 1)}, {"truncate": "yes"}])
def test_masks_that_make_no_sense(said):
    with pytest.raises(ValueError, match=r"masker\."):
        MultiBlockTubes(**said)
    with pytest.raises(ValueError, match=r"\(time, row, column\)"):
        MultiBlockTubes()(tokens((4, 4)), draws(), 0.0, None)


@pytest.mark.parametrize("dim", [384, 1024, 20])
def test_positions_have_equal_parts(dim):
    grid = (3, 4, 5)
    wide = math.ceil(dim / 6) * 2
    made = SinCosParts(TokenSpec(1, 3, grid), dim)(tokens(grid, 1))[0]
    for place, (t, y, x) in enumerate(itertools.product(range(3), range(4), range(5))):
        row = []
        for at in (t, y, x):
            angles = [at / 10000 ** (i / (wide / 2)) for i in range(wide // 2)]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(made[place], torch.tensor(row[:dim]), atol=1e-5, rtol=1e-5)
    elsewhere = SinCosParts(TokenSpec(1, 3, (2, 2, 2)), dim)(tokens(grid, 1))[0]
    torch.testing.assert_close(elsewhere, made)


def predictor(**said):
    torch.manual_seed(0)
    return PerMask(TokenSpec(1, 3, (2, 4, 4)), 12, 12, (), dim=24, depth=2, heads=4, position=SinCosParts, **said)


def test_each_mask_has_its_token():
    """Row by row it is the plain predictor with that row's token; the tokens start at zero."""
    model = predictor()
    assert model.mask_token.shape == (2, 1, 24) and not model.mask_token.any()
    whole = tokens((2, 4, 4), 4)
    generator = torch.Generator().manual_seed(1)
    model.mask_token.data = torch.randn(2, 1, 24, generator=generator)
    seen = whole.take(torch.arange(10).expand(4, 10)).but(x=torch.randn(4, 10, 12, generator=generator))
    query = whole.take(torch.arange(20, 27).expand(4, 7))
    made = model(seen, query)
    plain = Transformer(TokenSpec(1, 3, (2, 4, 4)), 12, 12, (), dim=24, depth=2, heads=4, position=SinCosParts)
    for i in range(2):
        state = model.state_dict() | {"mask_token": model.mask_token.data[i : i + 1]}
        plain.load_state_dict(state)
        torch.testing.assert_close(made[2 * i : 2 * i + 2], plain(seen, query)[2 * i : 2 * i + 2])
    assert not torch.allclose(made[:2], plain(seen, query)[:2])


def test_padded_places_do_not_matter():
    model = predictor()
    whole = tokens((2, 4, 4), 2)
    x = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(1))
    query = whole.take(torch.arange(20, 24).expand(2, 4))
    short = whole.take(torch.arange(5).expand(2, 5)).but(x=x[:, :5])
    valid = torch.tensor([[True] * 5 + [False]] * 2)
    long = whole.take(torch.arange(6).expand(2, 6), valid=valid).but(x=x)
    torch.testing.assert_close(model(short, query), model(long, query))
    with pytest.raises(ValueError, match=r"predictor\.masks=2 does not divide the 3 rows"):
        model(tokens((2, 4, 4)).but(x=torch.zeros(3, 32, 12)), tokens((2, 4, 4)))


def test_colours_of_all_frames_change_alike():
    frames = torch.randint(0, 256, (4, 3, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip = torch.cat([frames, frames[:1]])
    one = Draws.of(0, 0, torch.tensor([0]))
    tall = StackFrames()(clip, one)
    assert tall.shape == (3, 30, 8) and torch.equal(tall[:, 6:12], clip[1])
    assert torch.equal(UnstackFrames(frames=5)(tall, one), clip)
    changed = 0
    for i in range(10):
        one = Draws.of(0, 0, torch.tensor([i]))
        colours, grey = ColorJitter(contrast=0.0), Grayscale(p=0.5)
        made = UnstackFrames(frames=5)(grey(colours(StackFrames()(clip, one), one), one), one)
        assert made.shape == clip.shape and made.dtype == torch.uint8 and torch.equal(made[0], made[4])
        for before, after in zip(clip, made, strict=True):  # each frame on its own, by the same draws
            assert torch.equal(grey(colours(before, one), one), after)
        changed += not torch.equal(made, clip)
    assert changed > 5
    with pytest.raises(ValueError, match=r"frames=4 does not divide a picture of 30 rows"):
        UnstackFrames(frames=4)(tall, one)
