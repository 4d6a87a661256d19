"""Tar archives for tests, written with the standard library."""

from __future__ import annotations

import io
import tarfile
from functools import partial
from pathlib import Path

from mmssl.data.module import Data
from mmssl.data.shards import Shards
from tests.data.toy import Digits

# Numbers of samples of shards that are as uneven as can be.
UNEVEN = (7, 1, 19, 0, 4, 31, 2)


def blob(members: dict[str, str] | list[tuple[str, str]]) -> bytes:
    """The bytes of a tar of members, by name."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, text in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return content.getvalue()


def sets(sizes: tuple[int, ...] = UNEVEN, labels: bool = True) -> dict[str, dict[str, str]]:
    """Members of shards of these sizes: samples 100, 101, ... whose labels are their last digits, modulo three."""
    found, number = {}, 100
    for place, size in enumerate(sizes):
        members = {}
        for _ in range(size):
            members |= {f"{number}.cls": f"{number % 3}"} if labels else {}
            members |= {f"{number}.txt": f"{number}"}
            number += 1
        found[f"train-{place:03}.tar"] = members
    return found


def write(folder: Path, shards: dict[str, dict[str, str]] | None = None) -> Path:
    """Writes shards, by relative name; the uneven ones by default."""
    for name, members in (sets() if shards is None else shards).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob(members))
    return folder


def splits(root: Path | str | None, **said):
    return Shards(Digits(), root=None if root is None else str(root), **{"test_share": 0} | said).splits()


def data(root: Path | str, **changes) -> Data:
    """Data of shards of digits, nothing kept decoded."""
    source = partial(Shards, root=str(root), **{"test_share": 0} | changes.pop("shards", {}))
    said = {"views": {"x": []}, "view": [], "batch_size": 12, "workers": 0, "memory_mb": 0} | changes
    return Data(Digits(), said.pop("seed", 0), source=source, **said)


def numbers(dataset) -> list[int]:
    """All samples of a data set, in order."""
    return [int("".join(map(str, dataset.read(i).tolist()))) for i in range(len(dataset))]
