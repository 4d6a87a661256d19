"""The jobs of a sweep: what one job does, and the record of all of them."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from mmssl.report.sweep import counts, ranked, read_sweep, renewed
from mmssl.run.directory import write_json


def run_job(folder: Path, number: int, overrides: list[str]) -> None:
    """One job: an ordinary run below `folder/number`, where no other job writes. A failure sinks nothing else.

    `job-N.json` says how the job stands; a job that is queued again finds its run directory and goes on in it.

    Args:
        folder: the sweep's directory.
        number: the job's number in the sweep.
        overrides: as on the command line, the recipe among them.
    """
    from mmssl.api import pretrain

    first = os.environ.get("SLURM_PROCID", "0") == "0"  # the others of a job on several ranks write nothing
    row: dict[str, Any] = {"job": number, "overrides": overrides, "host": socket.gethostname()}

    def say(status: str, why: str | None = None) -> None:
        if first:
            write_json(folder / f"job-{number}.json", row | {"status": status} | ({"why": why} if why else {}))

    say("running")
    recipe = next(o.partition("=")[2] for o in overrides if o.startswith("recipe="))
    rest = [o for o in overrides if not o.startswith(("recipe=", "run.root=", "++run.root="))]
    try:
        run = pretrain(recipe, [*rest, f"run.root={folder / str(number)}"])
        say(run.summary["status"], run.summary.get("why"))
    except Exception as error:
        say("failed", f"{type(error).__name__}: {error}")
        traceback.print_exc()


class Job:
    """`run_job` as submitit wants it: able to be queued again, since all state is on disk."""

    def __call__(self, folder: Path, number: int, overrides: list[str]) -> None:
        """Runs the job."""
        run_job(folder, number, overrides)

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit is to submit when a signal reaches the job while nothing trains: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


class Record:
    """`sweep.json`, kept true by the one process that sweeps.

    Args:
        folder: the sweep's directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> dict[str, Any]:
        """The sweep as it stands now."""
        return read_sweep(self.folder)

    def write(self, noted: dict[int, dict[str, Any]] | None = None, **facts: Any) -> dict[str, Any]:
        """Writes the sweep as it stands now.

        Args:
            noted: what is known of jobs from elsewhere, by their numbers: `overrides`, `id`, `queue`, `reason`, `log`.
            **facts: keys of the sweep itself.

        Returns:
            What was written.
        """
        sweep = self.read()
        rows = {row["job"]: row for row in sweep["jobs"]}
        for number, row in (noted or {}).items():
            rows[number] = rows.get(number, {"job": number}) | row
        sweep = renewed(self.folder, sweep | facts | {"jobs": list(rows.values())})
        best = next((row for row in ranked(sweep) if row["value"] is not None), None)
        sweep["counts"] = counts(sweep["jobs"])
        sweep["best"] = None if best is None else {key: best[key] for key in ("job", "overrides", "value", "run")}
        write_json(self.folder / "sweep.json", sweep)
        return sweep


def tell(line: str) -> None:
    """One line for whoever watches the sweep."""
    print(f"sweep: {line}", file=sys.stderr, flush=True)
