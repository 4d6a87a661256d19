"""Which rows belong to which split."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmssl.data.source import SPLITS, digest
from mmssl.modalities.tabular.table import Table
from mmssl.registry import suggest

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)


def joined(tables: Mapping[str, pa.Table], files: Mapping[str, Path]) -> pa.Table:
    """The tables of all splits as one; a column that one of them lacks is missing there, and that is said."""
    import pyarrow as pa

    first = next(iter(tables.values()))
    for split, table in tables.items():
        lacking = [name for name in first.column_names if name not in table.column_names]
        if lacking:
            names = ", ".join(map(repr, lacking))
            _log.warning("%s has no column %s, so its cells count as missing", files[split], names)
    try:
        return pa.concat_tables(tables.values(), promote_options="permissive")
    except pa.ArrowException as error:
        names = ", ".join(str(file) for file in files.values())
        raise ValueError(f"data.root: {names} do not fit together: {str(error).splitlines()[0]}") from error


def listed(file: Path, count: int) -> np.ndarray:
    """Flags of the rows whose numbers a text file lists."""
    try:
        rows = [int(line) for line in file.read_text().split()]
    except (OSError, ValueError) as error:
        raise ValueError(f"data.source.test_rows: {file} has to list row numbers, one a line ({error})") from error
    wrong = [row for row in rows if not 0 <= row < count]
    if wrong or not rows:
        what = f"names row {wrong[0]}" if wrong else "is empty"
        raise ValueError(f"data.source.test_rows: {file} {what}, but the table has rows 0 to {count - 1}")
    test = np.zeros(count, dtype=bool)
    test[rows] = True
    if test.all():
        raise ValueError(f"data.source.test_rows: {file} names all {count} rows, so that none is left to train on")
    return test


def named(values: Sequence[object], column: str) -> dict[str, np.ndarray]:
    """The rows of each split that a column names."""
    words = np.array([str(value).strip().lower() for value in values])
    unknown = sorted(set(words.tolist()) - set(SPLITS))
    if unknown:
        raise ValueError(
            f"data.source.split: column {column!r} has {unknown[0]!r}{suggest(unknown[0], SPLITS)}; its cells have to "
            "be train, val or test"
        )
    split_of = np.array([SPLITS[word] for word in words.tolist()])
    found = {name: np.flatnonzero(split_of == name) for name in ("train", "val", "test") if (split_of == name).any()}
    if "train" not in found:
        raise ValueError(f"data.source.split: column {column!r} names no row train, only {', '.join(found)}")
    return found


def held_out(table: Table, share: float) -> dict[str, np.ndarray]:
    """Train, and the given share of the rows as test: the same on every machine and for every seed and order.

    Rows are ranked by a digest of their cells, so that equal rows stay together and none is in both splits.
    """
    count = len(table.values)
    if share == 0 or count < 2:
        return {"train": np.arange(count)}
    texts = [digest([row.tobytes()])[:16] for row in np.ascontiguousarray(table.values)]
    names, group = np.unique(texts, return_inverse=True)
    sizes = np.bincount(group, minlength=len(names))
    chosen = np.cumsum(sizes) <= max(1, round(share * count))  # the digests are in random order already
    test = chosen[group]
    if not test.any():
        return {"train": np.arange(count)}
    return {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
