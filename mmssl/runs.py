"""The runs there are: a table from their summaries, or of a sweep's jobs with the best first."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmssl.config.compose import ConfigError
from mmssl.registry import suggest
from mmssl.report.sections import flatten
from mmssl.report.sweep import axes, is_sweep, ranked, read_sweep, scores_of
from mmssl.run.directory import root

_SAID = ("recipe", "status", "verdict")  # what a row tells, without its configuration
_NUMBERS = ("steps", "loss")


def find(
    folder: str | None = None, where: Mapping[str, str] | None = None, sort: str | None = None
) -> list[dict[str, Any]]:
    """Every run under a folder, newest last: path, recipe, status, steps, loss, verdict and scores.

    Stages of runs are listed where their folder, `RUN/stages`, is asked for.

    Args:
        folder: where to look; MMSSL_RUNS or `runs/` by default. A sweep's directory gives its jobs, the best first,
            also those without a run, each with `job`, its `value` of the score and, under `varied`, what sets it apart.
        where: only runs of these: `recipe`, `status`, `verdict`, or any key of the configuration, with a value, which
            may hold wildcards (`image/*`). Keys of the configuration then stand under `varied`.
        sort: a score, `loss` or `steps`: best first, runs without it last.

    Raises:
        ConfigError: for a key that no run has, or a score that none of those found has.
    """
    home = root(folder)
    rows = _jobs(ranked(read_sweep(home))) if is_sweep(home) else _rows(home)
    said, keys = ({k: v for k, v in (where or {}).items() if (k in _SAID) == own} for own in (True, False))
    rows = [row for row in rows if all(fnmatch.fnmatchcase(str(row[key]), value) for key, value in said.items())]
    rows = _only(rows, keys) if keys else rows
    return rows if sort is None or not rows else _best_first(rows, sort)


def _rows(home: Path) -> list[dict[str, Any]]:
    """The runs below a folder that is no sweep's."""
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


def _only(rows: Sequence[dict[str, Any]], where: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows whose configuration has these values, which are shown beside; each is read once."""
    found = [(row, _settings(row)) for row in rows]
    for key, value in where.items():
        if found and not any(key in settings for _, settings in found):
            known = {*_SAID, *(name for _, settings in found for name in settings)}
            raise ConfigError(f"no run here has the key {key!r}{suggest(key, known)}")
        found = [(row, settings) for row, settings in found if key in settings and _same(settings[key], value)]
    return [row | {"varied": row.get("varied", {}) | {k: settings[k] for k in where}} for row, settings in found]


def _settings(row: Mapping[str, Any]) -> dict[str, str]:
    """The configuration of a run by dotted keys; empty where there is none."""
    try:
        return dict(flatten(yaml.safe_load((Path(row["path"]) / "config.yaml").read_text())))
    except (OSError, TypeError, yaml.YAMLError):  # a job that has no run yet, or a run that is just being made
        return {}


def _same(text: str, asked: str) -> bool:
    """Whether a value is the one asked for: as text with wildcards, or as a number, however it is written."""
    try:
        return float(text) == float(asked)
    except ValueError:
        return fnmatch.fnmatchcase(text, asked)


def _best_first(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The rows by a number of theirs, the best first."""
    value = {id(row): row[name] if name in _NUMBERS else row["eval"].get(name) for row in rows}
    if all(one is None for one in value.values()):
        known = {*_NUMBERS, *(score for row in rows for score in row["eval"])}
        raise ConfigError(f"no run here has the score {name!r}{suggest(name, known)}")
    sign = 1 if name == "loss" or any(_less_is_better(row, name) for row in rows) else -1
    return sorted(rows, key=lambda row: (value[id(row)] is None, sign * (value[id(row)] or 0)))


def _less_is_better(row: Mapping[str, Any], name: str) -> bool:
    """What the summary of a run says of a score."""
    scores = scores_of(Path(row["path"])) if row["path"] and name in row["eval"] else []
    return any(score.protocol == name and not score.higher_is_better for score in scores)


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
