"""Tar archives in the WebDataset convention: members whose names differ only behind the first dot are one sample."""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from mmssl.data.columns import LABELS
from mmssl.data.indexing import Asked, Index
from mmssl.data.places import Shard
from mmssl.data.ranges import Ranges

BLOCK = tarfile.BLOCKSIZE


@dataclass
class _Sample:
    """One sample of a tar, as far as its members were met: where its data are, what they are called, and its label."""

    key: str
    place: tuple[int, int, int] | None = None
    name: str = ""
    label: str | None = None


def split_name(name: str) -> tuple[str, str] | None:
    """Key and ending of a member: `a/b.seg.png` is `a/b` and `seg.png`; None for hidden files and files without one."""
    found = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", name)
    return None if found is None else (found[1], found[2].lower())


def scan(file: BinaryIO, shard: Shard, asked: Asked) -> Index:
    """The index of a tar. A place is the start of the header before the data, the size of the data, the header's CRC.

    A sample that has a label and nothing to decode stays in the index, to be counted as one that cannot be read. What
    lies behind a place where the archive breaks off is lost.

    Raises:
        ValueError: where the file is no tar, or a sample has several members that could be decoded.
    """
    import pyarrow as pa

    samples, others, lost = _members(file, shard, asked)
    known = [sample for sample in samples if sample.place or sample.label]
    if lost and known and known[-1].label is None and any(sample.label for sample in known):
        known.pop()  # broken off before its label
    places = [sample.place or (-1, 0, 0) for sample in known]
    return Index(
        pa.array([sample.name or sample.key for sample in known], pa.string()),
        np.array(places, dtype=np.int64).reshape(-1, 3),
        pa.array([sample.label for sample in known], pa.string()),
        [len(known)],
        lost=lost,
        others=dict(others),
    )


def _members(file: BinaryIO, shard: Shard, asked: Asked) -> tuple[list[_Sample], Counter[str], str | None]:
    """All samples, the endings of what belongs to none, and why members are missing behind the last one, if any are."""
    if shard.size == 0:
        return [], Counter(), "the file is empty; write it again"
    try:
        archive = tarfile.TarFile(fileobj=file)
    except tarfile.ReadError as error:
        raise ValueError(
            f"{shard.url} is no tar archive ({error}); one that is compressed has to be unpacked, because samples are "
            "read from the middle of it"
        ) from error
    samples, others = list[_Sample](), Counter[str]()
    while (member := _next(archive)) is not None:
        parts = split_name(member.name) if member.isreg() and not member.issparse() else None
        if parts is None:
            continue
        key, ending = parts
        if not samples or samples[-1].key != key:
            samples.append(_Sample(key))
        if ending == asked.column or (asked.column is None and f".{ending}".endswith(asked.extensions)):
            file.seek(member.offset_data - BLOCK)
            _set(samples[-1], member, zlib.crc32(file.read(BLOCK)), shard)
        elif ending in ("cls", "json", asked.label):
            label = _label(archive, member, ending, asked.label)
            if label is not None and (ending != "json" or samples[-1].label is None):
                samples[-1].label = label
        else:
            others[posixpath.splitext(member.name)[1].lower()] += 1
    file.seek(archive.offset)
    after = file.read(BLOCK)
    whole = len(after) == BLOCK and not after.strip(b"\0")
    last = f"; the last sample is {samples[-1].key}" if samples else ""
    return samples, others, None if whole else f"the archive breaks off at byte {archive.offset}{last}; write it again"


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return archive.next()
    except tarfile.ReadError:  # in the middle of a member; `archive.offset` is then behind the end of the file
        return None


def _set(sample: _Sample, member: tarfile.TarInfo, crc: int, shard: Shard) -> None:
    if sample.place is not None:
        raise ValueError(
            f"{shard.url}: the sample {sample.key} has several members that could be decoded, {sample.name} and "
            f"{member.name}; name the ending of one with data.source.column"
        )
    sample.place, sample.name = (member.offset_data - BLOCK, member.size, crc), member.name


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, ending: str, wanted: str | None) -> str | None:
    """The label in a member: all of its text, or an entry of its JSON; None where there is none."""
    try:
        opened = archive.extractfile(member)
        text = b"" if opened is None else opened.read()
        if ending != "json":
            return text.decode("utf-8", "replace").strip() or None if ending == (wanted or "cls") else None
        held: Any = json.loads(text)
    except (tarfile.ReadError, ValueError):
        return None
    value = (
        next((held[key] for key in ([wanted] if wanted else LABELS) if key in held), None)
        if isinstance(held, dict)
        else None
    )
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None


def read(ranges: Ranges, shard: Shard, place: tuple[int, int, int]) -> bytes:
    """The data of one member.

    Raises:
        ValueError: where there is no such member, it is cut off, or another one is found at its place.
    """
    start, size, crc = place
    if start < 0:
        raise ValueError("the sample has no member that could be decoded, only a label")
    blob = ranges.read(shard, start, BLOCK + size)
    if len(blob) < BLOCK + size:
        raise ValueError("the shard ends in the middle of this sample")
    if zlib.crc32(blob[:BLOCK]) != crc:
        raise ValueError(
            f"{shard.url} is not the file that was indexed; remove {shard.url}.index if there is one, and the folder "
            "shards in MMSSL_CACHE"
        )
    return blob[BLOCK:]
