"""Tokens and masks against plain loops."""

from __future__ import annotations

import pytest
import torch

from mmssl.config import slots
from mmssl.joining import concat
from mmssl.masks import Mask, ordinal, places
from mmssl.types import POOLS, Tokens, TokenSpec, View
from tests.small import tokens


def ragged(b=3, n=6, counts=(6, 2, 4)):
    valid = torch.arange(n) < torch.tensor(counts).unsqueeze(1)
    generator = torch.Generator().manual_seed(0)
    return tokens(
        b, n, valid=valid, given=torch.rand(b, n, generator=generator) < 0.7,
        x=torch.randn(b, n, 4, generator=generator), stream=torch.randint(0, 2, (b, n), generator=generator),
    )  # fmt: skip


def test_view_moves_its_data():
    view = View(torch.zeros(2, 3), "image").to(torch.float64)
    assert view.data.dtype == torch.float64 and view.modality == "image"


@pytest.mark.parametrize(("grid", "length"), [(None, None), ((5,), 5), ((2, 3), 6), ((4, 14, 14), 784)])
def test_spec_length(grid, length):
    assert TokenSpec(1, 1, grid).length == length


def test_take_equals_a_loop():
    whole = ragged()
    index = torch.tensor([[5, 0], [1, 1], [3, 2], [0, 4]])
    row, valid = torch.tensor([0, 2, 1, 1]), torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    taken = whole.but(prefix=torch.zeros(3, 1, 4), taps={"embed": torch.zeros(3, 7, 4)}).take(index, row, valid)
    assert taken.prefix is None and taken.taps == {}
    for i in range(4):
        for j in range(2):
            source = int(row[i]), int(index[i, j])
            for name in ("raw", "pos", "index", "x", "given", "stream"):
                assert torch.equal(getattr(taken, name)[i, j], getattr(whole, name)[source]), name
            assert bool(taken.valid[i, j]) == bool(whole.valid[source] and valid[i, j])


def test_take_without_rows_reads_in_order():
    whole = ragged().but(valid=None, given=None)
    index = torch.tensor([[1], [0], [5]])
    taken = whole.take(index)
    assert taken.valid is None and taken.given is None
    assert torch.equal(taken.raw[:, 0], whole.raw[torch.arange(3), index[:, 0]])
    padded = whole.take(index, valid=torch.tensor([[True], [False], [True]]))
    assert padded.valid.tolist() == [[True], [False], [True]]


def test_at_finds_places_in_any_order():
    whole = tokens(2, 6, grid=(2, 3), x=torch.randn(2, 6, 4))
    seen = whole.take(torch.tensor([[4, 1, 3], [0, 5, 2]]))
    query = whole.take(torch.tensor([[3, 4], [5, 5]]))
    expected = whole.x[torch.arange(2).unsqueeze(1), query.index]
    assert torch.equal(seen.at(query), expected)
    values = torch.arange(18.0).reshape(2, 3, 3)
    assert torch.equal(seen.at(query, values), torch.stack([values[0, [2, 0]], values[1, [1, 1]]]))
    assert seen.at(seen) is seen.x


def test_at_reads_no_padding():
    """Padded rows repeat no place, so a real place is never overwritten by padding."""
    flags = torch.tensor([[True, True, True, False], [True, False, False, False]])
    index, valid = places(flags, None)
    whole = tokens(2, 4, grid=(2, 2), x=torch.randn(2, 4, 3))
    seen = whole.take(index, valid=valid)
    query = whole.take(torch.tensor([[2], [0]]))
    assert torch.equal(seen.at(query)[:, 0], whole.x[[0, 1], [2, 0]])


def test_pool_is_the_mean_of_valid_tokens():
    whole = ragged()
    expected = torch.stack([whole.x[i, : int(whole.valid[i].sum())].mean(0) for i in range(3)])
    torch.testing.assert_close(whole.pool(), expected)
    torch.testing.assert_close(whole.pack().pool(), expected)
    torch.testing.assert_close(whole.but(valid=None).pool(), whole.x.mean(1))


def test_pool_of_nothing_is_zero():
    empty = ragged(counts=(6, 0, 4))
    assert empty.pool()[1].tolist() == [0.0] * 4
    assert empty.pack().pool()[1].tolist() == [0.0] * 4


