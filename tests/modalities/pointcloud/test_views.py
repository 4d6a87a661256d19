"""Views of clouds and meshes: what they promise, and what they draw."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.data.source import BadSample
from mmssl.draws import Draws
from mmssl.modalities.pointcloud.mesh import Mesh
from mmssl.modalities.pointcloud.views import Jitter, NormalizeCloud, Rotate, SamplePoints, ScaleTranslate

torch.set_num_threads(1)  # everything is small: threads would only wait for one another


def draws(i=0):
    return Draws.of(0, 0, torch.tensor([i]))


def cloud(n=50):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(n))


def rows(points):
    return sorted(points.tolist())


def test_a_random_subset_without_replacement():
    points, sample = cloud(), SamplePoints(count=20)
    first = sample(points, draws())
    assert first.shape == (20, 3) and len(set(map(tuple, first.tolist()))) == 20
    assert all(row in points.tolist() for row in first.tolist())
    assert torch.equal(sample(points, draws()), first) and not torch.equal(sample(points, draws(1)), first)
    whole = SamplePoints(count=50)(points, draws())
    assert rows(whole) == rows(points) and not torch.equal(whole, points)  # all of them, in random order
    often = (
        torch.stack([(sample(points, draws(i))[:, None] == points).all(-1).any(0) for i in range(400)]).float().mean(0)
    )
    assert float((often - 0.4).abs().max()) < 5 * math.sqrt(0.24 / 400)


def test_a_batch_draws_for_each_sample_what_it_would_draw_alone():
    points, sample = cloud(), SamplePoints(count=20)
    together = Draws.of(0, 0, torch.tensor([4, 9])).each()
    for i, one in zip((4, 9), together, strict=True):
        assert torch.equal(sample(points, one), sample(points, draws(i)))


def test_too_small_a_cloud_is_a_bad_sample():
    with pytest.raises(BadSample, match=r"50 points, and view/sample_points wants 60; set data.size"):
        SamplePoints(count=60)(cloud(), draws())
    with pytest.raises(ValueError, match=r"at least 1"):
        SamplePoints(count=0)


def test_a_mesh_is_sampled_by_area():
    # a unit square in the plane z = 0 and a triangle of a quarter of its area in the plane z = 1; one face has none
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0.5, 1]])
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2], [4, 4, 5], [0, 2, 3], [4, 5, 6]]))
    count = 20000
    points = SamplePoints(count=count)(mesh, draws())
    assert points.shape == (count, 3) and points.dtype == torch.float32
    square, triangle = points[points[:, 2] == 0], points[points[:, 2] == 1]
    assert len(square) + len(triangle) == count
    assert abs(len(triangle) / count - 0.2) < 5 * math.sqrt(0.16 / count)
    x, y = triangle[:, 0], triangle[:, 1]
    assert bool((x >= 0).all() & (y >= 0).all() & (x + 2 * y <= 1 + 1e-6).all())
    torch.testing.assert_close(triangle.mean(0), torch.tensor([1 / 3, 1 / 6, 1]), atol=0.02, rtol=0)
    cells = (square[:, :2] * 4).long().clamp(max=3)
    share = torch.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16) / len(square)
    assert float((share - 1 / 16).abs().max()) < 5 * math.sqrt(1 / 16 / len(square))


def test_normalised_clouds_lie_in_the_unit_sphere():
    points = NormalizeCloud()(cloud() * 7 + 3, draws())
    torch.testing.assert_close(points.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    assert float(points.norm(dim=1).max()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(NormalizeCloud()(torch.full((4, 3), 5.0), draws()), torch.zeros(4, 3))


def test_scale_and_shift_per_axis():
    points, view = cloud(), ScaleTranslate()
    drawn = []
    for i in range(300):
        moved = view(points, draws(i))
        factor = (moved.max(0).values - moved.min(0).values) / (points.max(0).values - points.min(0).values)
        shift = moved[0] - points[0] * factor
        torch.testing.assert_close(moved, points * factor + shift, atol=1e-5, rtol=0)
        drawn.append(torch.cat([factor, shift]))
    drawn = torch.stack(drawn)
    factor, shift = drawn[:, :3], drawn[:, 3:]
    assert (
        float(factor.min()) > 2 / 3 - 1e-5
        and float(factor.max()) < 1.5 + 1e-5
        and float(shift.abs().max()) < 0.2 + 1e-5
    )
    assert float(factor.min()) < 0.68 and float(factor.max()) > 1.48 and float(shift.max()) > 0.19
    torch.testing.assert_close(factor.mean(0), torch.full((3,), 13 / 12), atol=0.06, rtol=0)
    assert float(torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max()) < 0.25  # numbers of their own
    with pytest.raises(ValueError, match=r"ascending"):
        ScaleTranslate(scale=(2, 1))


@pytest.mark.parametrize(("axis", "kept"), [("x", 0), ("y", 1), ("z", 2)])
def test_rotations_leave_their_axis_and_all_distances(axis, kept):
    points = cloud()
    turned = Rotate(axis=axis)(points, draws())
    assert torch.equal(turned[:, kept], points[:, kept]) and not torch.allclose(turned, points)
    torch.testing.assert_close(torch.pdist(turned), torch.pdist(points), atol=1e-5, rtol=1e-5)
    matrix = torch.linalg.lstsq(points.double(), turned.double()).solution.T
    assert float(torch.det(matrix)) == pytest.approx(1, abs=1e-5)  # no mirror
    angles = []
    for i in range(200):
        small = Rotate(axis=axis, degrees=30)(points, draws(i))
        matrix = torch.linalg.lstsq(points.double(), small.double()).solution.T
        angles.append(math.degrees(math.acos(min(1.0, (float(matrix.trace()) - 1) / 2))))
    assert max(angles) < 30.01 and max(angles) > 28 and min(angles) < 3
    with pytest.raises(ValueError, match=r"x, y, z or any"):
        Rotate(axis="w")


def test_jitter_is_small_normal_noise():
    points = cloud(4000)
    moved = Jitter(std=0.01, limit=0.015)(points, draws()) - points
    assert float(moved.abs().max()) <= 0.015 + 1e-6
    inside = moved[moved.abs() < 0.0149]
    assert len(inside) / moved.numel() == pytest.approx(0.8664 - 0.002, abs=0.01)  # within 1.49 deviations
    assert abs(float(moved.mean())) < 5e-4
    with pytest.raises(ValueError, match=r"at least 0"):
        Jitter(std=-1)
