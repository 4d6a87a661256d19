"""Imputation: what is filled in, and that nothing else changes."""

from __future__ import annotations

import csv
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

import mmssl
from mmssl.api import resolve
from mmssl.config import build
from mmssl.modalities.tabular.encoding import Encoding, fit
from mmssl.modalities.tabular.imputation import fill, impute
from mmssl.modalities.tabular.reading import MISSING, read
from mmssl.modalities.tabular.table import make

torch.set_num_threads(1)
SIZES = [
    "data=table", "data.batch_size=8", "data.source.test_share=0", "encoder.dim=16", "encoder.depth=1",
    "encoder.heads=4", "objective.cells.predictor.dim=16", "objective.cells.predictor.depth=1",
]  # fmt: skip
HEADER = ["id", "age", "height", "town", "note", "same", "target"]
ROWS = [
    [f"p{i}", str(20 + i), f"{1.5 + i / 50:.3f}", ["Bern", "Oslo, N"][i % 2], "", "7", "yn"[i % 2]] for i in range(24)
]
HOLES = {(3, 1): "?", (5, 2): "", (6, 3): " NA ", (8, 1): "nan", (8, 2): "NULL", (9, 5): "", (11, 6): "?"}


@pytest.fixture
def holes(tmp_path):
    rows = [list(row) for row in ROWS]
    for (i, j), word in HOLES.items():
        rows[i][j] = word
    path = tmp_path / "holes.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    return path


def rows_of(path):
    return list(csv.reader(path.read_text().splitlines()))


def built(path, *more):
    module, data = mmssl.build("tabular/remasker", [f"data.root={path}", *SIZES, *more])
    return module, data


def test_only_missing_cells_change(holes, tmp_path, caplog):
    module, data = built(holes)
    with caplog.at_level(logging.WARNING):
        result = data.adapter.impute(module, data, tmp_path / "out.csv")
    before, after = rows_of(holes), rows_of(tmp_path / "out.csv")
    assert after[0] == HEADER and len(after) == len(before)
    changed = {(i - 1, j) for i in range(1, 25) for j in range(7) if before[i][j] != after[i][j]}
    filled = {(3, 1), (5, 2), (6, 3), (8, 1), (8, 2), (9, 5)}
    assert changed == filled, "the label and the empty column stay as they are"
    assert after[10][5] == "7" and after[7][3] in ("Bern", "Oslo, N")
    assert after[4][1].isdigit() and after[9][1].isdigit(), "whole numbers stay whole"
    assert 1.5 <= float(after[6][2]) <= 1.98 and "." in after[6][2]
    assert result["filled"] == {"age": 2, "height": 2, "town": 1, "same": 1}
    assert result["left"] == {"note": 24, "target": 1} and result["rows"] == 24
    assert "cells that stay missing: 24 of column 'note', 1 of column 'target'" in caplog.text


def test_parquet_keeps_its_types(tmp_path):
    day = np.arange("2020-01-01", "2020-01-25", dtype="datetime64[D]").astype(object)
    table = pa.table(
        {
            "i": pa.array([None, *range(23)], pa.int16()),
            "f": pa.array([*np.linspace(0, 1, 23), None], pa.float32()),
            "d": pa.array([day[0], None, *day[2:]], pa.date32()),
            "b": pa.array([True, False] * 11 + [None, True]),
            "s": pa.array(["x", "y", None] * 8).dictionary_encode(),
            "y": pa.array([1, 2] * 12),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    module, data = built(tmp_path / "in.parquet", "data.source.label=y")
    data.adapter.impute(module, data, tmp_path / "out.parquet")
    after = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert after.schema.equals(table.schema)
    for name in table.column_names:
        assert after[name].null_count == 0
        old, new = table[name].to_pylist(), after[name].to_pylist()
        assert [n for o, n in zip(old, new, strict=True) if o is not None] == [o for o in old if o is not None]
    assert day[0] <= after["d"][1].as_py() <= day[-1] and 0 <= after["i"][0].as_py() <= 22
    data.adapter.impute(module, data, tmp_path / "out.csv")
    assert read(tmp_path / "out.csv").column_names == table.column_names


def test_splits_are_written_one_behind_the_other(holes, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    text = holes.read_text().splitlines(keepends=True)
    (folder / "test.csv").write_text("".join([text[0], *text[19:]]))
    (folder / "train.csv").write_text("".join(text[:19]))
    module, data = built(folder)
    assert impute(data.adapter, module, data, tmp_path / "out.csv")["rows"] == 24
    assert [row[0] for row in rows_of(tmp_path / "out.csv")[1:]] == [f"p{i}" for i in range(24)]


def test_other_data_are_filled_with_the_training_encoding(holes, tmp_path, caplog):
    """A run meets another table: an unseen category is kept as it is and not overwritten."""
    module, trained = built(holes)
    new = tmp_path / "new.csv"
    new.write_text("town,age,height\nRome,?,1.7\n,40,\n")
    data = build.data(resolve("tabular/remasker", [f"data.root={new}", *SIZES]))
    with caplog.at_level(logging.WARNING):
        data.use(trained.facts())
        data.adapter.impute(module, data, tmp_path / "out.csv")
    _, first, second = rows_of(tmp_path / "out.csv")
    assert first[0] == "Rome" and 20 <= int(first[1]) <= 43 and first[2] == "1.7"
    assert second[0] in ("Bern", "Oslo, N") and second[1] == "40" and 1.5 <= float(second[2]) <= 1.98
    assert "1 cells of column 'town' hold categories" in caplog.text


def test_filling_uses_the_nearest_category_and_seven_digits():
    original = pa.table({"a": ["1.5", "?", "2.25"], "b": ["x", "y", ""]})
    table = make(original, ["a", "b"], [], MISSING, "t")
    encoding = Encoding(fit(table, np.arange(3)))
    predicted = encoding.decode(np.array([[0, 0], [1 / 3, 0], [0, 0.6]]))
    made, counts = fill(original, table, predicted, encoding, MISSING)
    assert made.to_pydict() == {"a": ["1.5", "1.75", "2.25"], "b": ["x", "y", "y"]}
    assert counts == {"filled": {"a": 1, "b": 1}, "left": {}}


def test_a_run_without_raw_predictions_is_refused(holes, tmp_path):
    module, data = built(holes)
    term = module.objective["cells"]
    term.at = ["visible"]
    with pytest.raises(ValueError, match=r"what=imputed needs a run that predicts raw values of hidden cells"):
        data.adapter.impute(module, data, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_training_mode_and_masker_are_put_back(holes, tmp_path):
    module, data = built(holes)
    masker = module.looks["x"].masker
    module.train()
    data.adapter.impute(module, data, tmp_path / "out.csv")
    assert module.training and module.looks["x"].masker is masker and module.looks["x"].mask is None
