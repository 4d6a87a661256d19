"""The one owner of signals while a run works: a signal is noted, all ranks agree on a step, and the run stops there.

State is found on disk and never depends on a signal: a process that is killed without one loses the steps since the
last checkpoint and nothing else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

# A cluster announces the end of a job's time with these: the job is to go on later.
_AGAIN = (signal.SIGUSR1, signal.SIGUSR2)
_HANDLED = (signal.SIGINT, signal.SIGTERM, *_AGAIN)


class Stopped(BaseException):
    """A signal came while nothing was being trained, so there is nothing to wait for."""


class Signals:
    """Takes SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 over, and gives them back at the end.

    SIGINT and SIGTERM ask the run to stop, SIGUSR1 and SIGUSR2 to stop and be queued again. A second SIGINT ends the
    process at once. Elsewhere than in the main thread, where Python allows no handlers, nothing is taken over.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.training = False  # whether somebody looks at `received` after every step
        self._before: dict[signal.Signals, Any] = {}

    @property
    def again(self) -> bool:
        """Whether the job asked to be queued again."""
        return self.received in _AGAIN

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _HANDLED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if not self.training:
            raise Stopped(self.received.name)
        # not print: a handler may run in the middle of another print
        os.write(2, f"\n{self.received.name}: stopping after this step, with a checkpoint\n".encode())


def requeue() -> bool:
    """Asks Slurm to queue this job again, where it is one.

    Returns:
        Whether it will run again. It then goes on in the same run directory, which it finds on disk.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        print(f"mmssl: job {job} could not be queued again ({problem}); use `mmssl resume`", file=sys.stderr)
    return not problem
