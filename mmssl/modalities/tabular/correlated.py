"""View operations that corrupt columns which tell of one another together, and what is left of them in another view."""

from __future__ import annotations

import numpy as np

from mmssl.draws import Draws
from mmssl.modalities.tabular.table import Row
from mmssl.modalities.tabular.views import CorruptColumns
from mmssl.registry import register

_ROWS = 10_000  # rows that mutual information is estimated from


def mutual_information(cells: np.ndarray, bins: int) -> np.ndarray:
    """Mutual information of every pair of columns in nats, (columns, columns); the diagonal holds entropies.

    A column of more than `bins` distinct values is cut into `bins` parts of equally many rows; missing cells are one
    value more.

    Args:
        cells: (rows, columns) of numbers, NaN where missing.
        bins: largest number of parts.
    """
    parts = [_codes(column, bins) for column in cells.T]
    sizes = [int(codes.max()) + 1 for codes in parts]
    start = np.cumsum([0, *sizes[:-1]])
    flags = np.zeros((len(cells), sum(sizes)))
    flags[np.arange(len(cells))[:, None], np.stack(parts, 1) + start] = 1.0
    joint = flags.T @ flags / len(cells)
    alone = np.diag(joint)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(joint > 0, joint * np.log(joint / (alone[:, None] * alone)), 0.0)
    return np.add.reduceat(np.add.reduceat(terms, start, 0), start, 1)


def _codes(column: np.ndarray, bins: int) -> np.ndarray:
    """Parts of a column as numbers from 0 on, (rows,) int64."""
    held = np.unique(column[~np.isnan(column)])
    if len(held) > bins:
        edges = np.quantile(column[~np.isnan(column)], np.arange(1, bins) / bins)
        column = np.where(np.isnan(column), np.nan, np.searchsorted(edges, column, "right"))
    return np.unique(column, return_inverse=True)[1]


@register("view/corrupt_correlated")
class CorruptCorrelated(CorruptColumns):
    """Corrupts a column and those that tell most of it, so that it cannot be guessed (Yao et al. 2021).

    Correlated feature masking: a column is drawn uniformly from those that are not constant, and int(ratio * columns)
    of them are corrupted, it and those with the largest mutual information with it. Their cells are taken from random
    training rows.

    Args:
        ratio: share of the columns, in [0, 1]; a half in the paper.
        bins: parts into which columns of numbers are cut to estimate mutual information.

    Raises:
        ValueError: for a ratio outside [0, 1], or fewer than two bins; when called, without training rows.
    """

    def __init__(self, *, ratio: float = 0.5, bins: int = 10) -> None:
        super().__init__(ratio=ratio)
        if bins < 2:
            raise ValueError(f"bins is the number of parts of a column of numbers, from 2 on (got {bins})")
        self.bins, self.nearest = bins, np.empty((0, 0), np.int64)

    def fitted(self, cells: np.ndarray) -> None:
        """Orders the columns around each by what they tell of it."""
        if cells.shape[1]:
            told = mutual_information(cells[:_ROWS], self.bins)
            np.fill_diagonal(told, np.inf)  # a column comes first itself, also beside its copy
            self.nearest = np.argsort(-told, axis=1, kind="stable")

    def chosen(self, sample: Row, draws: Draws) -> np.ndarray:
        """A column drawn, and those nearest to it."""
        if not len(self.columns):
            return self.columns
        seed = int(draws.named("columns").integers(0, len(self.columns), 1))
        return self.columns[self.nearest[seed, : int(self.ratio * len(self.columns))]]


@register("view/corrupt_rest")
class CorruptRest(CorruptColumns):
    """Corrupts what another view has left, and puts back what it has corrupted: complements (Yao et al. 2021).

    It stands behind `view/of`, which begins a view with what the other has become. Constant columns stay as they are.
    """

    def __init__(self) -> None:
        super().__init__(ratio=1.0)

    def __call__(self, sample: Row, draws: Draws) -> Row:
        """The row, those cells taken from others that were its own.

        Raises:
            ValueError: without training rows, or where no other view was corrupted before.
        """
        if sample.donors is None:
            raise ValueError(
                "view/corrupt_rest corrupts what another view has left, but none was corrupted: begin the view with "
                "{_target_: view/of, name: a}, where a is a view with view/corrupt_correlated or view/corrupt_columns"
            )
        made = super().__call__(sample, draws)
        assert made.donors is not None
        return made._replace(donors=np.where(sample.donors == sample.number, made.donors, sample.number))

    def chosen(self, sample: Row, draws: Draws) -> np.ndarray:
        """The columns whose cells are the row's own."""
        assert sample.donors is not None
        return self.columns[sample.donors[self.columns] == sample.number]
