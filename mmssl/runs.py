"""The runs there are: a table from their summaries."""

from __future__ import annotations

import json
from typing import Any

from mmssl.run.directory import root


def find(folder: str | None = None) -> list[dict[str, Any]]:
    """Every run under a folder, newest last: path, recipe, status, steps, loss, verdict and scores.

    Args:
        folder: where to look; MMSSL_RUNS or `runs/` by default.
    """
    rows = []
    for file in sorted(root(folder).rglob("summary.json"), key=lambda file: file.parent.name):
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


def text(rows: list[dict[str, Any]]) -> str:
    """The runs as an aligned table."""
    if not rows:
        return "no runs here; `mmssl pretrain image/mae data=sample` makes one"
    scores = sorted({name for row in rows for name in row["eval"]})
    head = ["recipe", "status", "steps", "loss", "verdict", *scores, "path"]
    lines = [head]
    for row in rows:
        values = [row["recipe"], row["status"], row["steps"], row["loss"], row["verdict"]]
        cells = [*values, *(row["eval"].get(name) for name in scores), row["path"]]
        lines.append(["-" if c is None else f"{c:.4f}" if isinstance(c, float) else str(c) for c in cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
