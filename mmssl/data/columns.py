"""How tables are understood: which files and columns there are, and what labels and splits they hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.source import SPLITS
from mmssl.registry import suggest

if TYPE_CHECKING:
    import pyarrow as pa

_READABLE = (".parquet", ".csv", ".tsv")
LABELS = ("label", "labels", "class", "target")
_SAMPLES = ("path", "file", "file_name", "filename", "filepath", "image", "img", "audio", "video", "bytes")


@dataclass(frozen=True)
class Table:
    """A table: the column of samples, and those of labels and split names where there are any.

    Args:
        classes: names of integer labels as the file's metadata give them.
    """

    file: Path
    samples: pa.ChunkedArray
    labels: pa.ChunkedArray | None
    splits: pa.ChunkedArray | None
    classes: list[str] | None


def tables_by_split(root: Path) -> dict[str, list[Path]]:
    """The tables at `data.root`: one file, or a folder of files whose names start with their split.

    Hugging Face's `data/train-00000-of-00002.parquet` is understood too. A single table of any other name is train.

    Raises:
        ValueError: where there is no table, or several that name no split.
    """
    if root.is_file():
        if root.suffix not in _READABLE:
            raise ValueError(f"data.root={root}: a manifest has to be one of {', '.join(_READABLE)}")
        return {"train": [root]}
    files = sorted(file for file in [*root.glob("*"), *root.glob("data/*")] if file.suffix in _READABLE)
    if not files:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) or "nothing"
        raise ValueError(
            f"data.root={root} holds no table ({', '.join(_READABLE)}), only {found}; name a table, or use data=folder "
            "for a folder of files"
        )
    found_splits: dict[str, list[Path]] = {}
    for file in files:
        split = SPLITS.get(file.stem.split("-")[0].lower())
        if split is not None:
            found_splits.setdefault(split, []).append(file)
    if not found_splits and len(files) == 1:
        return {"train": files}
    if "train" not in found_splits:
        raise ValueError(
            f"data.root={root} holds {', '.join(file.name for file in files[:5])}, none of which is named train; set "
            "data.root to one table, or name the files train.*, val.* and test.*"
        )
    return found_splits


def find_columns(
    file: Path, extensions: tuple[str, ...], column: str | None, label: str | bool | None, split: str | None
) -> tuple[str, str | None, str | None]:
    """Names of the columns of samples, labels and splits: those asked for, else what type and name suggest.

    Raises:
        ValueError: where a column asked for is not there, or none can hold samples, with the columns there are.
    """
    schema = _schema(file)
    samples = asked_column(column, "column", schema, file) or _guess(schema, extensions, file)
    split = asked_column(split, "split", schema, file) or ("split" if "split" in schema.names else None)
    if label is False:
        return samples, None, split
    labels = asked_column(None if label is True else label, "label", schema, file)
    labels = labels or next((name for name in LABELS if name in schema.names and name != samples), None)
    if label is True and labels is None:
        raise ValueError(
            f"data.source.label=true, but {file} has no column called {', '.join(LABELS)}; set data.source.label to "
            f"one of its columns: {', '.join(schema.names)}"
        )
    return samples, labels, split


def read(file: Path, samples: str, labels: str | None, splits: str | None) -> Table:
    """Reads the named columns of a table.

    Raises:
        ValueError: where it has no rows.
    """
    wanted = [name for name in (samples, labels, splits) if name is not None]
    if file.suffix == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(file, columns=wanted, memory_map=True)
    else:
        table = _csv(file, wanted)
    if table.num_rows == 0:
        raise ValueError(f"data.root: {file} has no rows")
    return Table(
        file,
        table[samples],
        None if labels is None else table[labels],
        None if splits is None else table[splits],
        None if labels is None else class_names(table.schema.metadata, labels),
    )


def rows_by_split(table: Table, split: str) -> dict[str, np.ndarray]:
    """Row numbers of each split: what the column of splits says, else all rows are of the given one.

    Raises:
        ValueError: for a name of a split that means nothing.
    """
    if table.splits is None:
        return {split: np.arange(len(table.samples))}
    names = np.array([str(value).lower() for value in table.splits.to_pylist()])
    unknown = sorted(set(names.tolist()) - set(SPLITS))
    if unknown:
        raise ValueError(
            f"data.source.split: {table.file} has the split {unknown[0]!r}{suggest(unknown[0], SPLITS)}; name them "
            "train, val and test"
        )
    split_of = np.array([SPLITS[name] for name in names.tolist()])
    return {name: np.flatnonzero(split_of == name) for name in dict.fromkeys(split_of.tolist())}


def codes(tables: list[Table], strict: bool) -> tuple[list[Tensor | None], list[str] | None]:
    """Labels of each table as integers, and the names of the classes over all tables.

    Names come from the file's metadata, where labels are already codes; else they are the sorted distinct values. A
    table whose labels are all empty (or -1, with names) is unlabelled.

    Args:
        tables: the tables, of all splits.
        strict: refuses labels that are no classes, which else count as none.

    Raises:
        ValueError: where some labels are empty, or numbers with a fraction.
    """
    values = [_values(table) for table in tables]
    named = next((table.classes for table in tables if table.classes is not None), None)
    known = {value for group in values if group is not None for value in group}
    if any(isinstance(value, float) and not value.is_integer() for value in known) or len({type(v) for v in known}) > 1:
        if strict:
            raise ValueError(
                "data.source.label: the column holds no classes (integers or text); name another, or false"
            )
        return [None] * len(tables), None
    if named is not None:
        outside = [value for value in known if not isinstance(value, int) or not 0 <= value < len(named)]
        if outside:
            raise ValueError(f"data.source.label: {outside[0]!r} is not among the file's {len(named)} classes")
        return [None if group is None else torch.tensor(group, dtype=torch.int64) for group in values], named
    code = {value: i for i, value in enumerate(sorted(known))}
    labels = [None if group is None else torch.tensor([code[value] for value in group]) for group in values]
    names = [str(int(value)) if isinstance(value, float) else str(value) for value in code]
    return labels, names or None


def _values(table: Table) -> list[Any] | None:
    if table.labels is None:
        return None
    values = table.labels.to_pylist()
    empty = [i for i, value in enumerate(values) if value is None or (table.classes is not None and value == -1)]
    if len(empty) == len(values):
        return None
    if empty:
        raise ValueError(
            f"data.source.label: {len(empty)} of {len(values)} rows of {table.file} have no label, the first is row "
            f"{empty[0]}; fill or remove them, or set data.source.label=false"
        )
    return values


def asked_column(name: str | None, key: str, schema: pa.Schema, file: Path) -> str | None:
    """The column that the key asks for, None where it asks for none; ValueError where there is no such column."""
    if name is None or name in schema.names:
        return name
    raise ValueError(
        f"data.source.{key}={name}: {file} has no such column{suggest(name, schema.names)}; its columns are: "
        f"{', '.join(schema.names)}"
    )


def _guess(schema: pa.Schema, extensions: tuple[str, ...], file: Path) -> str:
    """The column of samples: a struct of bytes, then bytes, then text that is called or looks like paths."""
    import pyarrow as pa

    def is_struct(kind: pa.DataType) -> bool:
        return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0

    def is_bytes(kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    for fits in (is_struct, is_bytes):
        names = [field.name for field in schema if fits(field.type)]
        if len(names) == 1:
            return names[0]
        if names:
            raise ValueError(f"data.source.column: {file} has several columns of bytes; name one of {', '.join(names)}")
    text = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    for name in (*(name for name in _SAMPLES if name in text), *text):
        first = next((value for value in read(file, name, None, None).samples.to_pylist() if value), "")
        if first.lower().endswith(extensions):
            return name
    raise ValueError(
        f"data.source.column: no column of {file} holds bytes or paths that end in {', '.join(extensions)}; its "
        f"columns are: {', '.join(schema.names)}"
    )


def _schema(file: Path) -> pa.Schema:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_schema(file)
    return _csv(file, None).schema


def _csv(file: Path, columns: list[str] | None) -> pa.Table:
    import pyarrow.csv

    return pyarrow.csv.read_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if file.suffix == ".tsv" else ","),
        convert_options=pyarrow.csv.ConvertOptions(include_columns=columns),
    )


def class_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    """Names of a ClassLabel column in the metadata that the Hugging Face `datasets` library writes."""
    written = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    feature = written.get("info", {}).get("features", {}).get(column, {})
    names = feature.get("names") if isinstance(feature, dict) else None
    return list(names) if names else None
