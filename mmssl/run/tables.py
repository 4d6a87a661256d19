"""Tables of features written piece by piece, so that memory holds a piece and never the table."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from mmssl.report.markup import drafted

Rows = dict[str, np.ndarray]
# A row group of a parquet file is begun when so many bytes wait: smaller ones are read slowly, larger ones held long.
_GROUP = 4 << 20
_NAMES = {"float32": "F32", "int64": "I64"}


class Spool:
    """Columns of unknown length, each appended to a temporary file beside the result.

    Args:
        folder: where the temporary files go; the system removes them with the process.
        stack: closes them.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.files: dict[str, IO[bytes]] = {}
        self.kinds: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self.count = 0

    def add(self, rows: Rows) -> None:
        """Appends rows of all columns."""
        for name, values in rows.items():
            if name not in self.files:
                self.files[name] = self.stack.enter_context(TemporaryFile(dir=self.folder))  # noqa: SIM115
                self.kinds[name] = (values.dtype, values.shape[1:])
            assert self.kinds[name] == (values.dtype, values.shape[1:]), f"column {name} changes its kind"
            self.files[name].write(np.ascontiguousarray(values).data)
        self.count += len(rows["x"])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a column."""
        return (self.count, *self.kinds[name][1])

    def size(self, name: str) -> int:
        """Bytes of a column."""
        return self.files[name].tell()

    def pour(self, name: str, target: IO[bytes]) -> None:
        """Copies a column's bytes."""
        self.files[name].seek(0)
        shutil.copyfileobj(self.files[name], target, 1 << 20)
        self.files[name].seek(0, os.SEEK_END)


def _npz(pieces: Iterable[Rows], draft: Path, splits: list[str]) -> None:
    kind = f"U{max(map(len, splits))}"
    with ExitStack() as stack:
        spool = Spool(draft.parent, stack)
        for rows in pieces:
            spool.add(rows | {"split": rows["split"].astype(kind)})
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in spool.files:
                header = {
                    "descr": np.lib.format.dtype_to_descr(spool.kinds[name][0]), "fortran_order": False,
                    "shape": spool.shape(name),
                }  # fmt: skip
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    spool.pour(name, member)


def _safetensors(pieces: Iterable[Rows], draft: Path, splits: list[str]) -> None:
    """The format by hand: 8 bytes of length, a JSON header, the tensors one behind the other.

    The library's own writer wants every tensor in memory.
    """
    codes = {name: i for i, name in enumerate(sorted(splits))}
    with ExitStack() as stack:
        spool = Spool(draft.parent, stack)
        for rows in pieces:
            spool.add(rows | {"split": np.array([codes[name] for name in rows["split"]], np.int64)})
        header: dict[str, Any] = {"__metadata__": {"splits": ",".join(sorted(splits))}}
        start = 0
        for name in spool.files:
            end = start + spool.size(name)
            kind = _NAMES[spool.kinds[name][0].name]
            header[name] = {"dtype": kind, "shape": spool.shape(name), "data_offsets": [start, end]}
            start = end
        said = json.dumps(header).encode()
        said += b" " * (-len(said) % 8)  # data begin at a multiple of eight
        with draft.open("wb") as file:
            file.write(len(said).to_bytes(8, "little") + said)
            for name in spool.files:
                spool.pour(name, file)


def _parquet(pieces: Iterable[Rows], draft: Path, splits: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        writer = None
        for rows in _grouped(pieces):
            table = _arrow(rows)
            if writer is None:
                # Only names of splits repeat: a dictionary of features is memory and time for nothing.
                repeated: Any = ["split"]  # pyarrow's own types forget that names may be given
                writer = stack.enter_context(pq.ParquetWriter(draft, table.schema, use_dictionary=repeated))
            writer.write_table(table)
            pa.default_memory_pool().release_unused()  # the pool would keep what the last groups needed


def _arrow(rows: Rows) -> Any:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(rows["x"]).reshape(-1))
    columns = {"x": pa.FixedSizeListArray.from_arrays(flat, rows["x"].shape[1])}
    return pa.table(columns | {name: pa.array(values) for name, values in rows.items() if name != "x"})


def _grouped(pieces: Iterable[Rows]) -> Iterator[Rows]:
    waiting: list[Rows] = []
    for rows in pieces:
        waiting.append(rows)
        if sum(part["x"].nbytes for part in waiting) >= _GROUP:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[Rows]) -> Rows:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_WRITERS: dict[str, Callable[[Iterable[Rows], Path, list[str]], None]] = {
    ".npz": _npz, ".parquet": _parquet, ".safetensors": _safetensors,
}  # fmt: skip
FORMATS = tuple(_WRITERS)


def write(pieces: Iterable[Rows], out: Path, splits: Iterable[str]) -> tuple[int, int]:
    """Writes pieces of a table of features as they come: the file appears whole, or not at all.

    Args:
        pieces: rows of the columns `x` (r, d) float32, `split` (r,) names, and further int64 columns (r,).
        out: a file that ends in one of `FORMATS`. `.parquet` has one list column `x`; in `.safetensors` a split is its
            place among the names that the metadata hold.
        splits: the names that `split` may have.

    Returns:
        Rows and width.
    """
    told = [0, 0]

    def counted() -> Iterator[Rows]:
        for rows in pieces:
            told[0], told[1] = told[0] + len(rows["x"]), rows["x"].shape[1]
            yield rows

    with drafted(out) as draft:
        _WRITERS[out.suffix](counted(), draft, list(splits))
    return told[0], told[1]
