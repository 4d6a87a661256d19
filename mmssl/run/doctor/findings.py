"""What a check says, and what it knows of the run that is meant."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mmssl.run.trainer import Settings

LEVELS = ("ok", "note", "warning", "error")
"""All is well; worth knowing; will cost time or may fail; will fail."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: of `LEVELS`.
        found: what there is.
        remedy: what to do; empty where nothing has to be done.
    """

    level: str
    found: str
    remedy: str = ""


def ok(found: str) -> Finding:
    """All is well."""
    return Finding("ok", found)


def note(found: str, remedy: str = "") -> Finding:
    """Worth knowing."""
    return Finding("note", found, remedy)


def warning(found: str, remedy: str) -> Finding:
    """Will cost time, or may fail."""
    return Finding("warning", found, remedy)


def error(found: str, remedy: str) -> Finding:
    """A run will fail."""
    return Finding("error", found, remedy)


@dataclass
class Case:
    """The run that is meant, if any, and the environment it will meet.

    Args:
        tree: a checked configuration; None where the machine alone is meant.
        settings: its trainer, or the defaults.
        environ: environment variables.
    """

    tree: dict[str, Any] | None
    settings: Settings
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @cached_property
    def data(self) -> Any:
        """The data of the run; None without one.

        Raises:
            ConfigError: for data that cannot be read.
        """
        from mmssl.config import build

        return None if self.tree is None else build.data(self.tree)

    @cached_property
    def workers(self) -> int:
        """Worker processes of one rank's loader; 0 without a run, or where its data cannot be read."""
        if self.tree is None:
            return 0
        said = self.tree["data"].get("workers", "auto")
        if said != "auto":
            return int(said)
        try:
            share = self.data._workers(self.data.dataset("train"))
        except (ValueError, OSError):
            return 0
        return min(share, max(1, cores() // self.here - 1)) if share else 0

    @property
    def here(self) -> int:
        """Ranks on this machine: those that were started, else those that the settings ask for."""
        for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
            if self.environ.get(name, "").isdigit():
                return int(self.environ[name])
        if isinstance(self.settings.devices, int):
            return self.settings.devices
        import torch

        return max(1, torch.cuda.device_count()) if self.settings.gpus else 1


Check = Callable[[Case], Iterable[Finding]]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
