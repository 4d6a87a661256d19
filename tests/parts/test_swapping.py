"""VIME's parts: tokens swapped between samples, where that can be told, and heads that answer all places."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.tabular.encoders import MLP
from mmssl.parts.rmsprop import rmsprop
from mmssl.parts.swapping import Differs, Swap, Swapped
from mmssl.parts.whole_rows import Pooled, bce
from mmssl.types import Mask, TokenSpec
from tests.small import tokens

N = 6


class Given:
    """As much of a look as a target asks for."""

    def __init__(self, whole, mask):
        self.tokens, self.mask = whole, mask


def swapped(whole, ratio=0.3, first=0):
    count = len(whole.index)
    draws = Draws.of(5, 0, torch.arange(first, first + count))
    mask = Swap(ratio=ratio)(whole, draws, 0.0, None)
    return mask, Swapped(TokenSpec(1, 1), "sequence", 4)(whole, mask, draws)


def test_each_column_is_shuffled_and_its_share_is_hidden():
    whole = tokens(400, N, 1, count=N)
    mask, seen = swapped(whole)
    assert float(mask.hidden.float().mean()) == pytest.approx(0.3, abs=0.03)
    everything, _ = Swap(ratio=0.999999)(whole, Draws.of(5, 0, torch.arange(400)), 0.0, None), None
    place = everything.source[everything.hidden.all(1)]
    sample, column = everything.source // N, everything.source % N
    assert torch.equal(column, torch.arange(N).expand(400, N)) and len(place) == 400
    assert all(len(sample[:, j].unique()) == 400 for j in range(N))  # a permutation of each column
    assert not torch.equal(sample[:, 0], sample[:, 1])
    for i in range(0, 400, 37):
        for j in range(N):
            other = int(mask.source[i, j])
            wanted = whole.raw[i, j] if other < 0 else whole.raw[other // N, j]
            assert torch.equal(seen.raw[i, j], wanted) and (other >= 0) == bool(mask.hidden[i, j])
    assert torch.equal(mask.targets[:, 0], mask.hidden)


def test_the_label_is_where_values_differ():
    whole = tokens(50, N, 1, count=N)
    raw = whole.raw.clone()
    raw[:, 2] = 4.0  # a constant column is never told apart
    raw[:, 3] = raw[:, 3].sign()
    whole = whole.but(raw=raw)
    mask, seen = swapped(whole, 0.5)
    found = Differs(None, "x")(Given(whole, mask), whole)  # pyright: ignore[reportArgumentType]
    assert torch.equal(found[..., 0] == 1, (seen.raw != raw)[..., 0]) and found.shape == (50, N, 1)
    assert not found[:, 2].any() and bool(mask.hidden[:, 2].any())
    assert 0 < float(found[:, 3].mean()) < float(mask.hidden[:, 3].float().mean())


def test_missing_cells_move_along():
    whole = tokens(50, N, 1, count=N)
    given = torch.ones(50, N, dtype=torch.bool)
    given[:25, 0] = False
    whole = whole.but(given=given, raw=whole.raw.masked_fill(~given.unsqueeze(-1), 0.0))
    mask, seen = swapped(whole, 0.9)
    for i in range(50):
        other = int(mask.source[i, 0])
        assert bool(seen.given[i, 0]) == bool(given[i if other < 0 else other // N, 0])
    assert torch.equal(seen.valid, seen.given)
    found = Differs(None, "x")(Given(whole, mask), whole)[..., 0] == 1  # pyright: ignore[reportArgumentType]
    assert bool(found[seen.given != given].all())


def test_refusals():
    whole = tokens(4, N, 1, count=N)
    plain = Mask(torch.ones(4, N, dtype=torch.bool), torch.zeros(4, 1, N, dtype=torch.bool))
    with pytest.raises(ValueError, match="masker/swap"):
        Swapped(TokenSpec(1, 1), "sequence", 4)(whole, plain, Draws.of(0, 0, torch.arange(4)))
    with pytest.raises(ValueError, match=r"masker\.ratio"):
        Swap(ratio=1.5)
    with pytest.raises(ValueError, match="unequally long"):
        Pooled(TokenSpec(3, 1), 4, 1, ())


def test_one_vector_answers_every_place():
    part = Pooled(TokenSpec(3, 1, count=N), 4, 2, (), activation=torch.sigmoid)
    seen = tokens(5, 1, 3).but(x=torch.randn(5, 1, 4))
    whole = tokens(5, N, 3, count=N)
    every = (seen.x[:, 0] @ part.head.weight.t() + part.head.bias).view(5, N, 2).sigmoid()
    torch.testing.assert_close(part(seen, whole), every)
    some = whole.take(torch.tensor([[3, 1]]).expand(5, 2))
    torch.testing.assert_close(part(seen, some), every[:, [3, 1]])


def test_bce_relu_and_rmsprop():
    logit, truth = torch.tensor([[0.0, 2.0], [-1.0, 0.5]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    wanted = [-math.log(0.5) + math.log(1 + math.e**2), math.log(1 + math.e) + math.log(1 + math.exp(-0.5))]
    torch.testing.assert_close(bce(logit, truth), torch.tensor(wanted) / 2)
    whole = tokens(3, N, 1, count=N).but(x=torch.randn(3, N, 4))
    bare, bent = (MLP(TokenSpec(1, 1), dim=4, depth=1, last_relu=last)(whole).x for last in (False, True))
    assert torch.equal(bare, whole.x.sum(1, keepdim=True)) and torch.equal(bent, bare.relu())
    layer = torch.nn.Linear(2, 1)
    optimizer = rmsprop(lr=0.1).build(layer, 8)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["alpha"], group["eps"], group["weight_decay"]) == (0.1, 0.9, 1e-7, 0.0)
