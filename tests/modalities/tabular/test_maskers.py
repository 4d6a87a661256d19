"""Maskers that know of missing cells."""

from __future__ import annotations

import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.tabular.maskers import Observed, RandomGiven
from mmssl.parts.activations import unit_tanh
from mmssl.types import Tokens


def tokens(b, n, given=None, valid=None):
    index = torch.arange(n).expand(b, n)
    return Tokens(
        raw=torch.rand(b, n, 1), pos=index.unsqueeze(-1).float(), index=index, given=given, valid=valid, grid=(n,)
    )


def draws(b, epoch=0):
    return Draws.of(0, epoch, torch.arange(b)).named("mask")


@pytest.mark.parametrize(("columns", "kept"), [(4, 2), (11, 5), (5, 2), (57, 28), (1, 0)])
def test_half_of_the_columns_stay_visible(columns, kept):
    for given in (None, torch.ones(64, columns, dtype=torch.bool)):
        mask = RandomGiven()(tokens(64, columns, given), draws(64), 0.0, None)
        assert mask.visible.sum(1).tolist() == [kept] * 64
        assert torch.equal(mask.targets[:, 0], ~mask.visible)
        assert (mask.visible_count, mask.target_count) == (kept, columns - kept)


def test_missing_cells_are_never_seen_and_never_in_the_loss():
    torch.manual_seed(0)
    given = torch.rand(200, 11) > 0.3
    whole = tokens(200, 11, given)
    mask = RandomGiven()(whole, draws(200), 0.0, None)
    assert not (mask.visible & ~given).any()
    for row in range(200):
        observed = int(given[row].sum())
        assert int(mask.visible[row].sum()) == min(5, observed)
        counted = mask.targets[row, 0] & given[row]
        assert int(counted.sum()) == max(0, observed - 5)
    assert (given.sum(1) < 5).any(), "the case of few observed cells is among them"
    assert mask.visible_count is None
    index, valid = mask.visible_index
    assert valid is not None and torch.equal(valid.sum(1), mask.visible.sum(1))
    assert given.gather(1, index)[valid].all()


def test_counts_are_plain_where_every_row_has_enough():
    given = torch.ones(8, 6, dtype=torch.bool)
    given[:, 0] = False
    mask = RandomGiven()(tokens(8, 6, given), draws(8), 0.0, None)
    assert mask.visible_count == 3 and mask.visible_index[1] is None
    assert not mask.visible[:, 0].any() and mask.targets[:, 0, 0].all()


def test_every_observed_cell_is_hidden_equally_often():
    given = torch.ones(4000, 5, dtype=torch.bool)
    given[:, 2] = False
    mask = RandomGiven(ratio=0.4)(tokens(4000, 5, given), draws(4000), 0.0, None)
    seen = mask.visible.float().mean(0)
    assert seen[2] == 0 and float((seen[[0, 1, 3, 4]] - 0.75).abs().max()) < 4.5 * (0.75 * 0.25 / 4000) ** 0.5


def test_masks_are_a_function_of_seed_epoch_and_sample():
    given = torch.rand(32, 9) > 0.2
    first, second = (RandomGiven()(tokens(32, 9, given), draws(32, epoch), 0.0, None).visible for epoch in (0, 0))
    assert torch.equal(first, second)
    assert not torch.equal(first, RandomGiven()(tokens(32, 9, given), draws(32, 1), 0.0, None).visible)


def test_padding_is_neither_visible_nor_asked_for():
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    given = torch.tensor([[True, False, True, True], [True, True, True, True]])
    for masker in (RandomGiven(), Observed()):
        mask = masker(tokens(2, 4, given, valid), draws(2), 0.0, None)
        assert not (mask.visible & ~(valid & given)).any() and not (mask.targets[:, 0] & ~valid).any()


def test_observed_shows_what_is_given_and_asks_for_the_rest():
    given = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    mask = Observed()(tokens(3, 3, given), draws(3), 0.0, None)
    assert torch.equal(mask.visible, given) and torch.equal(mask.targets[:, 0], ~given)
    assert Observed()(tokens(3, 3), draws(3), 0.0, None).visible.all()


def test_a_wrong_ratio_is_refused():
    with pytest.raises(ValueError, match=r"masker.ratio.*did you mean 0.5"):
        RandomGiven(ratio=50)


def test_unit_tanh():
    x = torch.tensor([-3.0, -0.5, 0.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(unit_tanh(x), 1 / (1 + torch.exp(-2 * x)))  # tanh(x)/2 + 1/2 = logistic(2x)
