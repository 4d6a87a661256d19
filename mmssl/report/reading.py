"""Reads a run's directory as it is: what is missing or broken becomes a note, never an error."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

PICTURES = ("views", "masks", "reconstructions", "neighbours", "embedding")
"""Pictures in the order they are shown; others follow by name."""

BASELINES = ("random_init", "raw_input")
_LOWER_IS_BETTER = {"rmse", "mse", "mae", "error", "loss", "nll", "eer", "wer", "perplexity", "brier", "ece"}


@dataclass(frozen=True)
class Column:
    """One measured quantity: values (y) at steps (x), empty cells left out, non-finite values kept."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    @property
    def leaf(self) -> str:
        """The part of its name after the last slash."""
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Score:
    """One evaluation result, with the baselines it must beat."""

    protocol: str
    metric: str
    value: float | None
    interval: tuple[float, float] | None
    baselines: dict[str, tuple[float | None, tuple[float, float] | None]]
    why: dict[str, str]
    higher_is_better: bool = True
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """One file of `pictures/`."""

    name: str
    file: Path
    title: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Run:
    """All that a report shows of a run; empty where the run has not written it."""

    path: Path
    summary: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    metrics: dict[str, Column] = field(default_factory=dict)
    timing: dict[str, Column] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def recipe(self) -> str:
        """The recipe's name, or where it stood in `runs/<modality>/<method>/`."""
        return str(self.summary.get("recipe") or "/".join(self.path.parts[-3:-1]) or self.path.name)

    @property
    def status(self) -> str:
        """`summary.json`'s status; `running` where that file is not yet there."""
        return str(self.summary.get("status") or "running")

    @property
    def health(self) -> dict[str, Any]:
        """The health block, empty where there is none."""
        return _block(self.summary, "health")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The resolved configuration as nested dictionaries; empty where it cannot be read."""
        import yaml

        try:
            found = yaml.safe_load(self.config)
        except yaml.YAMLError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def scores(self) -> list[Score]:
        """Every evaluation result."""
        found = _block(self.summary, "eval").items()
        return [score for name, value in found if isinstance(value, dict) for score in _scores(str(name), value)]


def read(path: Path) -> Run:
    """Reads a run's directory.

    Raises:
        ValueError: when there is no such directory.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(
            f"report: {path} is not a run's directory. Give the directory that `mmssl pretrain` printed, such as "
            "runs/image/mae/<timestamp>-<id>; `mmssl runs` lists them."
        )
    notes: list[str] = []
    config = _text(path / "config.yaml", notes)
    return Run(
        path.resolve(),
        *(_json(path / f"{name}.json", notes) for name in ("summary", "environment", "data")),
        config=config or "",
        metrics=_columns(path / "metrics.csv", notes) | _apart(path / "scores.csv", notes),
        timing=_columns(path / "timing.csv", notes),
        pictures=tuple(_pictures(path / "pictures", notes)),
        notes=tuple(notes),
    )


def _block(parent: dict[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _text(file: Path, notes: list[str]) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        notes.append(f"{file.name} is not there.")
    except OSError as error:
        notes.append(f"{file.name} could not be read ({error.strerror}).")
    return None


def _json(file: Path, notes: list[str]) -> dict[str, Any]:
    content = _text(file, notes)
    if content is None:
        return {}
    try:
        value = json.loads(content)
    except ValueError as error:
        notes.append(f"{file.name} could not be read: it is not valid JSON ({error}).")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{file.name} could not be read: it holds no object.")
        return {}
    return value


def _columns(file: Path, notes: list[str]) -> dict[str, Column]:
    """Columns over the column `step` (else over the row's number); a row cut short keeps the cells it has."""
    content = _text(file, notes)
    if content is None:
        return {}
    rows = csv.reader(io.StringIO(content.replace("\0", "")))
    header = next(rows, [])
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in header if name}
    bad = 0
    for count, row in enumerate(rows):
        cells = dict(zip(header, row, strict=False))
        step = _float(cells.get("step", str(count)))
        for name, cell in cells.items():
            value = _float(cell)
            if value is None or step is None or not math.isfinite(step):
                bad += bool(cell.strip())
            elif name:
                found[name][0].append(step)
                found[name][1].append(value)
    if bad:
        notes.append(f"{file.name}: {bad} {'cell is' if bad == 1 else 'cells are'} not a number and left out.")
    columns = (Column(name, tuple(x), tuple(y)) for name, (x, y) in found.items() if y)
    return {column.name: column for column in columns if column.name not in ("step", "epoch")}


def _apart(file: Path, notes: list[str]) -> dict[str, Column]:
    """What a process apart from training has measured, where there was one."""
    return {name: column for name, column in _columns(file, notes).items() if name != "n"} if file.exists() else {}


def _float(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _pictures(folder: Path, notes: list[str]) -> Iterable[Picture]:
    if not folder.is_dir():
        return
    said = _json(folder / "pictures.json", notes) if (folder / "pictures.json").exists() else {}
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix in (".png", ".svg")}
    order = [*PICTURES, *(name for name in said if name not in PICTURES)]
    for name in sorted(files, key=lambda name: (order.index(name) if name in order else len(order), name)):
        about = _block(said, name)
        title = str(about.get("title") or name.replace("_", " ").capitalize())
        caption = str(about.get("caption") or "")
        yield Picture(name, files[name], title, caption, str(about.get("alt") or caption or title))


def _scores(protocol: str, entry: dict[str, Any]) -> Iterable[Score]:
    """An entry's score, those of its further metrics, and the points of its curve."""
    yield _score(protocol, entry)
    for name, more in _block(entry, "also").items():
        if isinstance(more, dict):
            yield _score(f"{protocol} {name}", more)
    curve = entry.get("curve")
    for point in curve if isinstance(curve, list) else []:
        if isinstance(point, dict):
            yield _score(f"{protocol} at {point.get('at')}", point)


def _score(protocol: str, entry: dict[str, Any]) -> Score:
    others = [key.removesuffix("_ci95") for key in entry if key.endswith("_ci95")]
    others = [name for name in others if not name.endswith("_difference")]
    names = [*BASELINES, *(name for name in others if name not in BASELINES)]
    metric = str(entry.get("metric") or "score")
    said, why = entry.get("why"), {}
    for name in names:
        reason = said.get(name) if isinstance(said, dict) else said
        why[name] = str(entry.get(f"{name}_why") or reason or "")
    worse = entry.get("better") == "lower" or bool(_LOWER_IS_BETTER & set(re.split(r"\W|_", metric.lower())))
    return Score(
        protocol,
        metric,
        _value(entry.get("value")),
        _pair(entry.get("ci95")),
        {name: (_value(entry.get(name)), _pair(entry.get(f"{name}_ci95"))) for name in names},
        why,
        not worse,
        {name: pair for name in names if (pair := _pair(entry.get(f"{name}_difference_ci95"))) is not None},
    )


def _value(value: object) -> float | None:
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real else None  # type: ignore[arg-type]


def _pair(value: object) -> tuple[float, float] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = _value(value[0]), _value(value[1])
    return None if low is None or high is None else (low, high)
