"""Position embeddings against their formulas and the numbers of the specification."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.nn.patches import coordinates
from mmssl.nn.positions import Learned, SinCos, sincos
from mmssl.types import TokenSpec
from tests.small import tokens

SPEC = TokenSpec(5, 2, (2, 3))


def plain(row, column, dim):
    """The column in the first half, the row in the second; sines before cosines."""
    quarter = dim // 4
    found = []
    for place in (column, row):
        angles = [place * 10000 ** (-k / quarter) for k in range(quarter)]
        found += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return found


def test_sincos_equals_the_formula():
    table = sincos(coordinates((14, 14)), 64)
    for place in (0, 1, 13, 14, 97, 195):
        torch.testing.assert_close(table[place], torch.tensor(plain(place // 14, place % 14, 64)), rtol=0, atol=1e-6)


def test_sincos_of_the_specification():
    expected = torch.tensor([0.8415, 0.01, 0.5403, 1.0, 0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(sincos(coordinates((2, 2)), 8)[1], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_sincos_on_any_number_of_axes(axes):
    pos = torch.rand(4, 5, axes) * 10
    found = sincos(pos, 12)
    width = 12 // axes
    for axis in range(axes):
        part = found[..., (axes - 1 - axis) * width : (axes - axis) * width]
        torch.testing.assert_close(part, sincos(pos[..., axis : axis + 1], width))


def test_sincos_needs_a_width_that_divides():
    with pytest.raises(ValueError, match=r"dim=10 has to be a multiple of 4 for sine-cosine positions on 2 axes"):
        sincos(torch.zeros(3, 2), 10)


def test_sincos_needs_coordinates():
    with pytest.raises(
        ValueError, match=r"these tokens have no coordinates, as the nodes of a graph\. Choose an encoder"
    ):
        sincos(torch.zeros(3, 0), 8)


def test_table_and_formula_agree():
    part = SinCos(SPEC, 8)
    whole = tokens(2, 6, grid=(2, 3))
    some = whole.take(torch.tensor([[4, 0], [5, 1]]))
    torch.testing.assert_close(part(some), sincos(some.pos, 8))
    assert torch.equal(part(some)[0], part.table[[4, 0]])
    other = tokens(1, 12, grid=(3, 4))
    torch.testing.assert_close(part(other), sincos(other.pos, 8))
    cloud = tokens(1, 4).but(pos=torch.rand(1, 4, 3))
    torch.testing.assert_close(SinCos(TokenSpec(5, 3), 12)(cloud), sincos(cloud.pos, 12))


def test_sincos_is_no_parameter_and_not_saved():
    part = SinCos(SPEC, 8)
    assert not list(part.parameters()) and not part.state_dict()


def test_learned_positions_are_a_table():
    part = Learned(SPEC, 8)
    some = tokens(2, 6, grid=(2, 3)).take(torch.tensor([[4, 0], [5, 1]]))
    assert torch.equal(part(some), part.table[some.index])
    assert part.table.shape == (6, 8) and part.table.requires_grad


def test_learned_positions_are_resized_for_another_grid():
    part = Learned(TokenSpec(5, 2, (4, 4)), 2)
    with torch.no_grad():  # a plane stays a plane
        part.table.copy_(coordinates((4, 4)))
    larger = part(tokens(1, 64, grid=(8, 8)))[0].reshape(8, 8, 2)
    expected = (torch.arange(8.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(larger[2:6, 2:6, 0], expected[2:6, None].expand(4, 4), rtol=0, atol=0.05)
    torch.testing.assert_close(larger[2:6, 2:6, 1], expected[None, 2:6].expand(4, 4), rtol=0, atol=0.05)


def test_learned_positions_need_a_grid():
    with pytest.raises(ValueError, match="position/learned needs tokens on a grid; use position/sincos"):
        Learned(TokenSpec(5, 2), 8)
