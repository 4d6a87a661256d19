"""The directory of a run: made atomically, never shared, every file written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmssl.config.compose import ConfigError
from mmssl.registry import plugins
from mmssl.report.markup import replace_file


def root(given: str | None = None) -> Path:
    """Where runs go: `run.root`, else MMSSL_RUNS, else `runs/` under the working directory."""
    return Path(given or os.environ.get("MMSSL_RUNS") or "runs").expanduser()


def create(parent: Path) -> Path:
    """A new directory `<timestamp>-<id>` under `parent`; the id keeps parallel jobs apart.

    Raises:
        ConfigError: when nothing can be written there.
    """
    for _ in range(10):
        path = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            (path / "checkpoints").mkdir()
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(
                f"run.root: the run directory {path} cannot be made ({error.strerror or error}). Give a folder that "
                "you may write to with run.root=DIR or the environment variable MMSSL_RUNS."
            ) from error
    raise ConfigError(f"run.root: no free directory name under {parent} after ten tries")


def write(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a kill, sees the old content or the new, never a part."""
    replace_file(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole; numbers that are not finite become null."""
    write(path, json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def write_config(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes a resolved configuration as YAML."""
    write(path, yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=120))


def environment(command: list[str]) -> dict[str, Any]:
    """Versions, machine, command and git state of a run."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("mmssl", "torch", "torchvision", "torchaudio", "lightning", "timm", "hydra-core", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": found,
        "plugins": plugins(),
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """Commit of the working directory and whether it has changes; None outside a repository."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "dirty": bool(ask("status", "--porcelain"))}


def opened(path: Path, tree: Mapping[str, Any], command: list[str]) -> None:
    """Makes a directory a run's, whose work has not begun."""
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_config(path / "config.yaml", tree)
    write_json(path / "environment.json", environment(command))
    write_json(path / "summary.json", summary(path, tree))


def summary(path: Path, tree: Mapping[str, Any], **said: Any) -> dict[str, Any]:
    """What `summary.json` says of a run that has trained no step, with what is known beside."""
    return {
        "verb": "pretrain", "schema": 1, "status": "running", "steps": 0, "planned_steps": None, "wall_s": 0.0,
        "train": {"loss": None, "first_loss": None}, "throughput": {}, "eval": {},
        "health": {"verdict": "unknown", "causes": [], "remedies": []}, "skipped": {"count": 0, "files": []},
        **said, "recipe": tree["recipe"], "run": str(path),
    }  # fmt: skip


def is_run(path: Path) -> bool:
    """Whether a directory is a run's."""
    return (path / "config.yaml").is_file() and (path / "summary.json").is_file()


def read_summary(path: Path) -> dict[str, Any]:
    """A run's summary."""
    return json.loads((path / "summary.json").read_text())
