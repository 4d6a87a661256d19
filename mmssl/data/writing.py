"""Writes a data set as tar shards in the WebDataset convention, the encoded bytes as they are."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import singledispatch
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mmssl.data import tars
from mmssl.data.indexing import Asked, beside, packed
from mmssl.data.places import Shard
from mmssl.data.rows import Joined, Rows
from mmssl.data.sharded import Sharded
from mmssl.data.source import Adapter, Dataset, Files
from mmssl.data.subset import Subset
from mmssl.draws import shuffle

_AHEAD = 64  # samples that are read ahead


class NoFiles(ValueError):
    """Data that are no encoded files."""


@singledispatch
def encoded(dataset: Any, i: int) -> tuple[str, bytes]:
    """Name and encoded bytes of the i-th sample.

    Raises:
        NoFiles: for data that are none.
        ValueError: where the sample has no bytes.
        OSError: where they cannot be read.
    """
    raise NoFiles(
        f"these data are no encoded files ({type(dataset).__name__}), and only such can be written as shards; use "
        "data=folder, data=manifest or data=shards"
    )


@encoded.register
def _(dataset: Files, i: int) -> tuple[str, bytes]:
    path = dataset.folder / dataset.name(i)
    if path.is_dir():
        raise ValueError("the sample is a folder of frames; make it one file, such as .npz or .mp4")
    return dataset.name(i), path.read_bytes()


@encoded.register
def _(dataset: Rows, i: int) -> tuple[str, bytes]:
    cell = dataset.column[int(dataset.rows[i])].as_py()
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise ValueError("the row holds neither bytes nor a path")
    return dataset.name(i), cell if isinstance(cell, bytes) else (dataset.file.parent / cell).read_bytes()


@encoded.register
def _(dataset: Sharded, i: int) -> tuple[str, bytes]:
    return dataset.name(i).partition(":")[2], dataset.blob(i)


@encoded.register
def _(dataset: Subset, i: int) -> tuple[str, bytes]:
    return encoded(dataset.dataset, int(dataset.index[i]))


@encoded.register
def _(dataset: Joined, i: int) -> tuple[str, bytes]:
    part = int(np.searchsorted(dataset.ends, i, side="right"))
    return encoded(dataset.parts[part], i - (int(dataset.ends[part - 1]) if part else 0))


@dataclasses.dataclass
class Written:
    """What was written of a split.

    Args:
        samples: how many.
        bytes: of all shards.
        shards: their file names.
        skipped: names of the samples that could not be read, and why.
    """

    samples: int = 0
    bytes: int = 0
    shards: list[str] = dataclasses.field(default_factory=list)
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def write(
    dataset: Dataset, adapter: Adapter, split: str, folder: Path, size: int, samples: int | None,
    say: Callable[[str], None],
) -> Written:  # fmt: skip
    """Writes one split as `SPLIT-000000.tar`, ..., each with its index beside it.

    Samples are written in a fixed random order, so that every shard is a fair part of the whole. Each is decoded once:
    what cannot be read is left out. Equal data give equal files.

    Args:
        dataset: the split.
        adapter: decodes its samples.
        split: its name.
        folder: an empty folder of this machine.
        size: a shard is closed before it grows larger than so many bytes, but holds one sample at least.
        samples: a shard is closed when it holds so many; None for no limit.
        say: told how far it is after each shard.

    Raises:
        NoFiles: for data that are no encoded files.
        ValueError: for labels that belong to tokens.
    """
    labels = dataset.labels
    if labels is not None and labels.dim() != 1:
        raise ValueError("labels of these data belong to tokens, and a shard has one label for each sample")
    classes = None if labels is None else dataset.classes
    done, names, shard = Written(), set[str](), None

    def close(shard: _Open) -> None:
        done.bytes += shard.close(adapter, classes)
        done.shards.append(shard.path.name)
        done.samples += shard.count
        told = f", {len(done.skipped)} skipped" if done.skipped else ""
        say(f"{split}: {done.samples} of {len(dataset)} samples in {len(done.shards)} shards{told}")

    try:
        for i, name, blob in _read(dataset, adapter):
            if isinstance(blob, str):
                done.skipped.append((name, blob))
                continue
            if shard is not None and (shard.count == samples or shard.with_more(len(blob)) > size):
                close(shard)
                shard = None
            shard = shard or _Open(folder / f"{split}-{len(done.shards):06}.tar")
            shard.add(*_key(name, adapter, names), blob, None if labels is None else int(labels[i]))
        if shard is not None:
            close(shard)
    finally:
        if shard is not None:
            shard.file.close()
    return done


def _read(dataset: Dataset, adapter: Any) -> Iterator[tuple[int, str, bytes | str]]:
    """Place, name and bytes of every sample, or in place of the bytes why it cannot be read; a few at a time."""
    decode = getattr(adapter, "decode", lambda blob: None)

    def one(i: int) -> tuple[int, str, bytes | str]:
        try:
            name, blob = encoded(dataset, i)
            decode(blob)
            return i, name, blob
        except NoFiles:
            raise
        except (ValueError, OSError) as error:
            return i, dataset.name(i), str(error) or type(error).__name__

    order = shuffle(len(dataset), 0, 0).tolist()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(order), _AHEAD):
            yield from pool.map(one, order[start : start + _AHEAD])


def _key(name: str, adapter: Adapter, taken: set[str]) -> tuple[str, str]:
    """Key and ending of a sample: its name, with one dot only, and with a number where another has the same key."""
    path = PurePosixPath(name)
    known = path.suffix.lower() in adapter.extensions
    parts = [part for part in path.parts[:-1] if part not in ("/", "..")]
    stem = (path.stem if known else path.name).replace(".", "_")
    key, again = "/".join([*parts, stem]), 1
    while key in taken:
        again += 1
        key = "/".join([*parts, f"{stem}-{again}"])
    taken.add(key)
    return key, path.suffix.lower() if known else adapter.extensions[0]


class _Open:
    """A shard that is being written."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self.file = path.open("xb")
        self._tar = tarfile.TarFile(fileobj=self.file, mode="w")

    def with_more(self, size: int) -> int:
        """About how many bytes the shard would have with one more sample of that size."""
        return self.file.tell() + size + 5 * tars.BLOCK + tarfile.RECORDSIZE

    def add(self, key: str, ending: str, blob: bytes, label: int | None) -> None:
        """Writes a sample, its label first: where a shard breaks off, the label of the last sample is known."""
        members = [(f"{key}.cls", str(label).encode())] if label is not None else []
        for name, content in [*members, (f"{key}{ending}", blob)]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
        self.count += 1

    def close(self, adapter: Adapter, classes: list[str] | None) -> int:
        """Ends the shard, reads it back and writes its index; the number of its bytes."""
        from fsspec.implementations.local import LocalFileSystem

        self._tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        size = self.path.stat().st_size
        shard, asked = (
            Shard(LocalFileSystem(), str(self.path), size, ""),
            Asked(adapter.name, tuple(adapter.extensions)),
        )
        with self.path.open("rb") as file:
            index = tars.scan(file, shard, asked)
        assert index.lost is None and len(index.names) == self.count, f"{self.path} does not hold what was written"
        Path(beside(shard)).write_bytes(packed(dataclasses.replace(index, classes=classes), shard, asked))
        return size
