"""Files of tables: what is understood, and what is refused with which words."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mmssl.modalities.tabular.reading import MISSING, files_by_split, read, write
from mmssl.modalities.tabular.table import make

TEXT = 'name,age,city\nAnn, 31 ,"Paris, France"\nBob,?,Rome\nCy,40,\n'


def put(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_cells_come_as_they_stand(tmp_path):
    table = read(put(tmp_path / "t.csv", TEXT))
    assert table.to_pydict() == {
        "name": ["Ann", "Bob", "Cy"],
        "age": [" 31 ", "?", "40"],
        "city": ["Paris, France", "Rome", ""],
    }


@pytest.mark.parametrize("kind", ["semicolon", "tab", "gz", "bom", "windows", "no_last_newline"])
def test_dialects(tmp_path, kind):
    rows = "a,b\n1,x\n2,y\n"
    path, blob = tmp_path / "t.csv", rows.encode()
    if kind == "semicolon":
        blob = rows.replace(",", ";").encode()
    elif kind == "tab":
        path, blob = tmp_path / "t.tsv", rows.replace(",", "\t").encode()
    elif kind == "gz":
        path, blob = tmp_path / "t.csv.gz", gzip.compress(blob)
    elif kind == "bom":
        blob = b"\xef\xbb\xbf" + blob
    elif kind == "windows":
        blob = rows.replace("\n", "\r\n").encode()
    else:
        blob = blob.rstrip()
    path.write_bytes(blob)
    assert read(path).to_pydict() == {"a": ["1", "2"], "b": ["x", "y"]}


def test_a_single_column_keeps_its_empty_cells(tmp_path):
    assert read(put(tmp_path / "t.csv", "a\n1\n\n3\n")).to_pydict() == {"a": ["1", "", "3"]}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "t.csv",
            "a,b\n1,2\n3\n4,5\n",
            r"t.csv has 1 rows that do not fit its header of 2 columns.*line 3, with 1: '3'",
        ),
        ("t.csv", "a,b\n1,2,9\n", r"line 2, with 3: '1,2,9'"),
        ("t.csv", "a,b,a\n1,2,3\n", r"t.csv has two columns called 'a'"),
        ("t.csv", "a,b\n", "t.csv has no rows"),
        ("t.csv", "", "t.csv has no header"),
        ("t.parquet", "a,b\n1,2\n", "t.parquet cannot be read as a table"),
        ("t.csv.gz", "a,b\n1,2\n", "t.csv.gz cannot be read as a table"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, name, text, words):
    with pytest.raises(ValueError, match=words):
        read(put(tmp_path / name, text))


def test_text_of_another_encoding_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"t.csv cannot be read as a table.*UTF"):
        read(put(tmp_path / "t.csv", "a,b\n1,caf\u00e9\n", "latin-1"))


def test_which_file_holds_which_split(tmp_path):
    single = put(tmp_path / "any.csv", TEXT)
    assert files_by_split(single) == {"train": single} == files_by_split(tmp_path)
    for name in ("train.csv.gz", "valid-00000-of-1.parquet", "test.tsv", "extra.csv"):
        (tmp_path / name).write_bytes(b"")
    found = {split: path.name for split, path in files_by_split(tmp_path).items()}
    assert found == {"train": "train.csv.gz", "val": "valid-00000-of-1.parquet", "test": "test.tsv"}


def test_folders_without_a_train_table_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no table.*only nothing"):
        files_by_split(tmp_path)
    put(tmp_path / "a.csv", TEXT), put(tmp_path / "b.csv", TEXT)
    with pytest.raises(ValueError, match=r"holds a.csv, b.csv, none of which is named train"):
        files_by_split(tmp_path)
    put(tmp_path / "train.csv", TEXT), put(tmp_path / "train.tsv", TEXT)
    with pytest.raises(ValueError, match=r"two tables of the train split: train.csv, train.tsv"):
        files_by_split(tmp_path)
    with pytest.raises(ValueError, match=r"notes.txt: a table has to be one of .parquet, .csv"):
        files_by_split(put(tmp_path / "notes.txt", "x"))


def columns(data, categorical=(), missing=MISSING):
    table = data if isinstance(data, pa.Table) else pa.table(data)
    return make(table, table.column_names, categorical, missing, "t.csv")


def test_kinds_of_columns_in_text():
    made = columns(
        {
            "whole": ["1", " -2", "?", "3"],
            "real": ["1.5", "nan", "1e3", "-.5"],
            "word": ["b", "a", " b ", "NA"],
            "flag": ["1", "0", "", "1"],
            "none": ["", "?", "NULL", "n/a"],
        },
        categorical=["flag"],
    )
    assert [(c.name, c.kind, c.whole) for c in made.columns] == [
        ("whole", "numeric", True), ("real", "numeric", False), ("word", "categorical", False),
        ("flag", "categorical", False),
    ]  # fmt: skip
    assert made.columns[2].categories == ("a", "b") and made.columns[3].categories == ("0", "1")
    expected = [[1, 1.5, 1, 1], [-2, np.nan, 0, 0], [np.nan, 1000, 1, np.nan], [3, -0.5, np.nan, 1]]
    np.testing.assert_array_equal(made.values, expected)
    assert made.skipped == {"none": "all missing"}


def test_kinds_of_columns_in_parquet():
    day = np.array(["2020-01-01", "2020-01-03", "NaT"], dtype="datetime64[D]")
    made = columns(
        {
            "i": pa.array([1, None, 3], pa.int32()),
            "f": pa.array([1.5, float("nan"), float("inf")], pa.float32()),
            "t": pa.array([True, None, False]),
            "d": pa.array(day),
            "s": pa.array(["x", "?", None]).dictionary_encode(),
            "n": pa.array([None, None, None]),
            "l": pa.array([[1], [2], None]),
            "code": pa.array([10, 9, 10]),
        },
        categorical=["code"],
    )
    kinds = {c.name: (c.kind, c.categories) for c in made.columns}
    assert kinds["i"] == kinds["f"] == kinds["d"] == ("numeric", ())
    assert kinds["t"] == ("categorical", ("false", "true")) and kinds["s"] == ("categorical", ("x",))
    assert kinds["code"] == ("categorical", ("9", "10")), "categories that are numbers are in their order"
    values = {c.name: made.values[:, i].tolist() for i, c in enumerate(made.columns)}
    assert values["i"][0] == 1 and np.isnan(values["i"][1])
    assert values["f"][0] == 1.5 and np.isnan(values["f"][1:]).all()
    assert values["d"][1] - values["d"][0] == 2 and np.isnan(values["d"][2])
    assert values["code"] == [1, 0, 1]
    assert set(made.skipped) == {"n", "l"} and "list" in made.skipped["l"]


def test_text_that_names_rows_is_no_category():
    data = {"id": [f"row-{i}" for i in range(30)], "x": [str(i % 3) for i in range(30)]}
    assert "30 of its 30 texts differ" in columns(data).skipped["id"]
    kept = columns(data, categorical=["id"])
    assert kept.columns[0].kind == "categorical" and len(kept.columns[0].categories) == 30


def test_numbers_with_a_few_words_are_refused():
    data = {"age": [str(i) for i in range(40)] + ["unknown"]}
    words = (
        r"column 'age' of t.csv holds numbers, but 1 of its cells do not: 'unknown', first in row 40.*source.missing"
    )
    with pytest.raises(ValueError, match=words):
        columns(data)
    cleaned = columns(data, missing=[*MISSING, "unknown"])
    assert cleaned.columns[0].whole and np.isnan(cleaned.values[40, 0])
    assert columns(data, categorical=["age"]).columns[0].kind == "categorical"


def test_writing(tmp_path):
    table = pa.table({"a": ["1", "two, three", ""], "b": ['say "hi"', "x", "y"]})
    write(tmp_path / "new" / "t.csv", table)
    assert (tmp_path / "new" / "t.csv").read_text() == 'a,b\n1,"say ""hi"""\n"two, three",x\n,y\n'
    write(tmp_path / "t.tsv", table)
    assert read(tmp_path / "t.tsv").equals(table)
    write(tmp_path / "t.parquet", table)
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").equals(table)
    with pytest.raises(ValueError, match=r"out=.*t.xlsx: a table is written to .csv, .tsv or .parquet"):
        write(tmp_path / "t.xlsx", table)
    assert not list(tmp_path.glob("*.tmp"))
