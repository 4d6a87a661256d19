"""The runs there are: a table from their summaries, or of a sweep's jobs with the best first."""

from __future__ import annotations

import json
from typing import Any

from mmssl.report.sweep import axes, is_sweep, ranked, read_sweep
from mmssl.run.directory import root


def find(folder: str | None = None) -> list[dict[str, Any]]:
    """Every run under a folder, newest last: path, recipe, status, steps, loss, verdict and scores.

    Stages of runs are listed where their folder, `RUN/stages`, is asked for.

    Args:
        folder: where to look; MMSSL_RUNS or `runs/` by default. A sweep's directory gives its jobs, the best first,
            also those without a run, each with `job`, its `value` of the score and, under `varied`, what sets it apart.
    """
    home = root(folder)
    if is_sweep(home):
        return _jobs(ranked(read_sweep(home)))
    rows = []
    for file in sorted(home.rglob("summary.json"), key=lambda file: file.parent.name):
        if "stages" in file.relative_to(home).parts:
            continue
        try:
            summary = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        rows.append(
            {
                "path": str(file.parent),
                "recipe": summary.get("recipe"),
                "status": summary.get("status"),
                "steps": summary.get("steps"),
                "loss": summary.get("train", {}).get("loss"),
                "verdict": summary.get("health", {}).get("verdict"),
                "eval": {name: score.get("value") for name, score in summary.get("eval", {}).items()},
            }
        )
    return rows


def _jobs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    varied = axes(rows)
    return [
        {
            "job": row["job"],
            "varied": {key: values[i] for key, values in varied.items()},
            "path": row["run"],
            "recipe": row.get("recipe"),
            "status": row["status"],
            "steps": row.get("steps"),
            "loss": row.get("train", {}).get("loss"),
            "verdict": row.get("health"),
            "value": row["value"],
            "eval": row.get("eval", {}),
        }
        for i, row in enumerate(rows)
    ]


def text(rows: list[dict[str, Any]]) -> str:
    """The runs as an aligned table."""
    if not rows:
        return "no runs here; `mmssl pretrain image/mae data=sample` makes one"
    scores = sorted({name for row in rows for name in row["eval"]})
    varied = [key for key in rows[0].get("varied", {}) if key != "recipe"]
    jobs = ["job"] if "job" in rows[0] else []
    lines = [[*jobs, "recipe", *varied, "status", "steps", "loss", "verdict", *scores, "path"]]
    for row in rows:
        said = [row[key] for key in jobs] + [row["recipe"]] + [row["varied"][key] for key in varied]
        said += [row[key] for key in ("status", "steps", "loss", "verdict")]
        cells = [*said, *(row["eval"].get(name) for name in scores), row["path"]]
        lines.append(["-" if c is None else f"{c:.4f}" if isinstance(c, float) else str(c) for c in cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
