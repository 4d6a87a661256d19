"""A sweep's directory as data: its jobs, how each stands, and their order by score.

`sweep.json` is written by the process that sweeps, `job-N.json` by job N, and `N/` holds that job's run. Reading puts
the three together, so that what is shown is true while jobs run, and after they or the sweep were killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.report.reading import Run, Score

# What a job that ended without a last word of its own is called, by Slurm's name of its state.
_ENDS = {
    "CANCELLED": "cancelled", "TIMEOUT": "timeout", "DEADLINE": "timeout", "OUT_OF_MEMORY": "out_of_memory",
    "FAILED": "failed", "NODE_FAIL": "failed", "BOOT_FAIL": "failed", "PREEMPTED": "failed", "REVOKED": "failed",
}  # fmt: skip
ENDED = frozenset([*_ENDS, "COMPLETED"])
"""States that a job of a queue does not leave."""


def is_sweep(path: Path) -> bool:
    """Whether a directory is a sweep's."""
    return (path / "sweep.json").is_file()


def status_of(own: str | None, queue: str | None) -> str:
    """How a job stands.

    Args:
        own: the status that the job itself wrote last; None where it wrote nothing.
        queue: the state of the job in its queue, in Slurm's words; None for a job without one.

    Returns:
        `pending`, `running`, or an end: `completed`, `diverged`, `failed`, `stopped`, `cancelled`, `timeout` or
        `out_of_memory`.
    """
    if own in ("completed", "diverged", "failed"):
        return own
    if queue is None:
        return own or "pending"
    if queue in _ENDS:
        return _ENDS[queue]
    if queue == "COMPLETED":  # a job that is over, and was still running by its own account, was killed
        return "stopped" if own == "stopped" else "failed"
    return "running" if queue in ("RUNNING", "COMPLETING") else "pending"


def read_sweep(folder: Path) -> dict[str, Any]:
    """What `sweep.json` says, with every job as it stands now.

    Returns:
        `path`, `status`, `overrides`, `score`, `direction`, and under `jobs` one row per job: `job`, `overrides`,
        `status`, `run` (its directory, None before it has one), `value` (of the score, None without one), `recipe`,
        `steps`, `train`, `eval` and `health` as far as its run has written them, and `why` where it did not complete.
    """
    return renewed(folder, _json(folder / "sweep.json"))


def renewed(folder: Path, sweep: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a sweep, with every job as its own files say by now."""
    rows = {int(row["job"]): row for row in sweep.get("jobs", [])}
    for file in folder.glob("job-*.json"):
        rows.setdefault(int(file.stem.partition("-")[2]), {})
    jobs = [_row(folder, number, rows[number], sweep.get("score")) for number in sorted(rows)]
    return dict(sweep) | {"jobs": jobs}


def _row(folder: Path, number: int, noted: Mapping[str, Any], score: str | None) -> dict[str, Any]:
    own = _json(folder / f"job-{number}.json")
    run = _run(folder / str(number))
    summary = {} if run is None else _json(run / "summary.json")
    row: dict[str, Any] = {"job": number, "overrides": [], "run": None, "value": None} | dict(noted) | own
    row["status"] = status_of(own.get("status"), noted.get("queue"))
    if row["status"] not in ("failed", "diverged", "stopped") or not row.get("why"):
        row["why"] = _why(row, summary)
    if run is not None:
        row["run"] = str(run)
        row |= {key: summary[key] for key in ("recipe", "steps", "train") if key in summary}
        row["eval"] = {name: entry.get("value") for name, entry in summary.get("eval", {}).items()}
        row["health"] = summary.get("health", {}).get("verdict")
        row["value"] = pick(summary, score)
    return {key: value for key, value in row.items() if key != "why" or value}


def _why(row: Mapping[str, Any], summary: Mapping[str, Any]) -> str | None:
    if row["status"] in ("completed", "running"):
        return None
    if row["status"] in ("diverged", "stopped"):
        return summary.get("why")
    said = f"job {row['id']}: {row.get('queue')}" if "id" in row else row.get("queue")
    reason = row.get("reason")
    return f"{said} ({reason})" if said and reason and reason != "None" else said


def _run(folder: Path) -> Path | None:
    """The newest run directory below a job's folder; a job has one, unless somebody ran something there again."""
    found = sorted(folder.glob("**/summary.json"), key=lambda file: file.parent.name)
    return found[-1].parent if found else None


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def pick(summary: Mapping[str, Any], name: str | None) -> float | None:
    """A number of `summary.json` by its dotted path, such as `eval.knn.value` or `train.loss`.

    Args:
        summary: the summary.
        name: the path; None for the value of the first score.
    """
    if name is None:
        scores = Run(Path(), dict(summary)).scores
        return scores[0].value if scores else None
    found: Any = summary
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else None


def scores_of(run: Path) -> list[Score]:
    """Every score of a run, by its summary alone."""
    return Run(Path(), _json(run / "summary.json")).scores


def lower_is_better(sweep: Mapping[str, Any]) -> bool:
    """Whether the smaller value of the score comes first: as the sweep says, else as its metric is meant."""
    if sweep.get("direction"):
        return sweep["direction"] == "minimize"
    for row in sweep["jobs"]:
        scores = scores_of(Path(row["run"])) if row["run"] else []
        if scores:
            return not scores[0].higher_is_better
    return False


def ranked(sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the jobs, the best first; those without a value last, in the order of their numbers."""
    sign = 1 if lower_is_better(sweep) else -1
    return sorted(sweep["jobs"], key=lambda r: (r["value"] is None, sign * (r["value"] or 0), r["job"]))


def axes(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """What varies between jobs: keys of their overrides, and the value of each for every row.

    >>> axes([{"overrides": ["++optim.lr=1e-4", "seed=0"]}, {"overrides": ["++optim.lr=3e-4", "seed=0"]}])
    {'optim.lr': ['1e-4', '3e-4']}
    """
    said = [dict(_pair(override) for override in row["overrides"]) for row in rows]
    keys = dict.fromkeys(key for one in said for key in one)
    columns = {key: [one.get(key) for one in said] for key in keys}
    return {key: values for key, values in columns.items() if len(set(values)) > 1}


def _pair(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many jobs have each status."""
    statuses = [row["status"] for row in rows]
    return {status: statuses.count(status) for status in dict.fromkeys(statuses)}
