"""SCARF's parts: corrupted columns, the perceptron over all columns, and the loss, against plain references."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmssl.draws import Draws
from mmssl.modalities.tabular.adapter import Tabular
from mmssl.modalities.tabular.encoders import MLP
from mmssl.modalities.tabular.table import Column, Row, Table
from mmssl.modalities.tabular.tokenizer import TableTokenizer
from mmssl.modalities.tabular.views import CorruptColumns
from mmssl.parts.set_losses import NTXent
from mmssl.types import View

NAN = math.nan


def table(rows: int = 40) -> Table:
    """Five numbers (one constant, one often missing), one category; every cell tells its row."""
    place = np.arange(rows, dtype=float)
    gaps = np.where(place % 3 == 0, NAN, place + 0.75)
    values = np.stack([place, place + 0.25, np.full(rows, 7.0), place % 4, gaps, place + 0.5], 1)
    kinds = ["numeric", "numeric", "numeric", "categorical", "numeric", "numeric"]
    columns = [Column(f"c{i}", kind, tuple("abcd") if kind == "categorical" else ()) for i, kind in enumerate(kinds)]
    return Table(tuple(columns), values, "made")


class Train:
    """The first rows of a table as a data set; one of them cannot be read."""

    labels = classes = None

    def __init__(self, whole: Table, count: int) -> None:
        self.whole, self.count = whole, count

    def __len__(self) -> int:
        return self.count

    def read(self, i: int) -> Row:
        if i == 4:
            raise ValueError("all cells of the row are missing")
        return Row(self.whole, i)


def draws(sample: int) -> Draws:
    return Draws.of(1, 0, torch.tensor([sample]))


def fitted(ratio: float = 0.6, count: int = 25) -> tuple[Any, Table]:
    whole, view = table(), CorruptColumns(ratio=ratio)
    view.fit(Train(whole, count))  # pyright: ignore[reportArgumentType]
    return view, whole


def test_so_many_cells_come_from_training_rows() -> None:
    """int(0.6 * 5) columns of a row, never the constant one; each from a readable training row of its own draw."""
    view, whole = fitted()
    chosen, donors = np.zeros(6), list[int]()
    for number in range(25, 40):
        made = view(Row(whole, number), draws(number))
        changed = np.flatnonzero(made.donors != number)
        assert len(changed) == 3 and made.number == number and made.table is whole
        chosen[changed] += 1
        donors += made.donors[changed].tolist()
        order = draws(number).named("columns").order(5)[0, :3].tolist()
        given = draws(number).named("rows").integers(0, 24, 3)[0].tolist()
        usable, rows = [0, 1, 3, 4, 5], [i for i in range(25) if i != 4]
        assert {usable[a]: rows[b] for a, b in zip(order, given, strict=True)} == {
            int(i): int(made.donors[i]) for i in changed
        }
    assert chosen[2] == 0 and bool((chosen[[0, 1, 3, 4, 5]] > 0).all())
    assert 4 not in donors and max(donors) < 25 and len(set(donors)) > 12
    assert np.array_equal(view(Row(whole, 30), draws(30)).donors, view(Row(whole, 30), draws(30)).donors)
    again = pickle.loads(pickle.dumps(view))
    assert np.array_equal(again(Row(whole, 30), draws(30)).donors, view(Row(whole, 30), draws(30)).donors)


def test_the_share_at_its_ends_and_what_is_refused() -> None:
    for ratio, count in ((0.0, 0), (1.0, 5)):
        view, whole = fitted(ratio)
        assert int((view(Row(whole, 33), draws(0)).donors != 33).sum()) == count
    with pytest.raises(ValueError, match=r"ratio is a share .* did you mean 0\.6"):
        CorruptColumns(ratio=60)
    with pytest.raises(ValueError, match="rows of the train split"):
        CorruptColumns()(Row(table(), 0), draws(0))


def test_joining_looks_every_cell_up() -> None:
    """A batch of corrupted and plain rows, cell by cell; the constant column is no token."""
    view, whole = fitted()
    adapter = Tabular()
    adapter.use(adapter.facts(Row(whole, i) for i in range(25)))
    rows = [view(Row(whole, i), draws(i)) for i in (30, 31, 32)] + [Row(whole, 33)]
    cells, (values, given) = adapter.collate(rows), adapter.encoded(whole)
    assert cells.given is not None
    for i, row in enumerate(rows):
        for j, column in enumerate([0, 1, 3, 4, 5]):
            source = row.number if row.donors is None else int(row.donors[column])
            assert float(cells.values[i, j]) == values[source, j] and bool(cells.given[i, j]) == given[source, j]
    other = table()  # rows of another table in between
    mixed = adapter.collate([rows[0], Row(other, 3), rows[3]])
    assert torch.equal(mixed.values[0], cells.values[0]) and torch.equal(mixed.values[2], cells.values[3])
    assert adapter.picture(rows[0]).shape == adapter.picture(rows[3]).shape
    assert not np.array_equal(adapter.picture(rows[0]), adapter.picture(Row(whole, 30)))
    assert rows[0].value(2) == 7.0


def test_the_perceptron_reads_one_hot_categories() -> None:
    """Summed embeddings are one linear map of numbers and one-hot categories; missing cells are zeros there."""
    whole, adapter = table(), Tabular()
    facts = adapter.facts(Row(whole, i) for i in range(25))
    adapter.use(facts)
    tokenizer = TableTokenizer(facts, embedding="per_column")
    encoder, embed = MLP(tokenizer.spec, dim=16, depth=4).eval(), tokenizer.embedding(16)
    tokens = tokenizer(View(adapter.collate([Row(whole, i) for i in range(9)]), "tabular"))
    seen = encoder(embed(tokens).but(valid=tokens.given), ("block.3", "block.0"))
    weights: Any = embed
    assert tokens.given is not None
    for i in range(9):
        h, row = torch.zeros(16), 0
        for j, count in enumerate([1, 1, 4, 1, 1]):
            if bool(tokens.given[i, j]):
                value = float(tokens.raw[i, j, 0])
                inputs = torch.eye(count)[round(value * (count - 1))] if count > 1 else torch.tensor([value])
                h = h + inputs @ weights.rows[row : row + count] + weights.bias[j]
            row += count
        for layer in encoder.layers:
            h = F.linear(h.relu(), layer.weight, layer.bias)  # pyright: ignore
        assert torch.allclose(seen.x[i, 0], h, atol=1e-5)
    assert (
        seen.x.shape == (9, 1, 16) and set(seen.taps) == {"block.3", "block.0"} and seen.pool("mean").shape == (9, 16)
    )
    assert torch.equal(seen.taps["block.3"], seen.x) and encoder.tap_names == tuple(f"block.{i}" for i in range(4))
    with pytest.raises(ValueError, match=r"encoder\.depth"):
        MLP(tokenizer.spec, depth=0)


def test_the_loss_by_hand() -> None:
    """Two rows whose views are the identity at temperature 1: ln(1 + 2 / e)."""
    found = float(NTXent(temperature=1.0)(torch.eye(2).expand(2, 2, 2), draws(0)))
    assert found == pytest.approx(0.551445, abs=1e-6) == pytest.approx(math.log(1 + 2 / math.e))


def test_standardised_numbers() -> None:
    """Weights see (x - mean) / std of the training rows; categories and raw values are what they were."""
    whole, adapter = table(), Tabular()
    facts = adapter.facts(Row(whole, i) for i in range(25))
    adapter.use(facts)
    view = View(adapter.collate([Row(whole, i) for i in (1, 2, 30)]), "tabular")
    tokenizer: Any = TableTokenizer(facts, embedding="per_column", standardize=True)
    embed, tokens = tokenizer.embedding(4), tokenizer(view)
    out = embed(tokens).x
    for row, number in enumerate((1, 2, 30)):
        for j, column in enumerate((0, 1, 3, 4, 5)):
            seen = whole.values[:25, column]
            value = (whole.values[number, column] - np.nanmean(seen)) / np.nanstd(seen)
            place = [0, 1, 2, 6, 7][j]
            factor = 1.0 if column == 3 else value
            if column == 3:
                place += int(whole.values[number, 3])
            if not np.isnan(factor):
                assert torch.allclose(out[row, j], embed.rows[place] * factor + embed.bias[j], atol=1e-5)
    assert torch.equal(tokens.raw, TableTokenizer(facts)(view).raw)
    with pytest.raises(ValueError, match=r"tokenizer\.standardize goes with"):
        TableTokenizer(facts, standardize=True)
