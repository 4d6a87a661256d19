"""View operations of tables."""

from __future__ import annotations

import numpy as np

from mmssl.data.skipped import try_read
from mmssl.data.source import Dataset
from mmssl.draws import Draws
from mmssl.modalities.tabular.table import Row
from mmssl.registry import register


@register("view/corrupt_columns")
class CorruptColumns:
    """Cells of some columns are taken from random training rows, each from another (SCARF, Bahri et al. 2022).

    int(ratio * columns) of the columns that are not constant are corrupted in each row, every row's own. The new cell
    is that of a training row drawn with replacement: the column's empirical marginal, missing cells included.

    Args:
        ratio: share of the columns, in [0, 1]; 0.6 in the paper.

    Raises:
        ValueError: for a ratio outside [0, 1]; when called, without training rows to draw from.
    """

    def __init__(self, *, ratio: float = 0.6) -> None:
        if not 0 <= ratio <= 1:
            hint = f"; did you mean {ratio / 100:g}?" if 1 < ratio <= 100 else ""
            raise ValueError(f"ratio is a share of the columns, in [0, 1] (got {ratio:g}){hint}")
        self.ratio = ratio
        self.rows, self.columns = np.empty(0, np.int64), np.empty(0, np.int64)

    def fit(self, dataset: Dataset) -> None:
        """Takes the readable rows of the train split to draw from, and the columns that differ among them."""
        found: list[Row] = [row for row in (try_read(dataset, i)[0] for i in range(len(dataset))) if row is not None]
        if not found:
            return
        self.rows = np.array([row.number for row in found])
        cells = found[0].table.values[self.rows]
        low, high = np.fmin.reduce(cells, 0), np.fmax.reduce(cells, 0)
        self.columns = np.flatnonzero(low < high)
        self.fitted(cells[:, self.columns])

    def fitted(self, cells: np.ndarray) -> None:
        """What more is learned from the training rows' cells of columns that differ, (rows, columns)."""

    def __call__(self, sample: Row, draws: Draws) -> Row:
        """The row, some of its cells taken from others."""
        if not len(self.rows):
            raise ValueError(
                "cells are drawn from the rows of the train split, but this view operation was not shown any: use it "
                "in `views`, not in `view`, or call fit(dataset) first"
            )
        chosen = self.chosen(sample, draws)
        given = draws.named("rows").integers(0, len(self.rows), len(chosen))[0].numpy()
        donors = np.full(len(sample.table.columns), sample.number) if sample.donors is None else sample.donors.copy()
        donors[chosen] = self.rows[given]
        return sample._replace(donors=donors)

    def chosen(self, sample: Row, draws: Draws) -> np.ndarray:
        """The columns that are corrupted, out of those that are not constant."""
        count = int(self.ratio * len(self.columns))
        return self.columns[draws.named("columns").order(len(self.columns))[0, :count].numpy()]
