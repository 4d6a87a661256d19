"""Sources of tables: splits, labels, features, and the sample."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from mmssl.data.module import Data
from mmssl.modalities.tabular.adapter import Tabular
from mmssl.modalities.tabular.sets import Tables, TabularSample, Uci


def table(path, rows=50, header="x,y,kind,target", cell=lambda i: f"{i},{i * i % 7},{'abc'[i % 3]},{'yn'[i % 2]}"):
    path.write_text(header + "\n" + "".join(cell(i) + "\n" for i in range(rows)))
    return path


def splits(path, **said):
    return Tables(Tabular(), root=str(path), **said).splits()


def test_a_share_of_the_rows_is_held_out(tmp_path):
    found = splits(table(tmp_path / "t.csv"))
    train, test = found["train"], found["test"]
    assert len(train) == 45 and len(test) == 5 and train.table is test.table
    assert sorted([*train.rows, *test.rows]) == list(range(50))
    assert [column.name for column in train.table.columns] == ["x", "y", "kind"], "the label is no feature"
    assert train.classes == ["n", "y"]
    row = test.read(2)
    assert int(test.labels[2]) == 1 - row.number % 2 and row.table.values[row.number, 0] == row.number
    assert test.name(0) == f"t.csv:{test.rows[0]}"
    assert set(splits(tmp_path / "t.csv", test_share=0)) == {"train"}


def test_what_is_held_out_follows_the_content(tmp_path):
    """Rows in another order are split alike, and equal rows never come into both splits."""
    first = splits(table(tmp_path / "a.csv", 200, cell=lambda i: f"{i % 100},1,a,y"))
    other = splits(table(tmp_path / "b.csv", 200, cell=lambda i: f"{(199 - i) % 100},1,a,y"))
    held = [{int(s["test"].table.values[r, 0]) for r in s["test"].rows} for s in (first, other)]
    assert held[0] == held[1] and len(first["test"]) == 20
    kept = {int(first["train"].table.values[r, 0]) for r in first["train"].rows}
    assert not kept & held[0]


def test_splits_of_a_folder_a_column_and_a_list(tmp_path):
    table(tmp_path / "train.csv", 8), table(tmp_path / "test.csv", 3)
    found = splits(tmp_path)
    assert (found["train"].rows.tolist(), found["test"].rows.tolist()) == (list(range(8)), [8, 9, 10])

    table(tmp_path / "one.csv", 6, "x,y,split", lambda i: f"{i},{i % 2},{['train', 'Valid', 'test'][i % 3]}")
    found = splits(tmp_path / "one.csv")
    assert {name: rows.rows.tolist() for name, rows in found.items()} == {
        "train": [0, 3],
        "val": [1, 4],
        "test": [2, 5],
    }
    assert [column.name for column in found["train"].table.columns] == ["x", "y"]

    (tmp_path / "rows.txt").write_text("1\n4\n")
    found = splits(table(tmp_path / "listed.csv", 6), test_rows="rows.txt")
    assert found["test"].rows.tolist() == [1, 4] and found["train"].rows.tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"label": "targt"}, "data.source.label: t.csv has no column 'targt'; did you mean 'target'"),
        ({"columns": ["x", "target"]}, "data.source.columns names 'target', which is the label"),
        ({"columns": ["x", "z"]}, r"data.source.columns: .* has no column 'z'"),
        ({"ignore": ["kinds"]}, "data.source.ignore: .* did you mean 'kind'"),
        ({"columns": ["x"], "ignore": ["x"]}, "no column of .* is left as a feature"),
        ({"split": "kind"}, r"data.source.split: column 'kind' has 'a'.*train, val or test"),
        ({"test_rows": "none.txt"}, "data.source.test_rows: .*none.txt has to list row numbers"),
        ({"test_rows": "far.txt"}, "data.source.test_rows: .* names row 50, but the table has rows 0 to 49"),
        ({"test_share": 1.0}, "data.source.test_share has to be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, said, words):
    table(tmp_path / "t.csv")
    (tmp_path / "far.txt").write_text("3\n50\n")
    with pytest.raises(ValueError, match=words):
        splits(tmp_path / "t.csv", **said)


def test_an_unlabelled_table_asked_for_labels(tmp_path):
    path = table(tmp_path / "t.csv", header="x,y,kind,outcome")
    assert splits(path)["train"].labels is None
    with pytest.raises(ValueError, match=r"data.source.label=true, but t.csv has no column called label"):
        splits(path, label=True)
    assert splits(path, label="outcome")["train"].classes == ["n", "y"]


def test_a_file_for_each_split_and_another_rule_clash(tmp_path):
    table(tmp_path / "train.csv"), table(tmp_path / "test.csv")
    with pytest.raises(ValueError, match="has a file for each split"):
        splits(tmp_path, test_rows="rows.txt")


def test_labels(tmp_path, caplog):
    half = table(tmp_path / "half.csv", 10, "x,y,label", lambda i: f"{i},{i % 3},{['b', 'a', '?'][i % 3]}")
    found = splits(half, test_share=0)["train"]
    assert found.labels.tolist() == [1, 0, -1, 1, 0, -1, 1, 0, -1, 1] and found.classes == ["a", "b"]

    codes = table(tmp_path / "codes.csv", 12, "x,y,label", lambda i: f"{i},{i % 3},{(i % 4) * 5}")
    found = splits(codes, test_share=0)["train"]
    assert found.classes == ["0", "5", "10", "15"] and found.labels[:5].tolist() == [0, 1, 2, 3, 0]

    with caplog.at_level(logging.WARNING):
        price = table(tmp_path / "price.csv", 10, "x,y,price", lambda i: f"{i},{i % 3},{i + 0.5}")
        found = splits(price, label="price", test_share=0)["train"]
    assert found.labels is None and found.classes is None
    assert [column.name for column in found.table.columns] == ["x", "y"]
    assert sum("'price' holds quantities" in record.message for record in caplog.records) == 1
    many = table(tmp_path / "many.csv", 150, "x,y,label", lambda i: f"{i},{i % 3},{i}")
    assert splits(many)["train"].labels is None
    assert splits(half, label=False, test_share=0)["train"].table.columns[2].name == "label"


def test_a_test_table_without_a_column_is_said(tmp_path, caplog):
    table(tmp_path / "train.csv", 6)
    table(tmp_path / "test.csv", 2, "x,kind,target", lambda i: f"{i},a,y")
    with caplog.at_level(logging.WARNING):
        found = splits(tmp_path)
    assert "test.csv has no column 'y'" in caplog.text
    assert np.isnan(found["test"].table.values[6:, 1]).all() and not np.isnan(found["test"].table.values[:6]).any()


def test_rows_without_any_cell_are_left_out_and_listed(tmp_path):
    path = table(tmp_path / "t.csv", 40, "x,y", lambda i: "?," if i == 7 else f"{i},{i % 5}")
    data = Data(
        Tabular(), 0, source=lambda a: Tables(a, root=str(path), test_share=0), views={"x": []}, view=[], batch_size=40,
        bad_share=0.1,
    )  # fmt: skip
    assert data.facts()["rows"] == 39
    batch = next(iter(data.train_dataloader()))
    assert 7 not in batch["id"].tolist() and data.skipped == ["t.csv:7"]


def test_fingerprints_change_with_cells_and_labels(tmp_path):
    first = splits(table(tmp_path / "a.csv"))["train"].fingerprint()
    assert first == splits(table(tmp_path / "b.csv"))["train"].fingerprint()
    text = (tmp_path / "a.csv").read_text()
    for old, new in (("3,2,a,n", "3,2.5,a,n"), ("3,2,a,n", "3,2,a,y"), ("3,2,a,n", "3,2,,n"), ("x,y", "z,y")):
        (tmp_path / "c.csv").write_text(text.replace(old, new))
        assert (
            splits(tmp_path / "c.csv", test_share=0)["train"].fingerprint()
            != splits(tmp_path / "a.csv", test_share=0)["train"].fingerprint()
        )


def test_uci(tmp_path):
    table(tmp_path / "yacht.csv", 10, "f0,f1,target", lambda i: f"{i},{i % 3},{i % 2}")
    (tmp_path / "yacht.test_rows.txt").write_text("0\n5\n")
    found = Uci(Tabular(), root=str(tmp_path), name="yacht").splits()
    assert found["test"].rows.tolist() == [0, 5] and found["train"].classes == ["0", "1"]
    with pytest.raises(ValueError, match=r"data.source.name=yatch: .* has no yatch.csv; did you mean 'yacht'"):
        Uci(Tabular(), root=str(tmp_path), name="yatch").splits()


def test_the_sample():
    found = TabularSample(Tabular()).splits()
    train, test = found["train"], found["test"]
    assert (len(train), len(test)) == (12000, 4000) and train.classes == ["<=50K", ">50K"]
    kinds = [column.kind for column in train.table.columns]
    assert kinds.count("numeric") == 6 and kinds.count("categorical") == 8
    share = float((train.labels == 1).float().mean())
    assert 0.2 < share < 0.3
    assert 0.005 < np.isnan(train.table.values).mean() < 0.02
    folder = Path(__file__).parents[3] / "mmssl" / "modalities" / "tabular" / "sample"
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 700_000
    assert "CC BY 4.0" in (folder / "README.md").read_text() and (folder / "LICENSE").is_file()
