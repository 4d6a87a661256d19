"""Going on with a run: which run, from which checkpoint, and what may be changed on the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mmssl.config.check import check
from mmssl.config.compose import ConfigError, compose
from mmssl.config.files import CONF
from mmssl.registry import suggest
from mmssl.run import checkpoints, directory, sharded

# What may change without changing the past. Longer runs keep their planned schedules and hold the last value.
FREE = (
    "trainer.devices", "trainer.nodes", "trainer.accelerator", "trainer.strategy", "trainer.accumulate",
    "trainer.checkpoint_every", "trainer.checkpoint_minutes", "trainer.sharded_checkpoints",
    "trainer.timeout_minutes", "trainer.restarts", "trainer.max_steps", "trainer.max_epochs",
    "data.workers", "data.root", "data.source.copies", "data.source.storage", "logger",
)  # fmt: skip


def newest(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The run's newest checkpoint to go on from, and its content, tensors left on disk; None where there is none.

    A file with weights only, put together of the pieces of several ranks, is none.
    """
    found = []
    for name in ("last", "last.ckpt", "previous.ckpt"):
        path = run / "checkpoints" / name
        try:
            if name == "last" and sharded.there(path):
                path = sharded.find(path)
                content = sharded.extra(path)
            elif path.is_file():
                content = checkpoints.read(path, lazy=True)
            else:
                continue
            checkpoints.ours(content, path)
            found.append((path, content))
        except ConfigError as error:
            print(f"mmssl: {error}", file=sys.stderr)
    whole = [one for one in found if "optimizer_states" in one[1]]
    return max(whole, key=lambda one: one[1]["global_step"], default=None)


def take_over(checkpoint: tuple[Path, dict[str, Any]], strategy: str, data: Any, run: Path | None) -> None:
    """Checks that a run can go on from a checkpoint, and gives the data their facts.

    Raises:
        ConfigError: for other data, or pieces that the strategy does not read.
    """
    path, own = checkpoint[0], checkpoint[1]["mmssl"]
    if path.is_dir() and strategy != "fsdp":
        raise ConfigError(
            f"trainer.strategy={strategy}: {path} is in pieces, which trainer.strategy=fsdp reads, on any number of "
            "ranks (trainer.devices=1 too)"
        )
    if data.fingerprint != own["fingerprint"]:
        raise ConfigError(
            f"data.root: the data are not those that {run} was trained on (fingerprint {data.fingerprint}, was "
            f"{own['fingerprint']}). Give their new place with data.root=..., or begin a new run."
        )
    data.use(own["facts"])


def prepared(run: Path, overrides: list[str]) -> dict[str, Any]:
    """The configuration that a run goes on with.

    Args:
        run: its directory.
        overrides: `key=value`, of `FREE` only.

    Raises:
        ConfigError: for a directory that is no run's, a run that is done, or a key that would change the past.
    """
    if not directory.is_run(run):
        near = [path.name for path in run.parent.glob("*")] if run.parent.is_dir() else []
        raise ConfigError(
            f"{run} is no run's directory{suggest(run.name, near)}. `mmssl runs` lists the runs there are."
        )
    tree = yaml.safe_load((run / "config.yaml").read_text())
    before = (tree["trainer"].get("max_steps"), tree["trainer"].get("max_epochs"))
    for override in overrides:
        _change(tree, override)
    longer = (tree["trainer"].get("max_steps"), tree["trainer"].get("max_epochs"))
    for name, old, new in zip(("max_steps", "max_epochs"), before, longer, strict=True):
        if new is not None and (old is None or new < old):
            raise ConfigError(f"trainer.{name}={new}: a run can be made longer, not shorter; it was set to {old}")
    check(tree)
    if directory.read_summary(run)["status"] == "completed" and before == longer:
        raise ConfigError(f"{run} is completed; give it a longer trainer.max_steps or trainer.max_epochs to go on")
    return tree


def _change(tree: dict[str, Any], override: str) -> None:
    """Sets one key of a run's configuration.

    Raises:
        ConfigError: for a key that is not free.
    """
    key, equals, word = override.partition("=")
    if not equals or not any(key == free or key.startswith(f"{free}.") for free in FREE):
        raise ConfigError(
            f"{override!r} would change the past of this run, or is no key=value{suggest(key, FREE)}. `resume` takes "
            f"{', '.join(FREE)}; for all else begin a new run, with init_from=RUN/checkpoints/last.ckpt if you like."
        )
    value = yaml.safe_load(word)
    if key.split(".")[0] == "logger":
        said = [override] if key == "logger" else [f"logger={key.split('.')[1]}", override]
        tree["logger"] = (tree.get("logger") or {}) | compose(str(CONF / "empty.yaml"), said)["logger"]
    elif key == "data.root":
        tree["data"] = _moved(tree["data"], str(tree["data"]["root"]), str(value))
    else:
        *above, name = key.split(".")
        node = tree
        for step in above:
            if not isinstance(node.get(step), dict):
                node[step] = {}
            node = node[step]
        node[name] = value


def _moved(node: Any, old: str, new: str) -> Any:
    """A configuration in which every path below the old root lies below the new one."""
    if isinstance(node, dict):
        return {key: _moved(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [_moved(value, old, new) for value in node]
    if isinstance(node, str) and (node == old or node.startswith(f"{old}/")):
        return new + node[len(old) :]
    return node


@contextlib.contextmanager
def alone(run: Path) -> Iterator[None]:
    """Keeps a second process from writing into a run's directory, as long as this one lives.

    Raises:
        ConfigError: when another process has it.
    """
    import fcntl

    with (run / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"{run} is being trained by another process ({file.read().strip()}). Wait for it, or stop it first."
            ) from error
        except OSError:  # file systems without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        for left in run.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        yield


def remembered(tree: dict[str, Any]) -> Path | None:
    """The run that this Slurm job began with this configuration before it was queued again; None for a new job."""
    file = _memory(tree)
    if file is None or not file.exists():
        return None
    said = json.loads(file.read_text())
    run = Path(said["run"])
    return run if said["restarts"] < _restarts() and directory.is_run(run) else None


def remember(tree: dict[str, Any], run: Path) -> None:
    """Notes which run this Slurm job works on."""
    if (file := _memory(tree)) is not None:
        directory.write_json(file, {"run": str(run.resolve()), "restarts": _restarts()})


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _memory(tree: dict[str, Any]) -> Path | None:
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return directory.root(tree["run"]["root"]) / ".jobs" / f"{job}-{digest}.json"
