"""Sources of tables: the user's own, sets by name, and the sample shipped with mmssl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.source import Adapter, Dataset, digest, find_root
from mmssl.modalities.tabular import labels, splits
from mmssl.modalities.tabular.reading import MISSING, files_by_split, read
from mmssl.modalities.tabular.table import Row, Table, make
from mmssl.registry import register, suggest

if TYPE_CHECKING:
    import pyarrow as pa


class Original:
    """The files of a source as they were read, so that a table can be written again.

    Args:
        files: the files, one behind the other as in the table.
        table: their rows and all their columns; of CSV files every cell as text.
        missing: texts that mean a missing cell.
    """

    def __init__(self, files: Sequence[Path], table: pa.Table, missing: Sequence[str]) -> None:
        self.files, self.table, self.missing = files, table, tuple(missing)


class Rows:
    """Some rows of a table, as a data set.

    Args:
        table: the whole table, shared by all splits.
        rows: which rows, ascending int64.
        labels: (n,) int64 with -1 where there is none, or None.
        classes: names of the labels.
        original: the files it was read from.
        targets: the labels as quantities, (n,) float64 with NaN where there is none; None where they are no numbers.
    """

    in_memory = True

    def __init__(
        self,
        table: Table,
        rows: np.ndarray,
        labels: Tensor | None,
        classes: list[str] | None,
        original: Original,
        targets: Tensor | None = None,
    ) -> None:
        self.table, self.rows, self.labels, self.classes, self.original = table, rows, labels, classes, original
        self.targets = targets
        self.unreadable: Any = np.isnan(table.values[rows]).all(1)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int) -> Row:
        """The i-th row.

        Raises:
            ValueError: where none of its cells is given.
        """
        if self.unreadable[i]:
            raise ValueError("all cells of the row are missing")
        return Row(self.table, int(self.rows[i]))

    def name(self, i: int) -> str:
        """The table and the number of the row, from 0 on."""
        return f"{self.table.origin}:{int(self.rows[i])}"

    def fingerprint(self) -> str:
        """Digest of the columns, the cells and the labels of these rows."""
        columns = [f"{column.name}\0{column.kind}\0" + "\0".join(column.categories) for column in self.table.columns]
        labels = b"" if self.labels is None else self.labels.numpy().tobytes()
        return digest([*columns, np.ascontiguousarray(self.table.values[self.rows]).data, labels])

    def cache_key(self) -> None:
        """Nothing: the rows are in memory already."""


@register("source/table")
class Tables:
    """A table of samples: one row each, CSV (`.csv`, `.tsv`, `.gz`) or Parquet.

    Columns of numbers and of categories are told apart; empty cells, `NaN`, `null`, `NA` and `?` are missing. What is
    of no use (one value only, nothing but missing cells, text that names rows) is left out and listed. Splits come from
    a column of splits, a folder with `train.*` and `test.*`, or a file of test rows; else a share of the rows is held
    out, chosen by their content.

    Args:
        adapter: the modality.
        root: a table, or a folder of tables named by their split.
        label: the column of labels, no feature then; null takes `label`, `labels`, `class` or `target` if there is one;
            false takes none. Labels that are no classes (numbers with a fraction, or of more than 100 values) are
            quantities, for `protocol/regression`.
        split: the column that names each row's split, no feature; null takes `split` if there is one.
        test_rows: a text file with the numbers of the rows of the test split, from 0 on, one a line; next to the table.
        test_share: share of the rows held out as test where nothing else says so; 0 trains on all.
        columns: the columns to use as features, null for all others.
        ignore: columns that are not used.
        categorical: columns that are categories although they look like numbers.
        missing: texts that mean a missing cell; null for the usual ones.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        root: str,
        label: str | bool | None = None,
        split: str | None = None,
        test_rows: str | None = None,
        test_share: float = 0.1,
        columns: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        categorical: Sequence[str] = (),
        missing: Sequence[str] | None = None,
    ) -> None:
        if not 0 <= test_share < 1:
            raise ValueError(f"data.source.test_share has to be at least 0 and below 1 (got {test_share})")
        self.adapter, self.root, self.label, self.split = adapter, root, label, split
        self.test_rows, self.test_share = test_rows, test_share
        self.columns, self.ignore, self.categorical = columns, list(ignore), list(categorical)
        self.missing = list(MISSING if missing is None else missing)

    def splits(self) -> dict[str, Dataset]:
        """Data sets by split, all of one table.

        Raises:
            ValueError: for missing files or columns, for a label among the features, and for splits or rows that cannot
                be understood.
        """
        files = files_by_split(find_root(self.root))
        tables = {split: read(file) for split, file in files.items()}
        whole, origin = splits.joined(tables, files), _origin(files)
        label, split = self._special(whole.column_names, origin)
        table = make(whole, self._features(whole.column_names, label, split), self.categorical, self.missing, origin)
        if not table.columns:
            raise ValueError(f"data.root: {origin} has no column that can be used: {dict(table.skipped)}")
        found, classes = labels.codes(whole[label], label, self.missing, origin) if label else (None, None)
        numbers = labels.quantities(whole[label], label, self.missing, origin) if label else None
        original = Original(list(files.values()), whole, self.missing)
        places = self._places(tables, whole, split, table, files)
        return {
            name: Rows(table, rows, _at(found, rows), classes, original, _at(numbers, rows))
            for name, rows in places.items()
        }

    def _special(self, names: Sequence[str], origin: str) -> tuple[str | None, str | None]:
        """The columns of labels and of splits."""
        label = self.label
        for key, asked in (("label", label), ("split", self.split)):
            if isinstance(asked, str) and asked not in names:
                raise _unknown(key, asked, names, origin)
        if label is None or label is True:
            label = next((name for name in labels.NAMES if name in names), None)
        if self.label is True and label is None:
            raise ValueError(
                f"data.source.label=true, but {origin} has no column called {', '.join(labels.NAMES)}; set it to one "
                f"of its columns: {', '.join(names)}"
            )
        split = self.split or ("split" if "split" in names and self.test_rows is None else None)
        return label or None, split

    def _features(self, names: Sequence[str], label: str | None, split: str | None) -> list[str]:
        """The columns that are features, in the order of the table."""
        for key in ("columns", "ignore", "categorical"):
            for name in getattr(self, key) or ():
                if name not in names:
                    raise _unknown(key, name, names, str(self.root))
        if label is not None and label in (self.columns or ()):
            raise ValueError(
                f"data.source.columns names {label!r}, which is the label: the encoder would be shown what it is "
                "tested on. Take it out of data.source.columns, or set data.source.label to another column, or to false"
            )
        chosen = names if self.columns is None else self.columns
        features = [name for name in names if name in chosen and name not in (label, split, *self.ignore)]
        if not features:
            raise ValueError(f"data.source.columns: no column of {self.root} is left as a feature")
        return features

    def _places(
        self,
        tables: Mapping[str, pa.Table],
        whole: pa.Table,
        split: str | None,
        table: Table,
        files: Mapping[str, Path],
    ) -> dict[str, np.ndarray]:
        """The rows of each split."""
        count = whole.num_rows
        if len(tables) > 1:
            if self.split is not None or self.test_rows is not None:
                raise ValueError(
                    f"data.root={self.root} has a file for each split, so data.source.split and data.source.test_rows "
                    "have no meaning; set data.root to one file, or leave them null"
                )
            ends = np.cumsum([part.num_rows for part in tables.values()])
            return {name: np.arange(end - tables[name].num_rows, end) for name, end in zip(tables, ends, strict=True)}
        if self.test_rows is not None:
            test = splits.listed(files["train"].parent / self.test_rows, count)
            return {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
        if split is not None:
            return splits.named(whole[split].to_pylist(), split)
        return splits.held_out(table, self.test_share)


@register("source/uci")
class Uci:
    """One of a folder of tables, for instance of UCI sets: NAME.csv, and NAME.test_rows.txt if there is one.

    Args:
        adapter: the modality.
        root: the folder.
        name: which table.
        label: see `source/table`.
    """

    def __init__(self, adapter: Adapter, *, root: str, name: str, label: str | bool | None = None) -> None:
        self.adapter, self.root, self.name, self.label = adapter, root, name, label

    def splits(self) -> dict[str, Dataset]:
        """Data sets by split; ValueError where the folder has no such table."""
        folder = find_root(self.root)
        file = folder / f"{self.name}.csv"
        if not file.is_file():
            known = [path.stem for path in folder.glob("*.csv")]
            raise ValueError(f"data.source.name={self.name}: {folder} has no {file.name}{suggest(self.name, known)}")
        rows = f"{self.name}.test_rows.txt"
        test = rows if (folder / rows).is_file() else None
        return Tables(self.adapter, root=str(file), label=self.label, test_rows=test).splits()


@register("source/tabular_sample")
class TabularSample:
    """The sample shipped with mmssl: 12,000 training and 4,000 test rows of UCI Adult, 14 columns, 2 classes.

    Args:
        adapter: the modality.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def splits(self) -> dict[str, Dataset]:
        """Train and test."""
        return Tables(self.adapter, root=str(Path(__file__).parent / "sample" / "adult"), label="income").splits()


def _at(values: Tensor | None, rows: np.ndarray) -> Tensor | None:
    return None if values is None else values[torch.from_numpy(rows)]


def _origin(files: Mapping[str, Path]) -> str:
    """A name for messages."""
    paths = list(files.values())
    return paths[0].name if len(paths) == 1 else paths[0].parent.name


def _unknown(key: str, name: str, names: Sequence[str], origin: str) -> ValueError:
    return ValueError(f"data.source.{key}: {origin} has no column {name!r}{suggest(name, names)}")
