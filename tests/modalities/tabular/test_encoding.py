"""The fitted encoding: facts, other data met later, baseline and pictures."""

from __future__ import annotations

import copy
import json
import logging
import math

import numpy as np
import pytest
import torch

from mmssl.modalities.tabular.adapter import Tabular
from mmssl.modalities.tabular.encoding import Cells, Encoding, fit
from mmssl.modalities.tabular.table import Column, Row, Table

NAN = math.nan


def make(names, values, origin="t.csv", **categories):
    columns = [
        Column(name, "categorical" if name in categories else "numeric", tuple(categories.get(name, ())))
        for name in names
    ]
    return Table(tuple(columns), np.array(values, dtype=float), origin)


TRAIN = make(
    ["x", "town", "same", "empty", "word"],
    [[1, 0, 7, NAN, 0], [5, 2, 7, NAN, 0], [NAN, 2, NAN, NAN, NAN], [3, NAN, 7, NAN, 0]],
    town=("Bern", "Oslo", "Rome"), word=("a",),
)  # fmt: skip


def test_facts_against_plain_numbers():
    facts = fit(TRAIN, np.arange(4))
    x, town = facts["columns"]
    values = [1.0, 5.0, 3.0]
    assert (x["name"], x["kind"], x["min"], x["max"], x["missing"]) == ("x", "numeric", 1.0, 5.0, 0.25)
    assert x["mean"] == pytest.approx(3.0) and x["std"] == pytest.approx(np.std(values))
    assert (town["kind"], town["categories"], town["max"]) == ("categorical", ["Bern", "Rome"], 1.0)
    assert facts["dropped"] == [
        {"name": "same", "why": "constant", "value": 7.0},
        {"name": "empty", "why": "all missing"},
        {"name": "word", "why": "constant", "value": "a"},
    ]
    assert facts == json.loads(json.dumps(facts)), "plain values, so that a checkpoint can hold them"


def test_a_table_needs_two_columns_of_use():
    words = r"t.csv has 1 columns that can be learned from, and two are needed \('b': constant; 'c': all missing\)"
    with pytest.raises(ValueError, match=words):
        fit(make(["a", "b", "c"], [[1, 2, NAN], [3, 2, NAN]]), np.arange(2))


def test_dropped_columns_are_said_once(caplog):
    adapter = Tabular()
    with caplog.at_level(logging.WARNING):
        adapter.facts(Row(TRAIN, i) for i in range(4))
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "t.csv: column 'same' is left out: constant", "t.csv: column 'empty' is left out: all missing",
        "t.csv: column 'word' is left out: constant",
    ]  # fmt: skip


def test_facts_are_of_the_rows_that_are_given():
    facts = fit(TRAIN, np.array([0, 1]))
    assert facts["rows"] == 2 and facts["columns"][0]["mean"] == 3.0 and facts["columns"][0]["missing"] == 0.0


def test_categories_first_seen_later_are_missing_and_counted(caplog):
    encoding = Encoding(fit(TRAIN, np.arange(4)))
    other = make(["town", "x"], [[1, 2], [0, 5], [2, 3], [NAN, 1]], "new.csv", town=("Oslo", "Paris", "Rome"))
    with caplog.at_level(logging.WARNING):
        values, given = encoding.encode(other)
    assert given.tolist() == [[True, False], [True, False], [True, True], [True, False]]
    np.testing.assert_allclose(values, [[0.25, 0], [1, 0], [0.5, 1], [0, 0]], rtol=1e-6)
    assert caplog.text.count("new.csv: 2 cells of column 'town' hold categories") == 1
    assert "('Oslo', 'Paris')" in caplog.text


def test_other_data_are_read_once_and_said_once(caplog):
    adapter = Tabular()
    adapter.use(fit(TRAIN, np.arange(4)))
    other = make(["x", "extra"], [[2, 0], [5, 1]], "new.csv")
    with caplog.at_level(logging.WARNING):
        cells = [adapter.collate([Row(other, 1), Row(other, 0)]) for _ in range(3)][-1]
    assert cells.given.tolist() == [[True, False], [True, False]]
    assert cells.values[:, 0].tolist() == pytest.approx([1.0, 0.25])
    assert [record.getMessage() for record in caplog.records] == [
        "new.csv has no column 'town', so its cells count as missing",
        "new.csv: the training data do not have column 'extra', so it is not read",
    ]


def test_a_column_of_training_that_is_empty_now_is_said(caplog):
    encoding = Encoding(fit(TRAIN, np.arange(4)))
    other = Table((Column("x", "numeric"),), np.array([[2.0]]), "new.csv", {"town": "all missing"})
    with caplog.at_level(logging.WARNING):
        _, given = encoding.encode(other)
    assert given.tolist() == [[True, False]]
    assert "new.csv: column 'town' is not read (all missing), so its cells count as missing" in caplog.text


