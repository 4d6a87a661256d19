"""Point-JEPA's order of groups and its runs, and views for contrast, against plain references."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.data.source import BadSample
from mmssl.draws import Draws
from mmssl.modalities.pointcloud.geometry import nearest_walk
from mmssl.modalities.pointcloud.maskers import Contiguous
from mmssl.modalities.pointcloud.tokenizer import PointTokenizer
from mmssl.modalities.pointcloud.views import CropCloud, DropPoints, Rotate, SamplePoints
from mmssl.types import View
from tests.small import tokens

torch.set_num_threads(1)  # everything is small: threads would only wait for one another


def cloud(*shape, seed=0):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed))


def draws(b=4, step=0, seed=0):
    return Draws.of(seed, 0, torch.arange(b), step=step).named("mask")


def one(i=0):
    return Draws.of(0, 0, torch.tensor([i]))


def walked(points):
    """The greedy walk, point by point."""
    left = list(range(len(points)))
    here = min(left, key=lambda i: sum(points[i]))
    order = []
    while True:
        order.append(here)
        left.remove(here)
        if not left:
            return order
        here = min(left, key=lambda i: math.dist(points[order[-1]], points[i]))


def test_the_walk_is_greedy_from_the_smallest_sum():
    points = cloud(5, 40).double()
    order = nearest_walk(points)
    assert order.tolist() == [walked(one) for one in points.tolist()]
    assert order[:, 0].tolist() == points.sum(-1).argmin(1).tolist()
    assert order.sort(1).values.tolist() == [list(range(40))] * 5  # a permutation
    together = nearest_walk(torch.zeros(2, 6, 3))
    assert together.tolist() == [list(range(6))] * 2  # of equals the first


def test_walking_groups_are_the_same_groups_in_another_order():
    points = cloud(3, 64)
    chosen, walk = (PointTokenizer({}, groups=12, size=5, order=o)(View(points, "")) for o in ("chosen", "walk"))
    for i in range(3):
        order = walked(chosen.pos[i].tolist())
        assert torch.equal(walk.pos[i], chosen.pos[i, order]) and torch.equal(walk.raw[i], chosen.raw[i, order])
    assert walk.index.tolist() == [list(range(12))] * 3
    step = (walk.pos[:, 1:] - walk.pos[:, :-1]).norm(dim=-1).mean()
    assert step < 0.7 * (chosen.pos[:, 1:] - chosen.pos[:, :-1]).norm(dim=-1).mean()
    with pytest.raises(ValueError, match=r"'chosen' or 'walk'"):
        PointTokenizer({}, order="random")


def runs(flags):
    """First and last place of the True entries, and how many there are."""
    places = flags.nonzero().flatten().tolist()
    return places[0], places[-1], len(places)


def test_contiguous_targets_and_context_of_the_paper():
    masker, sizes, starts, shares = Contiguous(), set(), set(), []
    for step in range(300):
        mask = masker(tokens(4, 64), draws(4, step), 0.0, None)
        assert mask.targets.shape == (4, 4, 64) and mask.row is None
        assert torch.equal(mask.targets, mask.targets[:1].expand(4, -1, -1))  # one draw for the whole batch
        assert torch.equal(mask.visible, mask.visible[:1].expand(4, -1))
        for block in mask.targets[0]:
            first, last, count = runs(block)
            assert count == last - first + 1 == mask.target_count  # a run
            starts.add(first)
        hidden = mask.targets[0].any(0)
        assert not (mask.visible[0] & hidden).any()  # no context index is in any target
        free = [i for i in range(64) if not hidden[i]]
        seen = mask.visible[0].nonzero().flatten().tolist()
        at = free.index(seen[0])
        assert seen == free[at : at + len(seen)] and len(seen) == mask.visible_count  # a window of the list
        assert int(0.4 * len(free)) <= len(seen) <= int(0.75 * len(free))
        shares.append(len(seen) / len(free))
        sizes.add(mask.target_count)
    assert sizes == {9, 10, 11, 12}
    assert min(starts) == 0 and max(starts) == 64 - 9 and len(starts) > 45
    assert 0.54 < sum(shares) / len(shares) < 0.59  # half a token of .575 is lost to rounding down


def test_contiguous_is_the_same_for_every_part_of_the_batch():
    masker = Contiguous()
    whole = masker(tokens(6, 32), Draws.of(3, 0, torch.arange(6), step=7), 0.0, None)
    part = masker(tokens(2, 32), Draws.of(3, 0, torch.arange(4, 6), step=7), 0.0, None)
    assert torch.equal(whole.targets[4:], part.targets) and torch.equal(whole.visible[4:], part.visible)
    later = masker(tokens(6, 32), Draws.of(3, 0, torch.arange(6), step=8), 0.0, None)
    assert not torch.equal(whole.targets, later.targets)


def test_contiguous_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"masker\.blocks=5 runs of up to 0\.2"):
        Contiguous(blocks=5)
    with pytest.raises(ValueError, match=r"masker\.context"):
        Contiguous(context=(0.0, 0.5))
    with pytest.raises(ValueError, match=r"cover all 4 tokens"):
        Contiguous()(tokens(2, 4), draws(2), 0.0, None)
    with pytest.raises(ValueError, match=r"masker/random"):
        Contiguous()(tokens(2, 64, valid=torch.ones(2, 64, dtype=torch.bool)), draws(2), 0.0, None)


def test_rotations_about_any_axis():
    points, axes = cloud(50).double(), []
    for i in range(300):
        turned = Rotate(axis="any", degrees=90)(points, one(i))
        matrix = torch.linalg.lstsq(points, turned).solution.T
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
        assert float(torch.det(matrix)) == pytest.approx(1, abs=1e-6)
        angle = math.degrees(math.acos(max(-1.0, min(1.0, (float(matrix.trace()) - 1) / 2))))
        assert angle <= 90.01
        if angle > 5:  # the axis stays where it is
            axis = torch.stack([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
            axes.append(axis / axis.norm())
            torch.testing.assert_close(matrix @ axes[-1], axes[-1], atol=1e-6, rtol=0)
    axes = torch.stack(axes)
    assert float(axes.mean(0).norm()) < 0.15
    torch.testing.assert_close(axes.square().mean(0), torch.full((3,), 1 / 3).double(), atol=0.06, rtol=0)


def test_crops_are_the_points_around_one():
    points, counts = cloud(60), []
    for i in range(200):
        part = CropCloud(share=(0.25, 0.75))(points, one(i))
        places = [points.tolist().index(row) for row in part.tolist()]
        assert places == sorted(set(places)) and 15 <= len(places) <= 45
        near = torch.cdist(points, points).argsort(1)[:, : len(places)]
        assert any(set(near[c].tolist()) == set(places) for c in range(60))
        counts.append(len(places))
    assert min(counts) < 18 and max(counts) > 42
    assert torch.equal(CropCloud(share=(1, 1))(points, one()), points)
    assert len(CropCloud(share=(0.001, 0.001))(points, one())) == 1
    with pytest.raises(ValueError, match=r"ascending shares"):
        CropCloud(share=(0.9, 0.5))


def test_dropped_points_are_replaced_by_others():
    points, kept = cloud(80), []
    for i in range(300):
        made = DropPoints(most=0.5)(points, one(i))
        same = (made == points).all(-1)
        assert made.shape == points.shape and all(row in points[same].tolist() for row in made[~same].tolist())
        kept.append(int(same.sum()))
    assert min(kept) >= 40 and max(kept) >= 79 and 56 < sum(kept) / 300 < 64
    assert torch.equal(DropPoints(most=0.0)(points, one()), points)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        DropPoints(most=1.0)


def test_short_clouds_may_repeat_their_points():
    points = cloud(20)
    with pytest.raises(BadSample, match=r"short=repeat"):
        SamplePoints(count=50)(points, one())
    made = SamplePoints(count=50, short="repeat")(points, one())
    found = [made.tolist().count(row) for row in points.tolist()]
    assert made.shape == (50, 3) and sum(found) == 50 and min(found) >= 1
    assert torch.equal(SamplePoints(count=9, short="repeat")(points, one()), SamplePoints(count=9)(points, one()))
    with pytest.raises(ValueError, match=r"'skip' or 'repeat'"):
        SamplePoints(count=5, short="no")
