"""Corruptors on sequences and on grids, with one or several masks per sample."""

from __future__ import annotations

import torch

from mmssl.draws import Draws
from mmssl.masks import Mask
from mmssl.parts.corruptors import Drop, Token
from mmssl.types import TokenSpec
from tests.small import tokens

SPEC = TokenSpec(5, 1)
DRAWS = Draws.of(0, 0, torch.arange(2))
FLAGS = torch.tensor([[1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=torch.bool)
ROW = torch.tensor([1, 0, 0, 1])


def mask(rows=2, row=None, count=None):
    return Mask(FLAGS[:rows], ~FLAGS[:rows].unsqueeze(1), row, count)


def test_drop_gathers_what_is_visible():
    whole = tokens(2, 6, grid=(2, 3))
    for count in (3, None):
        kept = Drop(SPEC, "sequence", 8)(whole, mask(count=count), DRAWS)
        assert kept.index.tolist() == [[0, 3, 5], [1, 2, 4]] and kept.valid is None
        assert torch.equal(kept.raw, torch.stack([whole.raw[0, [0, 3, 5]], whole.raw[1, [1, 2, 4]]]))
        assert torch.equal(kept.pos, torch.stack([whole.pos[0, [0, 3, 5]], whole.pos[1, [1, 2, 4]]]))
    assert list(Drop(SPEC, "sequence", 8).parameters()) == []


def test_drop_with_several_masks_per_sample():
    whole = tokens(2, 6)
    kept = Drop(SPEC, "sequence", 8)(whole, mask(4, ROW, 3), DRAWS)
    for i, sample in enumerate(ROW.tolist()):
        assert torch.equal(kept.raw[i], whole.raw[sample][FLAGS[i]])


def test_drop_pads_unequal_rows():
    flags = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 0]], dtype=torch.bool)
    whole = tokens(2, 4, valid=torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]], dtype=torch.bool))
    kept = Drop(SPEC, "sequence", 8)(whole, Mask(flags, ~flags.unsqueeze(1)), DRAWS)
    assert kept.valid.tolist() == [[True, True, False], [True, False, False]]
    assert torch.equal(kept.raw[1, 0], whole.raw[1, 2])


def test_drop_keeps_the_shape_of_a_grid():
    whole = tokens(2, 6, grid=(2, 3))
    kept = Drop(SPEC, "grid", 8)(whole, mask(), DRAWS)
    assert kept.raw is whole.raw and kept.grid == (2, 3)
    assert torch.equal(kept.valid, FLAGS[:2])
    half = torch.arange(6).expand(2, 6) < 4
    assert torch.equal(Drop(SPEC, "grid", 8)(whole.but(valid=half), mask(), DRAWS).valid, FLAGS[:2] & half)


def test_drop_on_a_grid_with_several_masks_per_sample():
    whole = tokens(2, 6, grid=(2, 3))
    kept = Drop(SPEC, "grid", 8)(whole, mask(4, ROW), DRAWS)
    assert torch.equal(kept.raw, whole.raw[ROW]) and torch.equal(kept.valid, FLAGS)


def test_token_replaces_what_is_hidden():
    whole = tokens(2, 6, x=torch.randn(2, 6, 8))
    part = Token(SPEC, "full", 8)
    filled = part(whole, mask(), DRAWS)
    for i in range(2):
        for j in range(6):
            assert torch.equal(filled.x[i, j], whole.x[i, j] if FLAGS[i, j] else part.mask_token[0, 0])
    assert filled.raw is whole.raw and filled.index is whole.index
    filled.x.sum().backward()
    assert torch.equal(part.mask_token.grad, torch.full((1, 1, 8), 6.0))


def test_token_with_several_masks_per_sample():
    whole = tokens(2, 6, x=torch.randn(2, 6, 8))
    part = Token(SPEC, "sequence", 8)
    filled = part(whole, mask(4, ROW), DRAWS)
    assert torch.equal(filled.raw, whole.raw[ROW]) and filled.index.shape == (4, 6)
    expected = torch.where(FLAGS.unsqueeze(-1), whole.x[ROW], part.mask_token)
    assert torch.equal(filled.x, expected)


def test_token_keeps_the_precision_of_embeddings():
    whole = tokens(2, 6, x=torch.randn(2, 6, 8).bfloat16())
    assert Token(SPEC, "full", 8)(whole, mask(), DRAWS).x.dtype == torch.bfloat16


def test_token_is_drawn_from_a_truncated_normal():
    torch.manual_seed(0)
    wide, narrow = (Token(SPEC, "full", 20_000, cut=cut).mask_token.detach() for cut in (2.0, 0.02))
    assert abs(float(wide.std()) - 0.02) < 4.5 * 0.02 / 200
    assert float(narrow.abs().max()) <= 0.02
    assert abs(float(narrow.std()) - 0.0107941) < 3e-4  # of a normal cut at one standard deviation


def test_what_they_work_with():
    assert (Drop.on, Token.on) == ("tokens", "embedded")
    assert "full" not in Drop.needs and "grid" not in Token.needs
