"""Bytes out of shards, wherever they lie."""

from __future__ import annotations

import errno
import logging
import os
import posixpath
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

from mmssl.data.places import Shard
from mmssl.data.source import digest

_log = logging.getLogger(__name__)

_OPEN = 64  # files that a process keeps open
_TRIES = 4  # of a read over a network


class Ranges:
    """Reads bytes out of shards: files of this machine stay open, others are asked for the range.

    Args:
        copies: folder that remote shards are copied to when they are first read, and read from; None never copies.
    """

    def __init__(self, copies: Path | None = None) -> None:
        self.copies = copies
        self._begin()

    def _begin(self) -> None:
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: Shard, start: int, size: int) -> bytes:
        """Bytes from `start` on; fewer where the file ends before.

        Raises:
            OSError: where they cannot be read, also not after some tries over a network.
        """
        path = self.path(shard)
        if path is not None:
            return os.pread(self._file(path).handle, size, start)
        for wait in range(_TRIES):
            try:
                return shard.here().cat_file(shard.path, start=start, end=start + size)
            except FileNotFoundError:
                raise
            except OSError:  # a network that fails for a moment must not change what is trained on
                if wait == _TRIES - 1:
                    raise
                time.sleep(2**wait / 4)
        raise AssertionError

    def open(self, shard: Shard) -> BinaryIO:
        """The shard as a file, at its start."""
        path = self.path(shard)
        return shard.here().open(shard.path, "rb") if path is None else Path(path).open("rb")

    def path(self, shard: Shard) -> str | None:
        """The file of this machine that holds the shard; None where there is none."""
        if shard.local:
            return shard.path
        if self.copies is None:
            return None
        try:
            return str(_copy(shard, self.copies))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _log.warning("data.source.copies=%s is full (%s): shards are read over the network", self.copies, error)
            self.copies = None
            return None

    def _file(self, path: str) -> _File:
        with self._lock:
            if path not in self._files:
                self._files[path] = _File(path)
            self._files.move_to_end(path)
            while len(self._files) > _OPEN:
                self._files.popitem(last=False)
            return self._files[path]

    def __getstate__(self) -> dict[str, Any]:
        """What another process starts from: nothing is open."""
        return {"copies": self.copies}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begins anew."""
        self.copies = state["copies"]
        self._begin()


class _File:
    """An open file, closed once the last reader has let go of it."""

    def __init__(self, path: str) -> None:
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


def _copy(shard: Shard, folder: Path) -> Path:
    """The local copy of a remote shard, made whole or not at all, by one process of the machine for all of them.

    The caches of fsspec write to the final name, so that other processes, and the next run after a kill, would take a
    part of a file for the whole.
    """
    import fcntl

    kept = folder / f"{digest([shard.url, shard.stamp])[:32]}{posixpath.splitext(shard.path)[1]}"
    if kept.exists():
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    draft = kept.with_suffix(".tmp")
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            shard.here().get_file(shard.path, str(draft))
            draft.replace(kept)
    return kept
