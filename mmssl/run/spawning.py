"""One run in several processes of this machine: starting them.

Ranks are started by torch's elastic agent, each as `python -m mmssl.run.worker FOLDER` with one frozen configuration:
never from the command line again, which in a sweep would be the whole sweep.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmssl.config.compose import ConfigError
from mmssl.run.launch import FOLDER


class RunFailed(RuntimeError):
    """A run that ended in another process; what went wrong was printed there."""


def spawn(tree: dict[str, Any], command: list[str], run: Path | None, processes: int, restarts: int) -> Path:
    """Starts the processes of a run on this machine and waits for them.

    Args:
        tree: a checked configuration.
        command: what the user said.
        run: the run to go on with; None for a new one.
        processes: how many.
        restarts: how often all are started again, from the last checkpoint, after one was lost.

    Returns:
        The run's directory.

    Raises:
        ConfigError: what a rank refused.
        RunFailed: when a rank was lost and nothing could go on.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="mmssl-") as name:
        folder = Path(name)
        job = {"tree": tree, "command": command, "run": None if run is None else str(run)}
        (folder / "job.json").write_text(json.dumps(job))
        config = LaunchConfig(
            1, 1, processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint=f"127.0.0.1:{_port()}",
            local_addr="127.0.0.1", max_restarts=restarts, signals_to_handle="SIGTERM,SIGINT,SIGHUP",
        )  # fmt: skip
        why = ""
        with _environment(folder, processes), _forwarding(folder):
            try:
                elastic_launch(config, sys.executable)("-m", "mmssl.run.worker", name)
            except SignalException:
                pass  # the ranks have got it too, and have stopped
            except ChildFailedError as error:
                lost, failure = error.get_first_failure()
                why = f"rank {lost} ended with {failure.signal_name() if failure.exitcode < 0 else failure.exitcode}"
        said = {file.name: file.read_text() for file in folder.glob("*") if file.name in ("run", "refused")}
    found = Path(said["run"]) if "run" in said else run
    if found is not None:
        _failed(found, said.get("refused") or why)
    if "refused" in said:
        raise ConfigError(said["refused"])
    if found is None:
        raise RunFailed(f"{why or 'all processes were stopped'} before the run began; its own words stand above.")
    if why:
        hung = any(file.stat().st_size for file in found.glob("stacks/*"))
        stacks = f" Where each rank hung stands in {found}/stacks." if hung else ""
        raise RunFailed(
            f"{why}; its own words stand above.{stacks} Nothing before the last checkpoint is lost: "
            f"mmssl resume {found}"
        )
    return found


def _failed(run: Path, why: str) -> None:
    """Writes down why a run ended, where its first rank could not."""
    from mmssl.run.directory import read_summary, write_json

    summary = read_summary(run)
    if why and summary["status"] == "running":
        write_json(run / "summary.json", summary | {"status": "failed", "why": why})


def _port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def _environment(folder: Path, processes: int) -> Iterator[None]:
    """What the ranks inherit: their folder, and a fair share of the cores."""
    said = {FOLDER: str(folder)}
    if "OMP_NUM_THREADS" not in os.environ:
        said["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    os.environ.update(said)
    try:
        yield
    finally:
        for name in said:
            os.environ.pop(name)


@contextlib.contextmanager
def _forwarding(folder: Path) -> Iterator[None]:
    """Passes on the signals that torch's agent does not know."""

    def forward(number: int, _: Any) -> None:
        for file in folder.glob("pid.*"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
