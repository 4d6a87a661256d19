"""Where shards lie: patterns and URLs of any file system that fsspec knows."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mmssl.data.source import digest
from mmssl.registry import suggest

SUFFIXES = (".tar", ".parquet")
# What file systems call that which changes with a file.
_STAMPS = ("size", "mtime", "created", "ETag", "etag", "LastModified", "last_modified", "updated")
_TOGETHER = 16


@dataclass(frozen=True)
class Shard:
    """One file of a shard set.

    Args:
        fs: its fsspec file system.
        path: the path in it.
        size: bytes.
        stamp: a digest that changes when the file does.
        name: what it is called in messages, and what splits are found by: the path without what all have in common.
    """

    fs: Any
    path: str
    size: int
    stamp: str
    name: str = ""

    @property
    def url(self) -> str:
        """The path with its protocol."""
        return self.fs.unstrip_protocol(self.path)

    @property
    def local(self) -> bool:
        """Whether it is a file of this machine."""
        return "file" in _protocols(self.fs)

    def here(self) -> Any:
        """The file system as this process may use it: asynchronous ones do not survive a fork."""
        return type(self.fs)(*self.fs.storage_args, **self.fs.storage_options)


def expand(pattern: str) -> list[str]:
    """All that braces stand for, as in a shell: `{000..009}` numbers of that width, `{a,b}` words."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span is None:
        words = found[1].split(",")
    else:
        low, high, width = int(span[1]), int(span[2]), len(span[1])
        words = [f"{number:0{width}}" for number in range(low, high + 1)]
        if not words:
            raise ValueError(f"the braces {found[0]} of {pattern} hold no number; write the smaller one first")
    return [each for word in words for each in expand(pattern[: found.start()] + word + pattern[found.end() :])]


def find(said: str | Sequence[str], key: str, storage: Mapping[str, Any]) -> list[Shard]:
    """The shards that patterns stand for, in their order; those of one pattern or folder sorted.

    Args:
        said: folders, files and patterns with `*`, `?`, `[...]` and braces, local or URLs.
        key: the configuration's key, for messages.
        storage: what fsspec's file systems are made with.

    Raises:
        ValueError: where something is not there, or a shard is named twice, with what was near.
    """
    patterns = [said] if isinstance(said, str) else list(said)
    places = [place for pattern in patterns for place in _listed(pattern, key, storage)]
    with ThreadPoolExecutor(_TOGETHER) as pool:
        infos = list(pool.map(lambda place: _info(place[0], place[1], key), places))
    alike = len({name for _, _, name in places}) < len(places)
    shards, seen = [], set[str]()
    for (fs, path, name), info in zip(places, infos, strict=True):
        stamp = digest(f"{word}={info.get(word)}" for word in _STAMPS)
        shard = Shard(fs, path, int(info["size"]), stamp, path if alike else name)
        if shard.url in seen:
            raise ValueError(f"{key} names the shard {shard.url} twice, so that its samples would be repeated")
        seen.add(shard.url)
        shards.append(shard)
    return shards


def _listed(pattern: str, key: str, storage: Mapping[str, Any]) -> list[tuple[Any, str, str]]:
    """File system, path and name of all that one pattern stands for."""
    from fsspec.core import url_to_fs

    plain = re.split(r"[*?[{]", pattern)[0].rpartition("/")[0]
    depth = pattern[len(plain) :].lstrip("/").count("/") + 1
    found = []
    for each in expand(pattern):
        try:
            fs, path = url_to_fs(each, **storage)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{key}={each}: {error}") from error
        folder = not path.endswith(SUFFIXES) and fs.isdir(path)
        for one in _below(fs, path, each, key) if folder else _matching(fs, path, each, key):
            name = one[len(path) :].lstrip("/") if folder else "/".join(one.split("/")[-depth:])
            found.append((fs, one, name))
    return found


def _below(fs: Any, path: str, said: str, key: str) -> list[str]:
    """All shards in a folder and below it, sorted; hidden ones left out."""
    files = sorted(str(each) for each in fs.find(path))
    found = [each for each in files if each.endswith(SUFFIXES) and "/." not in each[len(path) :]]
    if not found:
        instead = ", ".join(posixpath.basename(each) for each in files[:5]) or "nothing"
        raise ValueError(
            f"{key}={said} holds no shard ({', '.join(SUFFIXES)}), only {instead}; for a folder of files use "
            "data=folder, or write shards of it with `mmssl shards`"
        )
    return found


def _matching(fs: Any, path: str, said: str, key: str) -> list[str]:
    """All shards that a pattern without braces stands for, sorted; a plain path as it is."""
    from fsspec.core import has_magic

    if not has_magic(path) or fs.exists(path):
        return [path]
    found = sorted(str(each) for each in fs.glob(path) if str(each).endswith(SUFFIXES))
    if not found:
        raise ValueError(f"{key}={said} matches no shard ({', '.join(SUFFIXES)}){_near(fs, path)}")
    return found


def _info(fs: Any, path: str, key: str) -> dict[str, Any]:
    try:
        info = fs.info(path)
    except FileNotFoundError as error:
        raise ValueError(f"{key}: there is no {fs.unstrip_protocol(path)}{_near(fs, path)}") from error
    if not path.endswith(SUFFIXES):
        raise ValueError(
            f"{key}: {path} is no shard: its name has to end in {' or '.join(SUFFIXES)}; a compressed one has to be "
            "unpacked, because samples are read from the middle of it"
        )
    return info


def _near(fs: Any, path: str) -> str:
    """What there is where a path was looked for."""
    folder = posixpath.dirname(path)
    while folder.strip("/") and ("*" in folder or not fs.exists(folder)):
        path, folder = folder, posixpath.dirname(folder)
    try:
        names = [posixpath.basename(str(each).rstrip("/")) for each in fs.ls(folder, detail=False)]
    except OSError:
        return ""
    return f"; in {folder}: {suggest(posixpath.basename(path), names).removeprefix('; ')}" if names else ""


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
