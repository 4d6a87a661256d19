"""Files to Arrow tables: CSV (plain or gzipped, any delimiter) and Parquet, and which file holds which split.

A CSV comes as text, cell by cell as the file has it, so that a table can be written again with nothing else changed.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl.data.source import SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

READABLE = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
# What an empty cell looks like, besides nothing at all. Compared without the spaces around it.
MISSING = (
    "", "?", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NAN", "-nan", "-NaN", "null", "NULL", "Null", "None", "none",
    "<NA>", "NaT",
)  # fmt: skip


def compute() -> Any:
    """Arrow's functions; typed as anything, because they are made at import and no checker knows them."""
    import pyarrow.compute

    return pyarrow.compute


def files_by_split(root: Path) -> dict[str, Path]:
    """The table of each split: one file is train, in a folder the files' names say which they are.

    Raises:
        ValueError: where there is no table, no train table, or two tables of one split.
    """
    if root.is_file():
        if not root.name.endswith(READABLE):
            raise ValueError(f"data.root={root}: a table has to be one of {', '.join(READABLE)}")
        return {"train": root}
    tables = sorted(file for file in root.iterdir() if file.name.endswith(READABLE) and not file.name.startswith("."))
    found: dict[str, Path] = {}
    for file in tables:
        split = SPLITS.get(file.name.split(".")[0].split("-")[0].lower())
        if split in found:
            raise ValueError(f"data.root={root} has two tables of the {split} split: {found[split].name}, {file.name}")
        if split is not None:
            found[split] = file
    if not found and len(tables) == 1:
        return {"train": tables[0]}
    if "train" in found:
        return {split: found[split] for split in ("train", "val", "test") if split in found}
    names = ", ".join(file.name for file in (tables or sorted(root.iterdir()))[:5]) or "nothing"
    if tables:
        raise ValueError(
            f"data.root={root} holds {names}, none of which is named train; set data.root to one of these files, or "
            "name them train.*, val.* and test.*"
        )
    raise ValueError(f"data.root={root} holds no table ({', '.join(READABLE)}), only {names}")


def read(file: Path) -> pa.Table:
    """The table in a file; of a CSV every column is text.

    Raises:
        ValueError: for a file that cannot be read, has no rows, or two columns of one name; it names the place.
    """
    import pyarrow as pa

    try:
        table = _parquet(file) if file.suffix == ".parquet" else _csv(file)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"data.root: {file} cannot be read as a table: {str(error).splitlines()[0]}") from error
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise ValueError(f"data.root: {file} has two columns called {twice[0]!r}; give every column its own name")
    if table.num_rows == 0:
        raise ValueError(f"data.root: {file} has no rows")
    return table


def _parquet(file: Path) -> pa.Table:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(file)


def _csv(file: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv

    blob = file.read_bytes()
    if file.suffix == ".gz":
        blob = gzip.decompress(blob)
    blob = blob.removeprefix(b"\xef\xbb\xbf")  # the mark that spreadsheets put in front
    header = blob.partition(b"\n")[0].decode("utf-8").rstrip("\r")
    if not header.strip():
        raise ValueError(f"data.root: {file} has no header: its first line is empty")
    delimiter = _delimiter(header, file)
    names = next(csv.reader([header], delimiter=delimiter))
    wrong: list[Any] = []

    def note(row: Any) -> str:
        wrong.append(row)
        return "skip"

    table = pyarrow.csv.read_csv(
        io.BytesIO(blob),
        read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1, use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note, ignore_empty_lines=len(names) > 1
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"data.root: {file} has {len(wrong)} rows that do not fit its header of {len(names)} columns; the first is "
            f"line {first.number}, with {first.actual_columns}: {first.text[:80]!r}. Repair or remove them"
        )
    return table


def _delimiter(header: str, file: Path) -> str:
    """The delimiter that the header has most of; a tab in a .tsv."""
    if file.name.endswith((".tsv", ".tsv.gz")):
        return "\t"
    counts = {mark: header.count(mark) for mark in (",", ";", "\t", "|")}
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else ","


def write(path: Path, table: pa.Table) -> Path:
    """Writes a table as CSV (`.csv`, `.tsv`) or Parquet; readers see the old file or the whole new one.

    Text goes into a CSV as it is, missing cells stay empty; only what needs quotes is quoted.

    Raises:
        ValueError: for another ending.
    """
    import os
    import tempfile

    import pyarrow.parquet

    if path.suffix not in (".csv", ".tsv", ".parquet"):
        raise ValueError(f"out={path}: a table is written to .csv, .tsv or .parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(table, temporary)
        else:
            _write_csv(Path(temporary), table, "\t" if path.suffix == ".tsv" else ",")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _write_csv(path: Path, table: pa.Table, delimiter: str, chunk: int = 65536) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        # the standard library's writer: Arrow's quotes every text
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(table.column_names)
        for part in table.to_batches(max_chunksize=chunk):
            columns = [column.to_pylist() for column in part.columns]
            writer.writerows(zip(*columns, strict=True))
