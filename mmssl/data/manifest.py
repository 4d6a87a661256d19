"""Tables of samples: CSV or Parquet files that name files or hold their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.source import Adapter, Dataset, _stat, digest, digest_file, find_root, hold_out
from mmssl.registry import register

if TYPE_CHECKING:
    import pyarrow as pa

_READ = (".parquet", ".csv", ".tsv")
_LABELS = ("label", "labels", "class", "target", "fine_label")
_DATA = ("path", "file", "file_name", "filename", "filepath", "image", "img", "audio", "video", "bytes")


class Rows:
    """Samples that are rows of a table: a path relative to the table's folder, bytes, or a struct of both.

    Args:
        adapter: decodes them.
        file: the table's file.
        column: the column that holds paths or bytes.
        rows: which rows, (n,) int64.
        labels: (n,) int64, or None.
        classes: names of the labels.
    """

    in_memory = False

    def __init__(
        self,
        adapter: Adapter,
        file: Path,
        column: pa.ChunkedArray,
        rows: np.ndarray,
        labels: Tensor | None,
        classes: list[str] | None,
    ) -> None:
        self.adapter, self.file, self.column, self.rows = adapter, file, column, rows
        self.labels, self.classes = labels, classes

    def __len__(self) -> int:
        return len(self.rows)

    def _cell(self, i: int) -> tuple[bytes | None, str | None]:
        """Bytes and path of a row, either of which may be missing."""
        cell = self.column[int(self.rows[i])].as_py()
        if isinstance(cell, dict):
            return cell.get("bytes"), cell.get("path")
        return (cell, None) if isinstance(cell, bytes) else (None, cell)

    def read(self, i: int) -> Any:
        """Decodes the i-th sample."""
        blob, path = self._cell(i)
        if blob is None:
            if not path:
                raise ValueError("the row holds neither bytes nor a path")
            blob = (self.file.parent / path).read_bytes()
        return self.adapter.decode(blob)

    def name(self, i: int) -> str:
        """The path in the i-th row, else the file and the row's number."""
        return self._cell(i)[1] or f"{self.file.name}:{int(self.rows[i])}"

    def fingerprint(self) -> str:
        """Digest of the table and the rows; of paths and file sizes where the table only names files."""
        return self._digest(times=False)

    def cache_key(self) -> str:
        """The same, with the times at which named files changed."""
        return digest([self.adapter.name, str(self.file.parent.resolve()), self._digest(times=True)])

    def _digest(self, times: bool) -> str:
        import pyarrow as pa

        if not pa.types.is_string(self.column.type) and not pa.types.is_large_string(self.column.type):
            return digest([digest_file(self.file), self.rows.tobytes()])
        names = [self.name(i) for i in range(len(self))]
        return digest(f"{name}:{_stat(self.file.parent / name)[: 1 + times]}" for name in names)


@dataclass(frozen=True)
class Table:
    """A table read from a file: the column of samples, and labels and split names where there are any."""

    file: Path
    samples: pa.ChunkedArray
    labels: pa.ChunkedArray | None
    splits: pa.ChunkedArray | None
    classes: list[str] | None


@register("source/manifest")
class Manifest:
    """Samples listed in CSV or Parquet: paths relative to the file, or encoded bytes.

    The layout of the Hugging Face hub (a struct of `bytes` and `path`, class names in the schema's metadata) is understood.

    Args:
        adapter: the modality.
        root: a table, or a folder of tables named by split: `train.parquet`, `test.parquet`, `train-00000-of-00004.parquet`.
        column: the column of paths or bytes; null finds it by type and name.
        label: the column of labels, integers or text; null takes `label`, `labels`, `class` or `target` if there is one;
            false takes none.
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
        tables = {split: [self._read(file) for file in files] for split, files in _tables(find_root(self.root)).items()}
        coded, classes = _codes([table for group in tables.values() for table in group])
        parts: dict[str, list[Rows]] = {}
        for split, group in tables.items():
            for table in group:
                for name, rows in _rows(table, split).items():
                    labels = coded[table.file]
                    parts.setdefault(name, []).append(
                        Rows(
                            self.adapter,
                            table.file,
                            table.samples,
                            rows,
                            None if labels is None else labels[torch.from_numpy(rows)],
                            None if labels is None else classes,
                        )
                    )
        splits: dict[str, Dataset] = {name: rows[0] if len(rows) == 1 else Joined(rows) for name, rows in parts.items()}
        if "train" not in splits:
            raise ValueError(f"data.root={self.root} has no train split, only {', '.join(splits)}")
        return hold_out(splits["train"], self.test_share) if set(splits) == {"train"} else splits

    def _read(self, file: Path) -> Table:
        """Reads the columns that are needed of one file."""
        import pyarrow.csv
        import pyarrow.parquet

        if file.suffix == ".parquet":
            schema = pyarrow.parquet.read_schema(file)
            data, label, split = self._columns(schema, file)
            wanted = [name for name in (data, label, split) if name is not None]
            table = pyarrow.parquet.read_table(file, columns=wanted, memory_map=True)
        else:
            parse = pyarrow.csv.ParseOptions(delimiter="\t" if file.suffix == ".tsv" else ",")
            table = pyarrow.csv.read_csv(file, parse_options=parse)
            data, label, split = self._columns(table.schema, file)
        if table.num_rows == 0:
            raise ValueError(f"data.root: {file} has no rows")
        return Table(
            file,
            table[data],
            None if label is None else table[label],
            None if split is None else table[split],
            None if label is None else _class_names(table.schema.metadata, label),
        )

    def _columns(self, schema: pa.Schema, file: Path) -> tuple[str, str | None, str | None]:
        """Names of the columns of samples, labels and splits."""
        data = _asked(self.column, "column", schema, file) or _guess(schema, file)
        label = None
        if self.label is not False:
            asked = None if self.label is True else self.label
            label = _asked(asked, "label", schema, file) or next(
                (name for name in _LABELS if name in schema.names), None
            )
            if self.label is True and label is None:
                raise ValueError(
                    f"data.source.label=true, but {file.name} has none of the columns {', '.join(_LABELS)}; "
                    f"name one of its columns: {', '.join(schema.names)}"
                )
        split = _asked(self.split, "split", schema, file) or ("split" if "split" in schema.names else None)
        return data, label, split


class Joined:
    """Several data sets one behind the other: the shards of a split."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        self.classes, self.in_memory = parts[0].classes, all(part.in_memory for part in parts)
        labels = [part.labels for part in parts if part.labels is not None]
        self.labels = torch.cat(labels) if len(labels) == len(parts) else None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _place(self, i: int) -> tuple[Dataset, int]:
        part = int(np.searchsorted(self.ends, i, side="right"))
        return self.parts[part], i - (int(self.ends[part - 1]) if part else 0)

    def read(self, i: int) -> Any:
        """The i-th sample."""
        part, place = self._place(i)
        return part.read(place)

    def name(self, i: int) -> str:
        """Its name in the part that holds it."""
        part, place = self._place(i)
        return part.name(place)

    def fingerprint(self) -> str:
        """Digest of the parts."""
        return digest(part.fingerprint() for part in self.parts)

    def cache_key(self) -> str | None:
        """Digest of the parts' keys, where all have one."""
        keys = [part.cache_key() for part in self.parts]
        return None if None in keys else digest(key for key in keys if key)