def test_pool_takes_the_class_token():
    whole = ragged().but(prefix=torch.randn(3, 2, 4))
    assert torch.equal(whole.pool("cls"), whole.prefix[:, 0])
    with pytest.raises(ValueError, match=r"pool=cls.*no class token.*pool=mean"):
        ragged().pool("cls")
    with pytest.raises(ValueError, match=r"one of mean, sum, max, meanmax, cls \(got 'median'\)"):
        whole.pool("median")


def test_pack_and_dense_invert_one_another():
    whole = ragged()
    packed = whole.pack()
    assert packed.packed and not whole.packed and packed.samples == 3
    assert packed.sample.tolist() == [0] * 6 + [1] * 2 + [2] * 4
    back = packed.dense()
    assert torch.equal(back.valid, whole.valid) and back.sample is None
    for name in ("raw", "pos", "index", "x", "given", "stream"):
        before, after = getattr(whole, name), getattr(back, name)
        assert torch.equal(before[whole.valid], after[whole.valid]), name
        assert not after[~whole.valid].any(), name
    again = back.pack()
    for name in ("raw", "pos", "index", "x", "given", "stream", "sample"):
        assert torch.equal(getattr(again, name), getattr(packed, name)), name
    assert packed.pack() is packed and whole.dense() is whole


def test_pack_without_validity_keeps_all():
    packed = tokens(2, 3).pack()
    assert packed.sample.tolist() == [0, 0, 0, 1, 1, 1]
    assert packed.dense().valid.all()


def test_an_empty_last_sample_survives():
    packed = ragged(counts=(2, 3, 0)).pack()
    assert packed.samples == 3
    assert packed.dense().valid.sum(1).tolist() == [2, 3, 0]


def test_edges_keep_joining_the_same_tokens():
    whole = ragged()
    n = whole.index.shape[1]
    edges = torch.tensor([[0, 5, n + 1, 2 * n + 3], [3, 1, n, 2 * n]])
    flat = whole.but(edges=edges)
    packed = flat.pack()
    assert torch.equal(packed.raw[packed.edges], whole.raw.flatten(0, 1)[edges])
    back = packed.dense()
    assert torch.equal(back.raw.flatten(0, 1)[back.edges], whole.raw.flatten(0, 1)[edges])
    assert torch.equal(back.edges, edges)


def test_edges_survive_another_padding():
    packed = ragged().pack()
    packed = packed.but(edges=torch.tensor([[0, 7, 11], [1, 6, 8]]))
    wide = packed.dense()
    assert torch.equal(wide.raw.flatten(0, 1)[wide.edges], packed.raw[packed.edges])


def test_concat_joins_streams():
    a = tokens(2, 4, width=5, grid=(2, 2), x=torch.randn(2, 4, 3))
    b = tokens(2, 6, width=7, grid=(2, 3), x=torch.randn(2, 6, 3), given=torch.rand(2, 6) < 0.5)
    joined = concat([a, b])
    assert joined.index.tolist() == [list(range(10))] * 2
    assert joined.stream.tolist() == [[0] * 4 + [1] * 6] * 2
    assert joined.grid == (10,) and joined.length == 10 and joined.valid is None
    assert torch.equal(joined.raw[:, :4, :5], a.raw) and not joined.raw[:, :4, 5:].any()
    assert torch.equal(joined.raw[:, 4:], b.raw)
    assert joined.given[:, :4].all() and torch.equal(joined.given[:, 4:], b.given)
    assert torch.equal(joined.x, torch.cat([a.x, b.x], 1))


def test_concat_pads_coordinates_and_counts_on_from_cut_tokens():
    line = tokens(2, 3)
    square = tokens(2, 4, grid=(2, 2)).take(torch.tensor([[0, 3], [1, 2]]))
    joined = concat([square, line])
    assert joined.pos.shape == (2, 5, 2) and not joined.pos[:, 2:, 1].any()
    assert joined.index.tolist() == [[0, 3, 4, 5, 6], [1, 2, 4, 5, 6]]
    assert joined.x is None


def test_invert_exchanges_visible_and_hidden():
    visible = torch.tensor([[True, False, False, True, False], [False, True, True, False, False]])
    mask = Mask(visible, (~visible).unsqueeze(1), torch.tensor([1, 0]), 2, 3)
    other = mask.invert()
    assert torch.equal(other.visible, mask.hidden) and torch.equal(other.hidden, mask.visible)
    assert torch.equal(other.targets[:, 0], visible)
    assert (other.visible_count, other.target_count) == (3, 2)
    assert other.row is mask.row
    assert torch.equal(other.invert().visible, visible)
    assert Mask(visible, (~visible).unsqueeze(1)).invert().visible_count is None


