"""The fitted encoding of a table: facts of its columns, tables to numbers in [0, 1] and back.

It is fitted on the training rows, lies in a run's facts as plain values, and so in every checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.modalities.tabular.table import Column, Row, Table
from mmssl.registry import suggest

_log = logging.getLogger(__name__)
# Added to the range of every column, so that nothing is divided by zero (ReMasker).
EPS = 1e-8


@dataclass(frozen=True)
class Cells:
    """The cells of a batch, as a tokenizer reads them.

    Args:
        values: (b, c) float32: numbers scaled by the range of their column in the training data, categories by their
            place among them; 0 where a cell is missing.
        given: (b, c) bool, False where a cell is missing; None where the whole batch is given.
    """

    values: Tensor
    given: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> Cells:
        """The cells moved, as `Tensor.to` does; flags stay flags."""
        given = self.given
        if given is not None:
            given = given.to(*args, **kwargs).to(torch.bool)
        return Cells(self.values.to(*args, **kwargs), given)

    def pin_memory(self) -> Cells:
        """The cells in page-locked memory."""
        return Cells(self.values.pin_memory(), None if self.given is None else self.given.pin_memory())


def fit(table: Table, rows: np.ndarray) -> dict[str, Any]:
    """Facts of the columns over some rows, and which columns are not used.

    Args:
        table: the table.
        rows: numbers of the rows that are measured.

    Returns:
        `columns`: for each used column `name`, `kind`, `min`, `max`, `mean`, `std`, `missing` (share), `whole`, and
        `categories` (of the measured rows; values then are their codes). `dropped`: `name` and `why` of each column
        that is not used, with its only `value` where it is constant. `rows`: how many were measured.

    Raises:
        ValueError: where fewer than two columns are of use.
    """
    values = table.values[rows]
    columns: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = [{"name": name, "why": why} for name, why in table.skipped.items()]
    for place, column in enumerate(table.columns):
        cells = values[:, place]
        seen = cells[~np.isnan(cells)]
        categories = None
        if column.kind == "categorical":
            codes, seen = np.unique(seen, return_inverse=True)
            categories = [column.categories[int(code)] for code in codes]
        if not len(seen):
            dropped.append({"name": column.name, "why": "all missing"})
        elif seen.min() == seen.max():
            only = categories[0] if categories else float(seen[0])
            dropped.append({"name": column.name, "why": "constant", "value": only})
        else:
            columns.append(
                {
                    "name": column.name, "kind": column.kind, "whole": column.whole, "categories": categories,
                    "min": float(seen.min()), "max": float(seen.max()), "mean": float(seen.mean()),
                    "std": float(seen.std()), "missing": float(1 - len(seen) / len(cells)),
                }
            )  # fmt: skip
    if len(columns) < 2:
        why = "; ".join(f"{entry['name']!r}: {entry['why']}" for entry in dropped) or "there are no others"
        raise ValueError(
            f"data.root: {table.origin} has {len(columns)} columns that can be learned from, and two are needed ({why})"
        )
    return {"columns": columns, "dropped": dropped, "rows": len(rows)}


class Encoding:
    """A fitted encoding.

    Args:
        facts: what `fit` found.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.fitted: list[Mapping[str, Any]] = list(facts["columns"])
        self.dropped: list[Mapping[str, Any]] = list(facts.get("dropped", ()))
        self.names = [column["name"] for column in self.fitted]
        self.low = np.array([column["min"] for column in self.fitted])
        self.scale = np.array([column["max"] - column["min"] for column in self.fitted]) + EPS

    @property
    def columns(self) -> tuple[Column, ...]:
        """The used columns, with the categories of the training data."""
        return tuple(
            Column(column["name"], column["kind"], tuple(column["categories"] or ()), bool(column["whole"]))
            for column in self.fitted
        )

    def encode(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """All rows of a table as numbers.

        Categories that the training data do not have, and columns that the table has not, count as missing; columns
        that the training data do not have are not read. Each is said once.

        Returns:
            values (rows, columns) float32, 0 where missing, and given (rows, columns) bool.

        Raises:
            ValueError: where a column of numbers holds text now.
        """
        place = {column.name: i for i, column in enumerate(table.columns)}
        values = np.full((len(table.values), len(self.fitted)), np.nan)
        for j, column in enumerate(self.columns):
            if column.name in place:
                own = table.columns[place[column.name]]
                values[:, j] = self._as_fitted(column, own, table.values[:, place[column.name]], table.origin)
        self._report(table, place)
        given = ~np.isnan(values)
        return np.where(given, (values - self.low) / self.scale, 0.0).astype(np.float32), given

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Scaled values back in the units of the table: numbers, or the nearest category's code, (n, c) float64."""
        found = values.astype(np.float64) * self.scale + self.low
        for j, column in enumerate(self.fitted):
            if column["kind"] == "categorical":
                found[:, j] = np.clip(np.rint(found[:, j]), column["min"], column["max"])
        return found

    def _as_fitted(self, column: Column, own: Column, cells: np.ndarray, origin: str) -> np.ndarray:
        """The cells of one column of another table, as numbers or codes of the training data."""
        if column.kind == "numeric":
            if own.kind == "categorical":
                raise ValueError(
                    f"column {column.name!r} held numbers in the training data, but {origin} has {own.categories[0]!r} "
                    "in it; repair the column, or train again with it in data.source.categorical"
                )
            return cells
        code = {text: float(i) for i, text in enumerate(column.categories)}
        if own.kind == "categorical":
            texts, index = list(own.categories), cells
        else:  # all of its categories look like numbers here
            held = np.unique(cells[~np.isnan(cells)])
            texts = [_plain(value) for value in held]
            index = np.where(np.isnan(cells), np.nan, np.searchsorted(held, np.nan_to_num(cells)))
        table = np.array([code.get(text, np.nan) for text in texts])
        held_here = ~np.isnan(index)
        found = np.full(len(cells), np.nan)
        found[held_here] = table[index[held_here].astype(int)]
        unseen = held_here & np.isnan(found)
        if unseen.any():
            new = sorted({texts[int(i)] for i in index[unseen]})
            _log.warning(
                "%s: %d cells of column %r hold categories that the training data do not have (%s), so they count as "
                "missing",
                origin, int(unseen.sum()), column.name, _some(new),
            )  # fmt: skip
        return found

    def _report(self, table: Table, place: Mapping[str, int]) -> None:
        """Says which columns of the training data are missing, and which of the table are not read."""
        lacking = [name for name in self.names if name not in place and name not in table.skipped]
        empty = [name for name in self.names if name in table.skipped]
        if len(lacking) + len(empty) == len(self.names):
            raise ValueError(
                f"data.root: {table.origin} has none of the columns that the encoder was trained on "
                f"({_some(self.names)}){suggest(self.names[0], list(place))}"
            )
        if lacking:
            _log.warning("%s has no column %s, so its cells count as missing", table.origin, _some(lacking))
        for name in empty:
            _log.warning(
                "%s: column %r is not read (%s), so its cells count as missing", table.origin, name, table.skipped[name]
            )
        known = {*self.names, *(entry["name"] for entry in self.dropped)}
        extra = [name for name in place if name not in known]
        if extra:
            _log.warning("%s: the training data do not have column %s, so it is not read", table.origin, _some(extra))


def restored(encoding: Encoding, values: Tensor, given: Tensor | None, shown: Tensor | None) -> list[Row]:
    """Rows made of encoded values, in the units of the table, for pictures.

    Args:
        encoding: the fitted encoding.
        values: (b, c) in [0, 1].
        given: (b, c) bool, False for missing cells; None for none.
        shown: (b, c) bool, False for hidden cells; None for none.
    """
    cells = encoding.decode(values.detach().float().cpu().numpy())
    if given is not None:
        cells[~given.cpu().numpy()] = np.nan
    hidden = None if shown is None else ~shown.cpu().numpy()
    table = Table(encoding.columns, cells, "restored", hidden=hidden)
    return [Row(table, i) for i in range(len(cells))]


def announce(dropped: Sequence[Mapping[str, Any]], origin: str) -> None:
    """Says once which columns are not used, and why."""
    for entry in dropped:
        _log.warning("%s: column %r is left out: %s", origin, entry["name"], entry["why"])


def _plain(value: float) -> str:
    """A number as the text that a category of numbers has."""
    return str(int(value)) if value.is_integer() else str(value)


def _some(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(map(repr, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")
