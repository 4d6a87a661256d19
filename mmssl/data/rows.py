"""Data sets that are rows of a table, and several data sets joined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.source import Adapter, Dataset, digest, digest_file, read_file, stat

if TYPE_CHECKING:
    import pyarrow as pa


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
            return read_file(self.adapter, self.file.parent / path)
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
        return digest(f"{name}:{stat(self.file.parent / name)[: 1 + times]}" for name in names)


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
