"""Tables of samples: CSV or Parquet files that name files or hold their bytes."""

from __future__ import annotations

from pathlib import Path

import torch

from mmssl.data.columns import Table, codes, find_columns, read, rows_by_split, tables_by_split
from mmssl.data.rows import Joined, Rows
from mmssl.data.source import Adapter, Dataset, find_root
from mmssl.data.subset import hold_out
from mmssl.registry import register


@register("source/manifest")
class Manifest:
    """Samples listed in CSV or Parquet: paths relative to the file, or encoded bytes.

    The layout of the Hugging Face hub is understood: a struct of `bytes` and `path`, class names in the metadata.

    Args:
        adapter: the modality.
        root: a table, or a folder of tables named by split: `train.parquet`, `test.csv`, `train-00000-of-00004.csv`.
        column: the column of paths or bytes; null finds it by type and name.
        label: the column of labels, integers or text; null takes `label`, `labels`, `class` or `target` if there is
            one; false takes none.
        split: the column that names the split of each row; null takes `split` if there is one.
        test_share: share of each class that becomes the test split where labelled data name no other split.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        root: str,
        column: str | None = None,
        label: str | bool | None = None,
        split: str | None = None,
        test_share: float = 0.1,
    ) -> None:
        self.adapter, self.root, self.column = adapter, root, column
        self.label, self.split, self.test_share = label, split, test_share

    def splits(self) -> dict[str, Dataset]:
        """Data sets by split.

        Raises:
            ValueError: for missing files or columns, and for labels or splits that cannot be understood.
        """
        tables = [
            (split, self._read(file))
            for split, files in tables_by_split(find_root(self.root)).items()
            for file in files
        ]
        labels, classes = codes([table for _, table in tables], strict=isinstance(self.label, str))
        parts: dict[str, list[Dataset]] = {}
        for (split, table), label in zip(tables, labels, strict=True):
            for name, rows in rows_by_split(table, split).items():
                mine = None if label is None else label[torch.from_numpy(rows)]
                known = None if label is None else classes
                parts.setdefault(name, []).append(Rows(self.adapter, table.file, table.samples, rows, mine, known))
        splits = {name: group[0] if len(group) == 1 else Joined(group) for name, group in parts.items()}
        if "train" not in splits:
            raise ValueError(f"data.root={self.root} has no train split, only {', '.join(splits)}")
        return hold_out(splits["train"], self.test_share) if set(splits) == {"train"} else splits

    def _read(self, file: Path) -> Table:
        names = find_columns(file, self.adapter.extensions, self.column, self.label, self.split)
        return read(file, *names)
