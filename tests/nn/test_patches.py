"""Cutting grids against the formulas of the papers."""

from __future__ import annotations

import pytest
import torch

from mmssl.nn.patches import coordinates, cut, fold


def test_cut_is_maes_patchify():
    x = torch.randn(2, 3, 12, 8)
    h, w, p = 3, 2, 4
    expected = torch.einsum("nchpwq->nhwpqc", x.reshape(2, 3, h, p, w, p)).reshape(2, h * w, p * p * 3)
    assert torch.equal(cut(x, (4, 4)), expected)


def test_cut_equals_a_loop_on_three_axes():
    x = torch.randn(1, 2, 4, 4, 6)
    found, n = cut(x, (2, 4, 3)), 0
    for t in range(2):
        for j in range(2):
            block = x[0, :, 2 * t : 2 * t + 2, :, 3 * j : 3 * j + 3]
            assert torch.equal(found[0, n], block.permute(1, 2, 3, 0).flatten())
            n += 1
    assert found.shape == (1, n, 48)


@pytest.mark.parametrize(
    ("sizes", "cell"), [((12,), (3,)), ((12, 8), (4, 2)), ((4, 6, 8), (2, 3, 4)), ((5, 5), (5, 5))]
)
def test_fold_inverts_cut(sizes, cell):
    x = torch.randn(2, 3, *sizes)
    grid = tuple(size // side for size, side in zip(sizes, cell, strict=True))
    assert torch.equal(fold(cut(x, cell), grid, cell), x)
    y = torch.randn(2, coordinates(grid).shape[0], 3 * torch.tensor(cell).prod())
    assert torch.equal(cut(fold(y, grid, cell), cell), y)


def test_cut_keeps_gradients():
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    cut(x, (2, 2))[0, 1].sum().backward()
    expected = torch.zeros(4, 4)
    expected[:2, 2:] = 1
    assert torch.equal(x.grad[0, 0], expected)


def test_coordinates_are_row_major():
    assert coordinates((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert coordinates((2, 1, 2)).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
    assert coordinates((3,)).tolist() == [[0], [1], [2]] and coordinates((3,)).dtype == torch.float32
