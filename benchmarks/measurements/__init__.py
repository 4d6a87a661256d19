"""Small experiments of papers that measure: `python -m benchmarks.measurements.NAME`, a minute each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "measurements"


def told(name: str, paper: str, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Prints rows as a table and leaves them in `docs/results/measurements/NAME.json`, with their command."""
    columns = list(rows[0])
    print(" ".join(f"{column:>14}" for column in columns))
    for row in rows:
        print(" ".join(f"{_word(row[column]):>14}" for column in columns))
    for key, value in more.items():
        print(f"{key}: {value}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks.measurements.{name}"
    record = {"command": command, "paper": paper, "rows": [dict(row) for row in rows], **more}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def _word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
