"""Tables in memory: what kind each column is of, and all cells as one matrix of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmssl.modalities.tabular.reading import compute

if TYPE_CHECKING:
    import pyarrow as pa

# A column of text of which more than this share of values differ names rows (an identifier, free text): no category.
_DISTINCT, _ENOUGH = 0.5, 20


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: its name.
        kind: `numeric` or `categorical`.
        categories: what the codes 0, 1, ... of a categorical column stand for, sorted.
        whole: whether all its numbers are whole by type, so that what is filled in is rounded.
    """

    name: str
    kind: str
    categories: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True, eq=False)
class Table:
    """All cells of the columns that are used.

    Args:
        columns: what the columns are.
        values: (rows, columns) float64: numbers, or codes of categories; NaN where a cell is missing.
        origin: where it came from, for messages.
        skipped: columns that are not used, and why.
        hidden: cells that pictures show as hidden, (rows, columns) bool; None for none.
    """

    columns: tuple[Column, ...]
    values: np.ndarray
    origin: str
    skipped: Mapping[str, str] = field(default_factory=dict)
    hidden: np.ndarray | None = None


class Row(NamedTuple):
    """A sample: one row of a table. It refers to the table and holds nothing of its own.

    Args:
        table: the whole table.
        number: which row.
        donors: for a row that was put together from several, the row each cell is taken from, (columns,) int64.
    """

    table: Table
    number: int
    donors: np.ndarray | None = None

    def value(self, place: int) -> float:
        """The cell of one of the table's columns."""
        return float(self.table.values[self.number if self.donors is None else self.donors[place], place])


def make(
    table: pa.Table, names: Sequence[str], categorical: Sequence[str], missing: Sequence[str], origin: str
) -> Table:
    """Finds the kind of each column and turns its cells into numbers.

    Text that is all numbers is numeric. Other text and truth values are categories, unless more than half of the values
    differ: then the column names rows and is left out. Dates count as numbers. Infinite numbers count as missing.

    Args:
        table: as read.
        names: the columns to use, in order.
        categorical: those of them that are categories whatever they look like.
        missing: texts that mean a missing cell.
        origin: for messages.

    Raises:
        ValueError: for a column that is numbers but for a few texts, naming them and the remedy.
    """
    columns, values, skipped = [], [], {}
    for name in names:
        made = _column(name, table[name], name in categorical, missing, origin)
        if isinstance(made, str):
            skipped[name] = made
        else:
            columns.append(made[0])
            values.append(made[1])
    matrix = np.stack(values, 1) if values else np.empty((table.num_rows, 0))
    return Table(tuple(columns), matrix, origin, skipped)


def _column(
    name: str, cells: pa.ChunkedArray, forced: bool, missing: Sequence[str], origin: str
) -> tuple[Column, np.ndarray] | str:
    """Kind and numbers of a column, or why it is not used."""
    import pyarrow as pa

    pc = compute()

    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    kind = cells.type
    if pa.types.is_null(kind):
        return "all missing"
    if is_text(cells):
        cells = without_missing(cells, missing)
        if cells.null_count == len(cells):
            return "all missing"
        number = None if forced else _numbers(name, cells, origin)
        return _categories(name, cells, forced) if number is None else number
    if pa.types.is_boolean(kind) or (forced and (pa.types.is_integer(kind) or pa.types.is_floating(kind))):
        return _categories(name, cells.cast(pa.string()), True)
    if pa.types.is_temporal(kind):
        width = pa.int32() if pa.types.is_date32(kind) or pa.types.is_time32(kind) else pa.int64()
        return Column(name, "numeric", whole=True), _floats(cells.cast(width))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        whole = pa.types.is_integer(kind)
        return Column(name, "numeric", whole=whole), _floats(pc.cast(cells, pa.float64(), safe=False))
    return f"cells of type {kind} are neither numbers nor categories"


def is_text(cells: pa.ChunkedArray) -> bool:
    """Whether a column, or its dictionary, holds text."""
    import pyarrow as pa

    kind = cells.type.value_type if pa.types.is_dictionary(cells.type) else cells.type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def without_missing(cells: pa.ChunkedArray, missing: Sequence[str]) -> pa.ChunkedArray:
    """Text without spaces around it, and null for what means a missing cell."""
    import pyarrow as pa

    pc = compute()

    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    trimmed = pc.utf8_trim_whitespace(cells)
    absent = pc.is_in(trimmed, value_set=pa.array([*missing, ""], trimmed.type))
    return pc.if_else(absent, pa.scalar(None, trimmed.type), trimmed)


def _numbers(name: str, cells: pa.ChunkedArray, origin: str) -> tuple[Column, np.ndarray] | None:
    """Text as numbers, None where most of it is none."""
    import pyarrow as pa

    pc = compute()

    for kind in (pa.int64(), pa.float64()):
        try:
            return Column(name, "numeric", whole=kind == pa.int64()), _floats(cells.cast(kind))
        except pa.ArrowInvalid:
            continue
    numeric = pc.match_substring_regex(cells, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity)$")
    others = pc.filter(cells, pc.invert(numeric))  # nulls are filtered out too
    share = 1 - len(others) / (len(cells) - cells.null_count)
    if share < 0.9:
        return None
    row = pc.index(pc.fill_null(pc.invert(numeric), False), True).as_py()
    words = sorted(set(others.to_pylist()))
    raise ValueError(
        f"column {name!r} of {origin} holds numbers, but {len(others)} of its cells do not: "
        f"{', '.join(map(repr, words[:5]))}{', ...' if len(words) > 5 else ''}, first in row {row}. Repair them; or, "
        "if they mean a missing cell, add them to data.source.missing; or list the column in data.source.categorical"
    )


def _floats(cells: pa.ChunkedArray) -> np.ndarray:
    """Numbers as float64, NaN where missing or not finite."""
    import pyarrow as pa

    pc = compute()

    values = pc.fill_null(pc.cast(cells, pa.float64(), safe=False), float("nan")).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def _categories(name: str, cells: pa.ChunkedArray, forced: bool) -> tuple[Column, np.ndarray] | str:
    """Codes in the sorted order of the distinct texts; numbers are sorted as such."""
    pc = compute()

    held = [str(value) for value in pc.unique(cells).to_pylist() if value is not None]
    rows = len(cells) - cells.null_count
    if not held:
        return "all missing"
    if not forced and len(held) > _ENOUGH and len(held) > _DISTINCT * rows:
        return f"{len(held)} of its {rows} texts differ, so that it names rows (data.source.categorical keeps it)"
    ordered = sorted(held, key=_as_number)
    encoded = pc.dictionary_encode(cells).combine_chunks()
    if hasattr(encoded, "chunks"):  # a chunked array that could not be joined
        encoded = encoded.chunk(0)
    place = {text: code for code, text in enumerate(ordered)}
    code = np.array([place[str(text)] for text in encoded.dictionary.to_pylist()], dtype=np.float64)
    index = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return Column(name, "categorical", tuple(ordered)), np.where(index < 0, np.nan, code[index])


def _as_number(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text
