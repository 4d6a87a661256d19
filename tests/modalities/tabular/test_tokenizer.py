"""Rows to tokens, embeddings and positions, against plain references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmssl.modalities.tabular.adapter import Tabular
from mmssl.modalities.tabular.encoding import fit
from mmssl.modalities.tabular.table import Column, Row, Table
from mmssl.modalities.tabular.tokenizer import ColumnEmbed, TableTokenizer, ValueEmbed
from mmssl.nn.positions import SinCos
from mmssl.types import View

torch.set_num_threads(1)
NAN = math.nan
COLUMNS = (
    Column("age", "numeric", whole=True),
    Column("colour", "categorical", ("blue", "green", "red")),
    Column("size", "numeric"),
)
VALUES = np.array([[20.0, 2, 0.5], [60.0, 0, NAN], [30.0, NAN, 1.5], [NAN, 1, 2.5]])


def small():
    """A table, an adapter fitted on all of it, and its tokenizer."""
    table = Table(COLUMNS, VALUES.copy(), "small.csv")
    adapter = Tabular()
    facts = fit(table, np.arange(4))
    adapter.use(facts)
    return table, adapter, facts


def batch(adapter, table, rows=range(4)):
    return View(adapter.collate([Row(table, i) for i in rows]), "tabular")


def test_tokens_are_scaled_cells():
    table, adapter, facts = small()
    tokens = TableTokenizer(facts)(batch(adapter, table))
    low, high = [20.0, 0.0, 0.5], [60.0, 2.0, 2.5]
    for i in range(4):
        for j in range(3):
            cell = VALUES[i, j]
            assert bool(tokens.given[i, j]) == (not math.isnan(cell))
            expected = 0.0 if math.isnan(cell) else (cell - low[j]) / (high[j] - low[j] + 1e-8)
            assert float(tokens.raw[i, j, 0]) == pytest.approx(expected, abs=1e-7)
    assert tokens.raw.shape == (4, 3, 1) and tokens.raw.dtype == torch.float32
    assert tokens.index.tolist() == [[0, 1, 2]] * 4 and tokens.pos[..., 0].tolist() == [[0.0, 1.0, 2.0]] * 4
    assert tokens.grid == (3,) and TableTokenizer(facts).spec.length == 3 and TableTokenizer(facts).spec.raw == 1


def test_a_batch_without_missing_cells_needs_no_flags():
    table, adapter, facts = small()
    assert TableTokenizer(facts)(batch(adapter, table, [0])).given is None


def test_plain_rows_give_the_same_tokens():
    table, adapter, facts = small()
    tokenizer = TableTokenizer(facts)
    first, second = tokenizer(batch(adapter, table)), tokenizer(View(torch.from_numpy(VALUES), ""))
    torch.testing.assert_close(first.raw, second.raw)
    assert torch.equal(first.given, second.given)
    with pytest.raises(ValueError, match=r"\(rows, 3\).*age, colour, size.*got \(2, 5\)"):
        tokenizer(View(torch.zeros(2, 5), ""))


def test_large_numbers_keep_their_digits():
    """Dates as seconds: float32 would round them to two minutes before they are scaled."""
    values = np.array([[1.6e9, 0.0], [1.6e9 + 1, 1.0], [1.6e9 + 10, 2.0]])
    table = Table((Column("time", "numeric"), Column("b", "numeric")), values, "t")
    adapter = Tabular()
    adapter.use(facts := fit(table, np.arange(3)))
    for view in (batch(adapter, table, range(3)), View(torch.from_numpy(values), "")):
        raw = TableTokenizer(facts)(view).raw[:, 0, 0]
        torch.testing.assert_close(raw, torch.tensor([0.0, 0.1, 1.0]))


def test_restore_gives_rows_in_the_units_of_the_table():
    table, adapter, facts = small()
    tokenizer = TableTokenizer(facts)
    tokens = tokenizer(batch(adapter, table))
    rows = tokenizer.restore(tokens, torch.tensor([[True, False, True]] * 4))
    np.testing.assert_allclose(rows[0].table.values, VALUES, rtol=1e-6)
    assert [row.number for row in rows] == [0, 1, 2, 3]
    assert rows[2].table.hidden.tolist() == [[False, True, False]] * 4
    near = tokens.but(raw=torch.tensor([[[0.25], [0.74], [0.5]]]), given=None)
    cells = tokenizer.restore(near)[0].table.values[0]
    assert cells == pytest.approx([30.0, 1.0, 1.5]), "0.74 of 0..2 is nearest to the middle category"
    beyond = tokens.but(raw=torch.tensor([[[0.0], [1.9], [0.0]]]), given=None)
    assert tokenizer.restore(beyond)[0].table.values[0, 1] == 2.0


def test_positions_are_those_of_the_columns():
    """ReMasker: sine then cosine of j / 10000^(2k/d), column j counted from 0; its class token has zeros."""
    _, _, facts = small()
    spec, dim = TableTokenizer(facts).spec, 8
    made = SinCos(spec, dim).table
    for j in range(3):
        angles = [j / 10000 ** (2 * k / dim) for k in range(dim // 2)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert made[j].tolist() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_shared_embedding_is_one_linear_map():
    table, adapter, facts = small()
    torch.manual_seed(0)
    tokens = TableTokenizer(facts)(batch(adapter, table))
    for kind, f in (("shared", lambda x: x), ("sine", math.sin)):
        embed = TableTokenizer(facts, embedding=kind).embedding(4)
        x = embed(tokens).x
        for i, j, d in ((0, 0, 0), (1, 0, 3), (2, 2, 1)):
            linear = float(tokens.raw[i, j, 0]) * float(embed.proj.weight[d, 0]) + float(embed.proj.bias[d])
            assert float(x[i, j, d]) == pytest.approx(f(linear), abs=1e-6)
    with pytest.raises(ValueError, match=r"tokenizer.embedding.*per_column.*'tokens'"):
        TableTokenizer(facts, embedding="tokens")


@torch.no_grad()
def test_shared_embedding_is_drawn_as_in_the_authors_code():
    """Xavier of a map from 1 to d; the bias of a convolution from one channel is uniform in +-1."""
    torch.manual_seed(0)
    embed = ValueEmbed(4095)
    bound = math.sqrt(6 / 4096)
    assert 0.99 * bound < float(embed.proj.weight.abs().max()) <= bound
    assert 0.99 < float(embed.proj.bias.abs().max()) <= 1.0
    assert float(embed.proj.bias.std()) == pytest.approx(1 / math.sqrt(3), rel=0.05)


def test_embedding_per_column():
    table, adapter, facts = small()
    torch.manual_seed(0)
    tokens = TableTokenizer(facts)(batch(adapter, table))
    embed = TableTokenizer(facts, embedding="per_column").embedding(4)
    x = embed(tokens).x
    # rows of weights: age, blue, green, red, size
    for i, j in ((0, 0), (0, 1), (1, 1), (3, 1), (2, 2)):
        if j == 1:
            expected = embed.rows[1 + int(VALUES[i, 1])]
        else:
            expected = float(tokens.raw[i, j, 0]) * embed.rows[{0: 0, 2: 4}[j]]
        torch.testing.assert_close(x[i, j], expected + embed.bias[j])
    # any subset of the columns, in any order
    picked = tokens.take(torch.tensor([[2, 1]] * 4))
    torch.testing.assert_close(embed(picked).x, x[:, [2, 1]])


def test_embedding_per_column_finds_every_category_of_many():
    count = 5000
    embed = ColumnEmbed([count, 0], 2)
    values = np.stack([np.arange(count, dtype=float), np.linspace(0, 1, count)], 1)
    table = Table((Column("a", "categorical", tuple(map(str, range(count)))), Column("b", "numeric")), values, "many")
    adapter = Tabular()
    adapter.use(facts := fit(table, np.arange(count)))
    tokens = TableTokenizer(facts)(batch(adapter, table, range(count)))
    torch.testing.assert_close(embed(tokens).x[:, 0], embed.rows[:count] + embed.bias[0])
