"""What generic code knows of tables: how rows are joined, measured, encoded and shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.modalities.tabular import holes, imputation, pictures
from mmssl.modalities.tabular.encoding import Cells, Encoding, announce, fit
from mmssl.modalities.tabular.reading import READABLE
from mmssl.modalities.tabular.table import Row, Table
from mmssl.registry import register

# Encoded tables that are kept: those of a run's splits, and a few of pictures.
_KEPT = 4
# Share of the cells that is hidden to score imputation (ReMasker).
_HIDDEN = 0.3


@register("modality/tabular")
class Tabular:
    """The modality of tables. A sample is a `Row`: a table in memory and the number of a row in it."""

    name = "tabular"
    extensions = READABLE
    # Ranges, categories and constant columns are those of all rows, not of some.
    measured = 10**12

    def __init__(self) -> None:
        self._encoding: Encoding | None = None
        self._encoded: list[tuple[Table, np.ndarray, np.ndarray]] = []

    def decode(self, blob: bytes, channels: int | None = None) -> Row:
        """Refuses: a table is one file, not a file for each sample.

        Raises:
            ValueError: always, with the source to use.
        """
        raise ValueError("a file is a whole table here, not one sample; use data=table data.root=FILE")

    def convert(self, sample: Row, channels: int) -> Row:
        """Refuses: rows have no channels.

        Raises:
            ValueError: always.
        """
        raise ValueError("data.channels has no meaning for tables; leave it null")

    def facts(self, samples: Iterable[Row]) -> dict[str, Any]:
        """Fits the encoding on rows of one table; see `encoding.fit` for what is returned.

        Raises:
            ValueError: where there is no row, or fewer than two columns are of use.
        """
        rows = list(samples)
        if not rows:
            raise ValueError("data.source gave no readable row to measure; check data.root")
        table = rows[0].table
        assert all(row.table is table for row in rows), "the splits of a source share one table"
        facts = fit(table, np.array([row.number for row in rows]))
        announce(facts["dropped"], table.origin)
        return facts

    def use(self, facts: Mapping[str, Any]) -> None:
        """Takes the fitted encoding, also that of another run's training data."""
        self._encoding, self._encoded = Encoding(facts), []

    @property
    def encoding(self) -> Encoding:
        """The encoding in use."""
        assert self._encoding is not None, "use(facts) comes before the first batch"
        return self._encoding

    def encoded(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """A whole table encoded, values (n, c) float32 and given (n, c) bool; kept for the next batch."""
        for known, values, given in self._encoded:
            if known is table:
                return values, given
        values, given = self.encoding.encode(table)
        self._encoded = [(table, values, given), *self._encoded[: _KEPT - 1]]
        return values, given

    def collate(self, samples: Sequence[Row]) -> Cells:
        """Joins rows to a batch: one look-up in the encoded table."""
        alike = all(row.table is samples[0].table for row in samples)
        parts = [self._looked_up(rows) for rows in ([samples] if alike else [[row] for row in samples])]
        values, given = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        # decided here, where it costs nothing, so that no part has to ask the device
        return Cells(torch.from_numpy(values), None if given.all() else torch.from_numpy(given))

    def _looked_up(self, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        """The encoded cells of rows of one table."""
        table = rows[0].table
        number = np.fromiter((row.number for row in rows), np.int64, len(rows))
        values, given = self.encoded(table)
        if all(row.donors is None for row in rows):
            return values[number], given[number]
        place = {column.name: i for i, column in enumerate(table.columns)}
        # a column that this table does not have is missing in every row
        taken = np.array([place.get(name, -1) for name in self.encoding.names])
        whole = np.broadcast_to(number[:, None], (len(rows), len(place)))
        cells = np.stack([own if row.donors is None else row.donors for own, row in zip(whole, rows, strict=True)])
        index = np.where(taken < 0, number[:, None], cells[:, taken])
        return values[index, np.arange(len(taken))], given[index, np.arange(len(taken))]

    def baseline(self, sample: Row) -> Tensor:
        """The raw-input baseline: standardised numbers and one-hot categories, (d,) float32.

        A missing number is the mean; columns with missing cells in training add a column that says so. A missing
        category is all zeros.
        """
        values, given = (array[sample.number] for array in self.encoded(sample.table))
        units = self.encoding.decode(values[None])[0]
        parts: list[float] = []
        for value, known, column in zip(units, given, self.encoding.fitted, strict=True):
            if column["kind"] == "categorical":
                hot = [0.0] * len(column["categories"])
                if known:
                    hot[int(value)] = 1.0
                parts += hot
                continue
            parts.append((value - column["mean"]) / column["std"] if known else 0.0)
            if column["missing"] > 0:
                parts.append(float(not known))
        return torch.tensor(parts, dtype=torch.float32)

    def cells(self, sample: Row) -> Tensor:
        """The row as trees read it: numbers in the units of the table, codes of categories, NaN where missing, (c,)."""
        values, given = (array[sample.number] for array in self.encoded(sample.table))
        return torch.from_numpy(np.where(given, self.encoding.decode(values[None])[0], np.nan))

    @property
    def categorical(self) -> Tensor:
        """Which of the cells are codes of categories, (c,) bool."""
        return torch.tensor([column["kind"] == "categorical" for column in self.encoding.fitted])

    def picture(self, sample: Row) -> np.ndarray:
        """A row as text, one line for each column, (h, w, 3) uint8; hidden cells are grey, missing ones empty."""
        return pictures.draw(sample)

    def holes(self, module: Any, dataset: Any, index: np.ndarray) -> dict[str, np.ndarray]:
        """Three of ten cells of some rows hidden, and what a run puts there; see `holes.fill`."""
        return holes.fill(self, module, dataset.table, dataset.rows[index], _HIDDEN, 0)

    def typical(self, dataset: Any) -> np.ndarray:
        """What is usual in each column of a data set, (columns,); see `holes.typical`."""
        return holes.typical(self, dataset.table, dataset.rows)

    def impute(self, module: Any, data: Any, out: Path) -> dict[str, Any]:
        """Fills the missing cells of the data's tables with a trained run; see `imputation.impute`."""
        return imputation.impute(self, module, data, out)
