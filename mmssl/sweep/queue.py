"""The states of Slurm's jobs, also on clusters without accounting, where submitit's own way (`sacct`) knows nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

# A queue keeps a job that ended for some minutes (MinJobAge); afterwards only accounting, where there is one, knows it.
GONE = ("COMPLETED", "no longer in the queue")
# Slurm itself puts a job that could not be started back into the queue like this, and never starts it by itself.
_HELD = ("launch failed requeued held", "DependencyNeverSatisfied")


def states(jobs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """State and reason of jobs, in Slurm's words.

    Args:
        jobs: ids as submitit gives them: `12`, or `12_0` for an element of an array.

    Returns:
        The pairs of all jobs; nothing at all while Slurm does not answer.
    """
    wanted = list(jobs)
    found = _squeue(sorted({job.partition("_")[0] for job in wanted}))
    if found is None:
        return {}
    missing = [job for job in wanted if job not in found]
    ended = _sacct(missing) if missing else {}
    return {job: _settled(*(found.get(job) or ended.get(job) or GONE)) for job in wanted}


def _settled(state: str, reason: str) -> tuple[str, str]:
    if state == "PENDING" and any(word.lower() in reason.replace("_", " ").lower() for word in _HELD):
        return "FAILED", reason
    return state, reason


def _squeue(ids: list[str]) -> dict[str, tuple[str, str]] | None:
    """All elements of arrays on lines of their own, ended jobs included; None while Slurm does not answer."""
    words = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(ids)}"]
    answer = _ask(words)
    if answer.returncode == 0:
        return _parsed(answer.stdout)
    if "invalid job id" in answer.stderr.lower():  # said of a single job that is no longer in the queue
        return {}
    print(f"sweep: squeue fails, asking again later ({answer.stderr.strip()})", file=sys.stderr, flush=True)
    return None


def _sacct(jobs: list[str]) -> dict[str, tuple[str, str]]:
    """What accounting knows; nothing where there is none."""
    words = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,Reason"]
    answer = _ask([*words, f"--jobs={','.join(jobs)}"])
    return _parsed(answer.stdout) if answer.returncode == 0 else {}


def _parsed(lines: str) -> dict[str, tuple[str, str]]:
    """Pairs by job, of lines `id|state|reason`; sacct may say `CANCELLED by 1000`."""
    rows = [line.strip().split("|") for line in lines.splitlines()]
    return {row[0]: (row[1].split()[0], row[2]) for row in rows if len(row) == 3 and row[1].strip()}


def _ask(words: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))
