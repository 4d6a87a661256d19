"""Parquet files whose rows are samples: a column of bytes, read by row groups."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mmssl.data.columns import LABELS, asked_column, class_names
from mmssl.data.indexing import Asked, Index
from mmssl.data.places import Shard
from mmssl.data.ranges import Ranges

if TYPE_CHECKING:
    import pyarrow as pa

_OPEN = 16  # files whose footers a process keeps


def scan(file: BinaryIO, shard: Shard, asked: Asked) -> Index:
    """The index of a Parquet file. A place is the row group, the row in it, and nothing.

    Raises:
        ValueError: where the file is no Parquet file, or has no column of bytes, or several.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{shard.url} is no Parquet file ({error}); write it again") from error
    schema = opened.schema_arrow
    column = _column(schema, shard, asked.column)
    label = asked_column(asked.label, "label", schema, Path(shard.path))
    label = label or next((name for name in LABELS if name in schema.names and name != column), None)
    rows = opened.metadata.num_rows
    kind = schema.field(column).type
    names = pa.array([str(row) for row in range(rows)])
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        said = opened.read([f"{column}.path"])[column].combine_chunks()
        names = pa.array([path or str(row) for row, path in enumerate(said.field("path").to_pylist())], pa.string())
    labels = pa.nulls(rows) if label is None else pa.concat_arrays(opened.read([label])[label].chunks or [pa.nulls(0)])
    sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
    group = np.repeat(np.arange(len(sizes)), sizes)
    row = np.arange(rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = np.stack([group, row, np.zeros(rows, np.int64)], 1).astype(np.int64)
    return Index(names, places, labels, sizes, class_names(schema.metadata, label) if label else None)


def _column(schema: pa.Schema, shard: Shard, asked: str | None) -> str:
    """The column of samples: the one asked for, else the only one that holds bytes.

    Raises:
        ValueError: where there is none, or several, naming the columns.
    """
    import pyarrow as pa

    def holds(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [field.name for field in schema if holds(field.type)]
    if asked_column(asked, "column", schema, Path(shard.path)) in found:
        return str(asked)
    if asked is None and len(found) == 1:
        return found[0]
    if asked is None and found:
        raise ValueError(
            f"data.source.column: {shard.url} has several columns of bytes; name one of {', '.join(found)}"
        )
    raise ValueError(
        f"data.source.column: {asked or 'no column'} of {shard.url} holds bytes; its columns are: "
        f"{', '.join(schema.names)}. A table of paths is read by data=manifest, one of numbers by data=table"
    )


class Groups:
    """Reads rows out of Parquet shards, and keeps the row groups that were read last.

    Args:
        ranges: opens the files.
        column: the column of samples; None for the only one of bytes.
        rows: about how many rows are kept.
    """

    def __init__(self, ranges: Ranges, column: str | None, rows: int) -> None:
        self.ranges, self.column, self.rows = ranges, column, rows
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._kept: OrderedDict[tuple[str, int], pa.Array] = OrderedDict()

    def read(self, shard: Shard, place: tuple[int, int, int]) -> bytes:
        """The bytes in one row.

        Raises:
            ValueError: where the row holds none.
        """
        with self._lock:
            cells = self._group(shard, place[0])
        cell = cells[place[1]].as_py() if place[1] < len(cells) else None
        if cell is None:
            raise ValueError("the row holds no bytes")
        return cell

    def _group(self, shard: Shard, group: int) -> pa.Array:
        """The samples of a row group, the one kept longest given up where there are too many."""
        import pyarrow as pa

        key = (shard.url, group)
        if key not in self._kept:
            file = self._file(shard)
            schema = file.schema_arrow
            column = _column(schema, shard, self.column)
            inner = pa.types.is_struct(schema.field(column).type)
            cells = file.read_row_group(group, columns=[f"{column}.bytes" if inner else column])[column]
            cells = pa.concat_arrays(cells.chunks)
            self._kept[key] = cells.field("bytes") if inner else cells
        self._kept.move_to_end(key)
        while (
            len(self._kept) > 1
            and sum(map(len, self._kept.values())) - len(next(iter(self._kept.values()))) >= self.rows
        ):
            self._kept.popitem(last=False)
        return self._kept[key]

    def _file(self, shard: Shard) -> Any:
        import pyarrow.parquet as pq

        if shard.url not in self._files:
            path = self.ranges.path(shard)
            self._files[shard.url] = (
                pq.ParquetFile(path, memory_map=True) if path else pq.ParquetFile(self.ranges.open(shard))
            )
            while len(self._files) > _OPEN:
                self._files.popitem(last=False)
        self._files.move_to_end(shard.url)
        return self._files[shard.url]

    def __getstate__(self) -> dict[str, Any]:
        """What another process starts from: nothing is open."""
        return {"ranges": self.ranges, "column": self.column, "rows": self.rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begins anew."""
        self.__dict__.update(state)
        self._begin()
