"""The parts of a report that are not numbers over time: what ran, how it is, what it saw, with which settings."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from mmssl.report import scores
from mmssl.report.markup import Markup, duration, join, number, tag
from mmssl.report.reading import Picture, Run

_STATUS = {"completed": "good", "running": "unknown", "stopped": "warn", "failed": "bad", "diverged": "bad"}
_VERDICT = {"healthy": "good", "warning": "warn", "collapsed": "bad", "diverged": "bad"}
_SIGN = {"good": "✓", "warn": "!", "bad": "✕", "unknown": "?"}
_SAID = {
    "healthy": "Healthy: no sign of collapse or divergence was found.",
    "warning": "Warning: something about this run deserves a look.",
    "collapsed": "Collapsed: the features no longer tell samples apart.",
    "diverged": "Diverged: the loss is no longer finite, or has run away.",
    "unknown": "Health is unknown: the monitors have not given a verdict.",
}
_MOST_SKIPPED = 200


def status_chips(run: Run) -> Markup:
    """Status and verdict; shape and words say what the colour says."""
    verdict = str(run.health.get("verdict") or "unknown")
    kind = _VERDICT.get(verdict, "unknown")
    status = tag("li", f"● {run.status}", class_=f"chip {_STATUS.get(run.status, 'unknown')}")
    health = tag("li", f"{_SIGN[kind]} health: {verdict}", class_=f"chip {kind}")
    return tag("ul", status, health, class_="chips", aria_label="Status and health")


def verdict(run: Run) -> Markup:
    """How the run ended and its health, with causes and remedies; coloured as the worse of the two."""
    name = str(run.health.get("verdict") or "unknown")
    kinds = {_VERDICT.get(name, "unknown"), _STATUS.get(run.status, "unknown")}
    kind = next(kind for kind in ("bad", "warn", "unknown", "good") if kind in kinds)
    items = [tag("li", finding(*pair)) for pair in findings(run.health)]
    error = run.summary.get("why")
    return tag(
        "div",
        tag("p", _state(run), class_="head") if _state(run) else None,
        tag("pre", str(error)) if error else None,
        tag("p", _SAID.get(name, f"Health: {name}."), class_=None if _state(run) else "head"),
        tag("ul", *items) if items else None,
        class_=f"card verdict {kind}",
    )


def finding(cause: str, remedy: str) -> str:
    """A cause and its remedy, either of which may be empty, as a sentence each."""
    return " ".join(part for part in (cause, f"Remedy: {remedy}" if remedy else "") if part)


def findings(health: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(cause, remedy) pairs.

    Args:
        health: `causes` is a list of texts or of `{"cause": ..., "remedy": ...}`; `remedies`, a list of texts, belongs
            to the causes one by one, and what is left over stands alone.
    """
    causes, remedies = (_list(health.get(key)) for key in ("causes", "remedies"))
    remedies = [str(remedy) for remedy in remedies]
    for cause in causes:
        if isinstance(cause, dict):
            name = cause.get("cause") or cause.get("name") or "A cause without a name."
            yield str(name), str(cause.get("remedy") or "")
        else:
            yield str(cause), remedies.pop(0) if remedies else ""
    for remedy in remedies:
        yield "", remedy


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value in (None, "") else [value]


def _state(run: Run) -> str:
    if not run.summary:
        return "The run has not written its summary: it is still going on, or it was killed."
    return {
        "running": "The run was not finished when this page was written: it shows what there was by then.",
        "stopped": "The run was stopped before its end; `mmssl resume` goes on from its last checkpoint.",
        "failed": "The run ended with an error; what it had written until then is shown.",
        "diverged": "Training ended because the loss was no longer usable.",
    }.get(run.status, "")


def facts(run: Run) -> Markup:
    """The figures that a reader looks for first."""
    train, speed = (run.summary.get(key) or {} for key in ("train", "throughput"))
    train, speed = (value if isinstance(value, dict) else {} for value in (train, speed))
    loss, first = _known(train.get("loss"), _last(run, "train/loss")), train.get("first_loss")
    steps, planned = _known(run.summary.get("steps") or None, _last_step(run), 0), run.summary.get("planned_steps")
    wait = speed.get("data_wait")
    rows = [
        ("Data", data_name(run)),
        ("Date", date(run)),
        ("Wall time", duration(run.summary.get("wall_s") or None)),
        ("Steps", f"{number(steps)} of {number(planned)}" if planned not in (None, steps) else number(steps)),
        ("Samples per second", number(_known(speed.get("samples_per_s"), _last(run, "samples_per_s")))),
        ("Step time", _unit(_known(speed.get("step_ms"), _last(run, "step_ms")), "ms")),
        ("Waiting for data", f"{number(100 * wait, 2)} %" if isinstance(wait, (int, float)) else None),
        ("Peak memory", _unit(speed.get("peak_mem_mb"), "MB")),
        ("Loss", f"{number(first)} → {number(loss)}" if first is not None else number(loss)),
        *((scores.label(key), number(value)) for key, value in run.health.items() if isinstance(value, (int, float))),
    ]
    cells = [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows if value not in (None, "–")]
    return tag("dl", *cells, class_="facts")


def _known(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)