@pytest.mark.parametrize("known", [True, False])
def test_places_lists_what_is_true(known):
    flags = torch.tensor([[[True, False, True, True], [False, True, True, True]]])
    index, valid = places(flags, 3 if known else None)
    assert index.tolist() == [[[0, 2, 3], [1, 2, 3]]] and valid is None


def test_places_pads_to_the_longest():
    flags = torch.tensor([[True, False, True, True], [False, False, True, False], [False] * 4])
    index, valid = places(flags, None)
    assert valid.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    assert index[0].tolist() == [0, 2, 3] and int(index[1, 0]) == 2
    assert all(len(set(row)) == 3 for row in index.tolist())


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("shape", [(0,), (7,), (3, 9), (2, 3, 5)])
def test_ordinal_counts_what_comes_before(shape, descending):
    """The numbers that come before, and the equal ones that stand in front: few values, so that many are equal."""
    score = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0)).float()
    row, other = score.unsqueeze(-1), score.unsqueeze(-2)
    first = torch.ones(shape[-1], shape[-1]).tril(-1).bool()
    wanted = ((other > row) if descending else (other < row)) | ((other == row) & first)
    assert torch.equal(ordinal(score, descending), wanted.sum(-1))


def test_mask_indices_come_from_its_flags():
    visible = torch.tensor([[True, False, False, True], [False, True, True, False]])
    targets = torch.stack([~visible, visible], 1)
    mask = Mask(visible, targets, visible_count=2)
    assert mask.visible_index[0].tolist() == [[0, 3], [1, 2]]
    assert mask.target_index[0].tolist() == [[[1, 2], [0, 3]], [[0, 3], [1, 2]]]
    assert mask.visible_index[1] is None and mask.target_index[1] is None
    assert mask.visible_index is mask.visible_index


def test_every_pool_is_known_to_the_configuration():
    assert POOLS == slots.POOLS


@pytest.mark.parametrize("how", ["mean", "sum", "max", "meanmax"])
def test_pools_read_valid_tokens_alone(how):
    valid = torch.tensor([[True, True, False, True], [False, True, True, True]])
    whole = tokens(2, 4, valid=valid)
    whole = whole.but(x=whole.raw - 5 * (1 + torch.arange(4.0))[:, None])
    want = []
    for x, kept in zip(whole.x, valid, strict=True):
        rows = x[kept]
        made = {"mean": rows.mean(0), "sum": rows.sum(0), "max": rows.max(0).values}
        want.append(torch.cat([made["max"], made["mean"]]) if how == "meanmax" else made[how])
    torch.testing.assert_close(whole.pool(how), torch.stack(want))
    torch.testing.assert_close(whole.pack().pool(how), torch.stack(want))


def test_length_without_a_grid_is_one_past_the_last_place():
    bare = Tokens(raw=torch.zeros(1, 2, 1), pos=torch.zeros(1, 2, 1), index=torch.tensor([[3, 7]]))
    assert bare.length == 8


def graphs() -> Tokens:
    """Two packed samples of three and two tokens, with edges."""
    values = torch.arange(10.0).reshape(5, 2)
    return Tokens(
        raw=values, pos=values, index=torch.tensor([0, 1, 2, 0, 1]), sample=torch.tensor([0, 0, 0, 1, 1]), samples=2,
        x=values * 10, edges=torch.tensor([[0, 3], [1, 4]]),
    )  # fmt: skip


def test_take_from_a_packed_batch_keeps_owners_and_drops_edges():
    asked = graphs().take(torch.tensor([[4, 1]]))
    assert asked.sample.tolist() == [1, 0] and asked.index.tolist() == [1, 1] and asked.edges is None
    assert asked.raw.tolist() == [[8, 9], [2, 3]]
    assert torch.equal(graphs().at(asked), asked.raw * 10)
    assert graphs().at(asked, torch.arange(5)).tolist() == [4, 1]


def test_take_from_a_dense_batch_drops_edges():
    assert tokens(2, 4).but(edges=torch.zeros(2, 3, dtype=torch.int64)).take(torch.tensor([[0], [1]])).edges is None


def test_length_without_a_grid_is_the_count():
    few = tokens(2, 4).take(torch.tensor([[0, 1], [1, 2]]))
    assert few.length == 3 and few.but(count=7).length == 7
    assert (
        TokenSpec(3, 1, count=7).length == 7 and TokenSpec(3, 2, (2, 5)).length == 10 and TokenSpec(3, 1).length is None
    )
