"""What shards hold, found once and kept: the index of each lies beside it or in a cache, and changes when it does."""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmssl.data.memory import cache_folder
from mmssl.data.places import Shard
from mmssl.data.ranges import Ranges
from mmssl.data.source import digest

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

# Grows when indexes of before would be understood wrongly.
_VERSION = 1
_TOGETHER = 8
_SECONDS = 10  # between two words about how far it is


@dataclass(frozen=True)
class Asked:
    """What is to be found in shards; an index answers one of these.

    Args:
        modality: the adapter's name.
        extensions: what samples are called.
        column: the ending of the samples in a tar, their column in Parquet; None finds it.
        label: the same for labels; None finds them.
    """

    modality: str
    extensions: tuple[str, ...]
    column: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Index:
    """What one shard holds.

    Args:
        names: of the n samples, for messages.
        places: what the reader of the format finds a sample by, (n, 3) int64.
        labels: of any plain type, None where a sample has none.
        blocks: numbers of samples that lie together and are read together; they sum to n.
        classes: names of the values of integer labels, where the shard says them.
        lost: why a part of the shard cannot be read; None where all can.
        others: endings of what is no sample, and how many have them, for messages.
    """

    names: pa.Array
    places: np.ndarray
    labels: pa.Array
    blocks: list[int]
    classes: list[str] | None = None
    lost: str | None = None
    others: dict[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Changes with the samples, not with the place that the shard lies at."""
        said = json.dumps([self.names.to_pylist(), self.labels.to_pylist(), self.blocks, self.classes])
        return digest([said, self.places.tobytes()])


def index_folder() -> Path:
    """Where indexes are kept."""
    return cache_folder().parent / "shards"


Scan = Callable[[Any, Shard, Asked], Index]


def beside(shard: Shard) -> str:
    """Where the index lies that was written with a shard."""
    return f"{shard.path}.index"


def indexes(shards: Sequence[Shard], asked: Asked, ranges: Ranges, scan: Callable[[Shard], Scan]) -> list[Index]:
    """The index of each shard: from the cache, from beside the shard, else found by reading it.

    Processes that index the same shards at once begin at different ones and take over what the others have found.

    Args:
        shards: the shards.
        asked: what is to be found.
        ranges: opens them.
        scan: gives what reads a shard of its format.

    Raises:
        ValueError: for a file that is no shard at all.
    """
    found: dict[int, Index] = {}
    first = int(digest([str(os.getpid())])[:8], 16) % max(1, len(shards))
    begun = said = time.monotonic()
    turn = [*range(first, len(shards)), *range(first)]
    with ThreadPoolExecutor(_TOGETHER) as pool:
        for i, index in zip(turn, pool.map(lambda i: _index(shards[i], asked, ranges, scan), turn), strict=True):
            found[i] = index
            if time.monotonic() - said > _SECONDS:
                said = time.monotonic()
                _log.warning("indexing shards, once: %d of %d after %.0f s", len(found), len(shards), said - begun)
    for i, shard in enumerate(shards):
        if found[i].lost is not None:
            _log.warning("%s: %s", shard.url, found[i].lost)
    return [found[i] for i in range(len(shards))]


def _index(shard: Shard, asked: Asked, ranges: Ranges, scan: Callable[[Shard], Scan]) -> Index:
    file = index_folder() / f"{digest([shard.url, json.dumps(asdict(asked))])[:32]}.index"
    kept = _loaded(file.read_bytes(), stamp=shard.stamp) if file.exists() else None
    if kept is not None:
        return kept
    index = _delivered(shard, asked)
    if index is None:
        with ranges.open(shard) as opened:
            index = scan(shard)(opened, shard, asked)
    try:
        write(file, packed(index, shard, asked))
    except OSError as error:
        _log.warning("indexes of shards are not kept: %s (set MMSSL_CACHE to another folder)", error)
    return index


def _delivered(shard: Shard, asked: Asked) -> Index | None:
    """The index that was written with the shard, if it is of this file and answers what is asked."""
    try:
        blob = shard.here().cat_file(beside(shard))
    except OSError:
        return None
    return _loaded(blob, size=shard.size, asked=_same(asked))


def _same(asked: Asked) -> dict[str, Any]:
    """What a question has to have in common with that of another time, when more extensions may have been known."""
    return {"modality": asked.modality, "column": asked.column, "label": asked.label}


def packed(index: Index, shard: Shard, asked: Asked) -> bytes:
    """An index as the bytes of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    said = {
        "version": _VERSION, "stamp": shard.stamp, "size": shard.size, "asked": _same(asked), "blocks": index.blocks,
        "classes": index.classes, "lost": index.lost, "others": index.others,
    }  # fmt: skip
    places = {f"place{i}": index.places[:, i] for i in range(3)}
    table = pa.table({"name": index.names, **places, "label": index.labels})
    content = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"mmssl": json.dumps(said)}), content)
    return content.getvalue()


def _loaded(blob: bytes, **wanted: Any) -> Index | None:
    """The index in such bytes; None where it says something else of its shard than what is wanted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(blob))
    except (pa.ArrowInvalid, OSError):
        return None
    said = json.loads((table.schema.metadata or {}).get(b"mmssl", b"{}"))
    if any(said.get(key) != value for key, value in {"version": _VERSION, **wanted}.items()):
        return None
    places = np.stack([table[f"place{i}"].to_numpy() for i in range(3)], 1)
    names, labels = (table[name].combine_chunks() for name in ("name", "label"))
    return Index(names, places, labels, said["blocks"], said["classes"], said["lost"], said["others"])


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
