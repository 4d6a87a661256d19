"""Curves of a run, or of several over each other: which columns share a chart, and the numbers beneath it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmssl.report.charts import Series, line_chart
from mmssl.report.markup import Markup, join, number, tag
from mmssl.report.reading import Column, Run

ROWS = 1000
"""Most rows of numbers under a figure; longer curves are thinned there and the text says so."""

_MEANING = {
    "rankme": "RankMe: how many dimensions the features use. Near 1 is full collapse; a steady fall is a warning.",
    "feature_std": "Mean deviation of a feature over samples. Near 0, every sample has the same feature.",
    "uniformity": "How evenly features lie on the sphere; lower is more even, 0 is a single point.",
    "alignment": "Distance between views of one sample; lower is closer.",
    "alpha_req": "How fast the features' spectrum falls (alpha-ReQ): near 1 is rich, large values are few directions.",
    "lidar": "LiDAR: how many directions tell samples apart better than views of one sample do.",
    "lr": "The learning rate that was used.",
    "samples_per_s": "Training speed over all devices.",
}
_GROUPS = {
    "grad": (
        "Norm of the gradient",
        "Before clipping, by module. Spikes and a drift upwards precede divergence; near 0 nothing is learnt.",
    ),
}


@dataclass(frozen=True)
class Figure:
    """Columns that share a chart."""

    title: str
    columns: tuple[Column, ...]
    note: str = ""
    wide: bool = False


def figures(run: Run) -> list[Figure]:
    """Groups a run's columns by the prefix of their names: losses, online probes, diagnostics, rates, speed."""
    groups: dict[str, list[Column]] = {}
    for column in run.metrics.values():
        groups.setdefault(column.name.rpartition("/")[0], []).append(column)
    found = []
    if losses := groups.pop("train", []):
        found.append(_losses(losses))
    planned = run.settings.get("evaluation")
    planned = planned.get("protocols") if isinstance(planned, dict) else None
    probes = {score.protocol.rpartition("/")[2] for score in run.scores} | set(planned or ())
    measured = groups.pop("val", [])
    if online := [column for column in measured if column.leaf in probes]:
        note = "Scores of small probes on frozen features while training went on; they do not train the encoder."
        found.append(Figure("Online probes", tuple(online), note))
    found += [_single(column) for column in measured if column.leaf not in probes]
    for prefix, columns in groups.items():
        title, note = _GROUPS.get(prefix, (prefix, ""))
        found += [Figure(title, tuple(columns), note)] if prefix and len(columns) > 1 else map(_single, columns)
    times = tuple(column for column in run.timing.values() if column.name.endswith("_ms"))
    found += [Figure("Time per step", times, "Milliseconds; waiting for data is part of the step.")] if times else []
    return found + [_single(column) for column in run.timing.values() if column not in times]


def _losses(columns: list[Column]) -> Figure:
    """The total and its terms; a term that is the total, which one line would hide, is said instead of drawn."""
    total, *terms = columns
    drawn = [total, *(term for term in terms if (term.x, term.y) != (total.x, total.y))]
    same = [term.name for term in terms if term not in drawn]
    note = f"{', '.join(same)} {'is' if len(same) == 1 else 'are'} the same as {total.name}." if same else ""
    title = "Training loss" if len(drawn) == 1 else "Training loss and its terms"
    return Figure(title, tuple(drawn), note, wide=True)


def _single(column: Column) -> Figure:
    return Figure(column.name, (column,), _MEANING.get(column.leaf, ""))


def curves(run: Run) -> Markup:
    """The section's body: one card for each figure."""
    found = figures(run)
    if not found:
        return tag("p", "No step has been logged, so there are no curves yet.", class_="none")
    cards = [_card(one.title, one.note, _lines(one.columns), one.wide) for one in found]
    return tag("div", *cards, class_="grid")


def overlays(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    """Every quantity that two runs have, and every training loss, with the runs' curves over each other.

    Args:
        runs: the runs, in the order of their colours.
        names: what to call them.
    """
    keys = list(dict.fromkeys(key for run in runs for key in [*run.metrics, *run.timing]))
    cards = []
    for key in keys:
        having = [(name, run.metrics.get(key) or run.timing.get(key)) for name, run in zip(names, runs, strict=True)]
        # A run that lacks a quantity takes part with an empty line, so that every run keeps its colour.
        lines = [Series(name, column.x if column else (), column.y if column else ()) for name, column in having]
        count = sum(column is not None for _, column in having)
        if count > 1 or key.startswith("train/"):
            missing = [name for name, column in having if column is None]
            note = _MEANING.get(key.rpartition("/")[2], "")
            note += f" Not measured in: {', '.join(missing)}." if missing else ""
            cards.append(_card(key, note.strip(), lines, key == "train/loss"))
    if not cards:
        return tag("p", "No step has been logged in these runs, so there are no curves yet.", class_="none")
    return tag("div", *cards, class_="grid")


def _lines(columns: Iterable[Column]) -> list[Series]:
    return [Series(column.name, column.x, column.y) for column in columns]


def _card(title: str, note: str, lines: Sequence[Series], wide: bool) -> Markup:
    finite = [value for line in lines for value in line.y if math.isfinite(value)]
    log = bool(finite) and min(finite) > 0 and max(finite) / min(finite) >= 30
    if wide:
        drawn = join(
            tag("div", line_chart(lines, title, log_y=log, width=1120, height=320), class_="wide"),
            tag("div", line_chart(lines, title, log_y=log, width=340, height=250), class_="narrow"),
        )
    else:
        drawn = line_chart(lines, title, log_y=log, width=340, height=210)
    notes = " ".join(part for part in (note, _gaps(lines)) if part)
    head = tag("h3", title)
    caption = tag("figcaption", tag("span", notes)) if notes else None
    return tag("figure", head, drawn, caption, _numbers(title, lines), class_="card full" if wide else "card")


def _gaps(lines: Sequence[Series]) -> str:
    lost = [(x, line.name) for line in lines for x, y in zip(line.x, line.y, strict=True) if not math.isfinite(y)]
    if not lost:
        return ""
    step, name = min(lost)
    is_are = "1 value is" if len(lost) == 1 else f"{len(lost)} values are"
    return f"{is_are} not finite and left out, the first at step {number(step)} ({name})."


def _numbers(title: str, lines: Sequence[Series]) -> Markup:
    content, shown, total = table(lines)
    note = f"Every {-(-total // ROWS)}th of {total} rows; all are in the run's CSV file." if shown < total else None
    return tag(
        "details",
        tag("summary", "Numbers", tag("span", f" of {title}", hidden=True)),
        tag("p", note, class_="note") if note else None,
        tag("pre", content, tabindex=0, role="region", aria_label=f"{title} as CSV"),
    )


def table(lines: Sequence[Series]) -> tuple[str, int, int]:
    """The values as CSV text, the number of its rows, and the number of rows there are."""
    steps = sorted({x for line in lines for x in line.x})
    stride = max(1, -(-len(steps) // ROWS))
    chosen = steps[::stride]
    values = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    head = ",".join(["step", *(_quoted(line.name) for line in lines)])
    rows = (",".join([f"{x:.15g}", *(f"{v[x]:.9g}" if x in v else "" for v in values)]) for x in chosen)
    return "\n".join([head, *rows]), len(chosen), len(steps)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\n') else name