def _unit(value: object, unit: str) -> str | None:
    return None if value is None else f"{number(value)} {unit}"


def _last(run: Run, name: str) -> float | None:
    column = run.metrics.get(name) or run.timing.get(name)
    return column.y[-1] if column else None


def _last_step(run: Run) -> float | None:
    return max((column.x[-1] for column in run.metrics.values()), default=None)


def data_name(run: Run) -> str | None:
    """What the data set calls itself, else the source that the configuration names, with its place."""
    if run.data.get("name"):
        return str(run.data["name"])
    data = run.settings.get("data")
    source = data.get("source", data) if isinstance(data, dict) else data
    if not isinstance(source, dict):
        return str(source) if source else None
    kind = str(source.get("_target_") or "").rpartition("/")[2]
    parts = [part for part in (kind, source.get("name"), source.get("root")) if part]
    return " · ".join(map(str, parts)) or None


def date(run: Run) -> str | None:
    """When the run began: as recorded, else as its directory's name says."""
    for source in (run.summary, run.environment):
        for key in ("started", "date", "time"):
            if source.get(key):
                return _readable(str(source[key]))
    stamp = re.match(r"(\d{4})-?(\d\d)-?(\d\d)(?:[T_-]?(\d\d)-?:?(\d\d))?", run.path.name)
    if not stamp:
        return None
    year, month, day, hour, minute = stamp.groups()
    return f"{year}-{month}-{day}" + (f" {hour}:{minute}" if hour else "")


def _readable(stamp: str) -> str:
    """An ISO time to the minute, with its offset from UTC; other texts as they are."""
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    zone = "" if when.utcoffset() is None else " UTC" if not when.utcoffset() else f" UTC{when:%z}"
    return f"{when:%Y-%m-%d %H:%M}{zone}"


def command(run: Run) -> Markup:
    """The command that started the run, to copy."""
    said = run.environment.get("command") or run.summary.get("command")
    if not said:
        return tag("p", "The command of this run was not recorded.", class_="none command")
    line = shlex.join(map(str, said)) if isinstance(said, list) else str(said)
    return tag("pre", line, class_="command", tabindex=0, role="region", aria_label="Command")


def embed(picture: Picture) -> Markup:
    """A picture inside the page. SVG goes in as an image too, so that nothing in it can run or load."""
    kind = "image/svg+xml" if picture.file.suffix == ".svg" else "image/png"
    try:
        content = picture.file.read_bytes()
    except OSError as error:
        return tag("p", f"{picture.file.name} could not be read ({error.strerror}).", class_="none")
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return tag("img", src=source, alt=picture.alt, class_="map" if picture.file.suffix == ".svg" else None)


def pictures(run: Run) -> Markup:
    """Every picture with its title and caption."""
    if not run.pictures:
        return tag("p", "This run has written no pictures (masks, reconstructions, neighbours).", class_="none")
    cards = [_picture(picture) for picture in run.pictures]
    return tag("div", *cards, class_="flow")


def _picture(picture: Picture) -> Markup:
    caption = tag("span", picture.caption) if picture.caption else None
    head = tag("figcaption", tag("strong", picture.title), caption)
    return tag("figure", head, embed(picture), class_="card picture")


def skipped(run: Run) -> Markup:
    """Samples that could not be read: how many, and which."""
    block = run.summary.get("skipped")
    if not isinstance(block, dict):
        return tag("p", "It is not recorded whether samples were skipped.", class_="none")
    files = [str(file) for file in _list(block.get("files"))]
    count = block.get("count", len(files))
    if not count:
        return tag("p", "No sample was skipped.", class_="none")
    said = f"{number(count)} {'sample' if count == 1 else 'samples'} could not be read and took no part."
    shown = files[:_MOST_SKIPPED]
    if not shown:
        return tag("p", said)
    if len(shown) != count:
        said += f" The first {len(shown)} are listed."
    rows = tag("pre", "\n".join(shown), class_="tall", tabindex=0, role="region", aria_label="Skipped files")
    return join(tag("p", said), rows)


def settings(run: Run) -> Markup:
    """The resolved configuration, the environment and the data's facts."""
    config = (
        tag("pre", run.config, class_="tall", tabindex=0, role="region", aria_label="Resolved configuration")
        if run.config
        else tag("p", "config.yaml is not there.", class_="none")
    )
    return join(
        tag("div", tag("h3", "Resolved configuration"), config),
        tag("h3", "Environment"),
        _pairs({key: value for key, value in run.environment.items() if key != "command"}, "environment.json"),
        tag("h3", "Data"),
        _pairs(run.data, "data.json"),
    )


def _pairs(values: dict[str, Any], file: str) -> Markup:
    if not values:
        return tag("p", f"{file} is not there or empty.", class_="none")
    rows = [join(tag("dt", key), tag("dd", value)) for key, value in flatten(values)]
    return tag("dl", *rows, class_="table card")


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested objects as dotted keys with short text values."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{key}", said if len(said) <= 400 else f"{said[:400]}… ({len(said)} characters)"


def where(path: Path) -> str:
    """A directory as it is best read: from `runs` on, where that is part of it."""
    parts = path.parts
    return "/".join(parts[parts.index("runs") :]) if "runs" in parts else str(path)