def test_data_with_none_of_the_columns_are_refused():
    encoding = Encoding(fit(TRAIN, np.arange(4)))
    with pytest.raises(ValueError, match=r"new.csv has none of the columns.*\('x', 'town'\)"):
        encoding.encode(make(["y"], [[1], [2]], "new.csv"))


def test_text_where_numbers_were_is_refused():
    encoding = Encoding(fit(TRAIN, np.arange(4)))
    with pytest.raises(ValueError, match=r"column 'x' held numbers in the training data, but new.csv has 'big' in it"):
        encoding.encode(make(["x"], [[0]], "new.csv", x=("big",)))


def test_categories_that_are_numbers_are_met_as_numbers():
    train = make(["zip", "x"], [[0, 1], [1, 2], [2, 3]], zip=("8", "1010", "2.5"))
    encoding = Encoding(fit(train, np.arange(3)))
    values, given = encoding.encode(make(["zip", "x"], [[1010, 1], [9, 1], [NAN, 1], [2.5, 1]], "new.csv"))
    assert given[:, 0].tolist() == [True, False, False, True]
    np.testing.assert_allclose(values[:, 0], [0.5, 0, 0, 1])


def test_values_beyond_the_training_range_are_kept():
    encoding = Encoding(fit(TRAIN, np.arange(4)))
    values, _ = encoding.encode(make(["x", "town"], [[9, 0], [-3, 0]], town=("Bern",)))
    assert values[:, 0].tolist() == pytest.approx([2.0, -1.0])


def test_rows_of_several_tables_make_one_batch():
    adapter = Tabular()
    adapter.use(fit(TRAIN, np.arange(4)))
    other = make(["town", "x"], [[0, 3]], "new.csv", town=("Rome",))
    cells = adapter.collate([Row(TRAIN, 1), Row(other, 0), Row(TRAIN, 3)])
    assert cells.values.tolist() == [[1.0, 1.0], [0.5, 1.0], [0.5, 0.0]]
    assert cells.given.tolist() == [[True, True], [True, True], [True, False]]


def test_cells_move_and_flags_stay_flags():
    cells = Cells(torch.rand(2, 3), torch.tensor([[True, False, True]] * 2)).to(torch.float64)
    assert cells.values.dtype == torch.float64 and cells.given.dtype == torch.bool
    assert Cells(torch.rand(2, 3)).to("cpu").given is None


def test_baseline_against_plain_columns():
    adapter = Tabular()
    adapter.use(fit(TRAIN, np.arange(4)))
    std = np.std([1, 5, 3])
    expected = [[-2 / std, 0, 1, 0], [2 / std, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]]
    for i in range(4):
        assert adapter.baseline(Row(TRAIN, i)).tolist() == pytest.approx(expected[i], abs=1e-6)


def test_pictures_show_hidden_and_missing_cells():
    adapter = Tabular()
    plain = adapter.picture(Row(TRAIN, 0))
    assert plain.dtype == np.uint8 and plain.shape[2] == 3 and plain.shape[0] == 5 * 15 + 1
    hidden = Table(TRAIN.columns, TRAIN.values, "t", hidden=np.array([[True, False, False, False, False]] * 4))
    drawn = adapter.picture(Row(hidden, 0))
    assert (drawn[15:] == plain[15:]).all() and (drawn[:15] != plain[:15]).any()
    box = drawn[4:12, -40:-10]
    assert len(np.unique(box)) <= 3 and 150 < box.min() and box.max() < 230, "one grey"
    missing = adapter.picture(Row(TRAIN, 2))
    assert (missing[:15] != plain[:15]).any()
    wide = make([f"c{i}" for i in range(40)], np.zeros((1, 40)))
    assert adapter.picture(Row(wide, 0)).shape[0] == 25 * 15 + 1


def test_a_file_is_no_sample():
    with pytest.raises(ValueError, match=r"data=table data.root=FILE"):
        Tabular().decode(b"a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"data.channels has no meaning for tables"):
        Tabular().convert(Row(TRAIN, 0), 3)


def test_an_adapter_with_its_encoding_travels_to_workers():
    import pickle

    adapter = Tabular()
    adapter.use(fit(TRAIN, np.arange(4)))
    first = adapter.collate([Row(TRAIN, 1)])
    other, table = pickle.loads(pickle.dumps((adapter, TRAIN)))
    assert torch.equal(other.collate([Row(table, 1)]).values, first.values)
    assert copy.copy(first).values is first.values
