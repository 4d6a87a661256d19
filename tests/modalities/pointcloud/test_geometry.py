"""Farthest points, nearest points and Chamfer distances against loops written out plainly."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmssl.modalities.pointcloud import geometry
from mmssl.modalities.pointcloud.geometry import chamfer, farthest_points, nearest, pick, squared_distances
from mmssl.modalities.pointcloud.losses import chamfer as chamfer_loss

torch.set_num_threads(1)  # everything is small: threads would only wait for one another


def cloud(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain_farthest(points, count, start):
    rows = []
    for one, first in zip(points.double(), start, strict=True):
        chosen = [first]
        while len(chosen) < count:
            to_chosen = [min(float(((p - one[c]) ** 2).sum()) for c in chosen) for p in one]
            chosen.append(max(range(len(one)), key=to_chosen.__getitem__))
        rows.append(chosen)
    return torch.tensor(rows)


def plain_chamfer(a, b, norm):
    """Every pair, as the definition says."""
    distance = ((a[:, :, None] - b[:, None]) ** 2).sum(-1)
    there, back = distance.min(2).values, distance.min(1).values
    if norm == "l2":
        return there.mean(1) + back.mean(1)
    return (there.sqrt().mean(1) + back.sqrt().mean(1)) / 2


def test_squared_distances_keep_their_digits_far_from_the_origin():
    a, b = cloud(2, 5, 3), cloud(2, 7, 3, seed=1)
    expected = ((a.double()[:, :, None] - b.double()[:, None]) ** 2).sum(-1)
    torch.testing.assert_close(squared_distances(a, b).double(), expected, rtol=1e-5, atol=1e-6)
    far = torch.tensor([1024.0, -2048.0, 512.0])
    a, b = (a * 64).round() / 64, (b * 64).round() / 64  # so that the sum with `far` is exact
    assert torch.equal(squared_distances(a + far, b + far), squared_distances(a, b))


@pytest.mark.parametrize("start", [0, 7])
def test_farthest_points_are_those_of_the_plain_loop(start):
    points = cloud(3, 40, 3)
    assert torch.equal(farthest_points(points, 9, start), plain_farthest(points, 9, [start] * 3))


def test_farthest_points_with_a_start_for_each_cloud():
    points, start = cloud(3, 30, 3), torch.tensor([4, 0, 29])
    assert torch.equal(farthest_points(points, 6, start), plain_farthest(points, 6, start.tolist()))


def test_of_equally_far_points_the_first_is_taken():
    square = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]]])
    assert farthest_points(square, 4).tolist() == [[0, 3, 1, 2]]


def test_all_points_are_chosen_once():
    assert sorted(farthest_points(cloud(1, 25, 3), 25)[0].tolist()) == list(range(25))


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match=r"8 farthest points are asked for, but the clouds have 5"):
        farthest_points(cloud(1, 5, 3), 8)
    with pytest.raises(ValueError, match=r"8 nearest points are asked for, but the clouds have 5"):
        nearest(cloud(1, 2, 3), cloud(1, 5, 3), 8)


@pytest.mark.parametrize(
    ("n", "k"), [(128, 4), (130, 4), (24, 8), (64, 1), (6, 6)]
)  # folded, not divisible, few, one, all
def test_nearest_points_are_those_of_a_sort(n, k):
    points, query = cloud(3, n, 3), cloud(3, 5, 3, seed=1)
    expected = ((query.double()[:, :, None] - points.double()[:, None]) ** 2).sum(-1).argsort(-1)[..., :k]
    assert torch.equal(nearest(query, points, k), expected)


@pytest.mark.parametrize("held", [1, 100, 700, 10**6])  # one row at a time, some rows, some clouds, all
def test_the_parts_make_the_whole(monkeypatch, held):
    points, query = cloud(4, 48, 3), cloud(4, 10, 3, seed=1)
    expected = ((query[:, :, None] - points[:, None]) ** 2).sum(-1).argsort(-1)[..., :3]
    monkeypatch.setitem(geometry._HELD, "cpu", held)
    assert torch.equal(nearest(query, points, 3), expected)
    torch.testing.assert_close(chamfer(query, points), plain_chamfer(query, points, "l2"))


def test_the_golden_chamfer_distances():
    a, b = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]]), torch.tensor([[[0.0, 0, 0], [0, 2, 0]]])
    assert chamfer(a, b, "l2").item() == 2.5
    assert chamfer(a, b, "l1").item() == 0.75
    assert chamfer_loss(a.flatten(1), b.flatten(1), norm="l2").item() == 2.5
    assert chamfer_loss(a.flatten(1), b.flatten(1), norm="l1").item() == 0.75


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_chamfer_and_its_gradient_are_those_of_all_pairs(norm):
    a, b = (cloud(4, n, 3, seed=n, dtype=torch.float64).requires_grad_() for n in (17, 23))
    weight = torch.arange(1.0, 5.0, dtype=torch.float64)
    ours = torch.autograd.grad((chamfer(a, b, norm) * weight).sum(), (a, b))
    plain = torch.autograd.grad((plain_chamfer(a, b, norm) * weight).sum(), (a, b))
    torch.testing.assert_close(chamfer(a, b, norm), plain_chamfer(a, b, norm), rtol=1e-12, atol=0)
    for mine, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-14)


def test_l1_has_a_gradient_where_points_coincide():
    a = cloud(1, 5, 3).requires_grad_()
    gradient = torch.autograd.grad(chamfer(a, a.detach().clone(), "l1").sum(), a)[0]
    assert torch.equal(gradient, torch.zeros_like(a))


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match=r"'l2' or 'l1' .got 'l3'"):
        chamfer(cloud(1, 3, 3), cloud(1, 3, 3), "l3")


def test_chamfer_never_holds_all_distances(monkeypatch):
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            for one in made if isinstance(made, (tuple, list)) else (made,):
                if isinstance(one, torch.Tensor) and not func.is_view:
                    Largest.numel = max(Largest.numel, one.numel())
            return made

    monkeypatch.setitem(geometry._HELD, "cpu", 4096)
    a, b = cloud(4, 256, 3).requires_grad_(), cloud(4, 256, 3, seed=1)
    with Largest():
        chamfer(a, b).sum().backward()
    assert 256 * 3 <= Largest.numel <= 4096  # 256 * 256 distances per cloud exist, but never at once
    assert a.grad is not None


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_loss_gives_a_number_per_token(norm):
    prediction, target = cloud(2, 5, 12), cloud(2, 5, 24, seed=1)
    loss = chamfer_loss(prediction, target, norm=norm)
    expected = plain_chamfer(prediction.reshape(10, 4, 3), target.reshape(10, 8, 3), norm).reshape(2, 5)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(chamfer_loss(prediction[0], target[0], norm=norm), expected[0])


def test_pick_keeps_the_shape_of_the_index():
    points, index = cloud(2, 6, 3), torch.tensor([[[0, 5], [2, 2]], [[1, 0], [3, 4]]])
    expected = torch.stack([one[row] for one, row in zip(points, index, strict=True)])
    assert torch.equal(pick(points, index), expected)
