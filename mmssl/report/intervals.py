"""Interval plots as inline SVG: scores as dots with their intervals, beside what they must beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmssl.report.charts import COLOURS, LETTER, Axis, axis_of, labels_of
from mmssl.report.markup import Markup, number, tag


@dataclass(frozen=True)
class Interval:
    """One dot with its interval: `low` and `high` may be None. Equal names share a colour."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def rounded(value: float, span: tuple[float, float] | None) -> tuple[str, str]:
    """A score and its interval as text, with as many decimals as two digits of the interval's width need.

    >>> rounded(0.71123, (0.7021, 0.7203))
    ('0.711', '0.702 to 0.720')
    """
    if span is None:
        return number(value), "no interval"
    width = span[1] - span[0]
    digits = min(8, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 3
    value_text, low, high = (f"{part:.{digits}f}".replace("-", "−") for part in (value, *span))
    return value_text, f"{low} to {high}"


def interval_plot(
    groups: Sequence[tuple[str, Sequence[Interval]]], title: str, x_title: str, width: int = 560
) -> Markup:
    """Dots with intervals, one row each, in named groups over one axis.

    Args:
        groups: (name, rows) pairs; a row's colour is that of the first row of the same name.
        title: what a screen reader says first.
        x_title: what the axis measures.
        width: width of the drawing in its own units.
    """
    rows = [row for _, group in groups for row in group]
    if not rows:
        return tag("p", "Nothing to draw: there is no score.", class_="none")
    order = list(dict.fromkeys(row.name for row in rows))
    left = min(14 + LETTER * max(len(name) for name in order), width * 0.42)
    values = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    axis = axis_of(values, left, width - 16, margin=0.06)
    parts, y = [], 2.0
    for name, group in groups:
        y += 18
        parts.append(tag("text", name, x=0, y=f"{y:.0f}", class_="group"))
        for row in group:
            y += 21
            parts.append(_row(row, order.index(row.name), axis, y, left))
        y += 12
    marks = axis.ticks(max(3, width // 90))
    grid = [tag("line", x1=f"{axis(v):.1f}", x2=f"{axis(v):.1f}", y1=26, y2=f"{y:.0f}", class_="rule") for v in marks]
    labels = [
        tag("text", label, x=f"{axis(value):.1f}", y=f"{y + 15:.0f}", text_anchor="middle")
        for value, label in zip(marks, labels_of(marks), strict=True)
    ]
    base = tag("line", x1=f"{left:.1f}", x2=width - 16, y1=f"{y:.0f}", y2=f"{y:.0f}", class_="base")
    middle = f"{(left + width - 16) / 2:.0f}"
    foot = tag("text", x_title, x=middle, y=f"{y + 33:.0f}", text_anchor="middle", class_="axis")
    said = title + ": " + "; ".join(f"{name}, {_value(row)}" for name, group in groups for row in group)
    return tag(
        "svg", tag("title", title), tag("g", *grid, base, *labels, foot, class_="frame", aria_hidden="true"), *parts,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {y + 40:.0f}", class_="chart intervals", role="img",
        aria_label=said,
    )  # fmt: skip


def _value(row: Interval) -> str:
    value, span = rounded(row.value, None if row.low is None or row.high is None else (row.low, row.high))
    return f"{row.name} {value} ({span})"


def _row(row: Interval, colour: int, axis: Axis, y: float, left: float) -> Markup:
    fits = int((left - 14) / LETTER)
    short = row.name if len(row.name) <= fits else row.name[: fits - 1] + "…"
    x, bar = f"{axis(row.value):.1f}", None
    if row.low is not None and row.high is not None:
        a, b = axis(row.low), axis(row.high)
        ends = f"M{a:.1f} {y - 4}v8M{b:.1f} {y - 4}v8"
        bar = tag("path", d=f"M{a:.1f} {y}H{b:.1f}{ends}")
    # The first name, the encoder itself, is a full dot; baselines are rings: shape says it as well as colour.
    dot = tag("circle", cx=x, cy=y, r=4.5 if colour == 0 else 4, class_="dot" if colour == 0 else "ring")
    label = tag("text", short, x=f"{left - 12:.1f}", y=y, dy="0.35em", text_anchor="end")
    return tag("g", tag("title", _value(row)), label, bar, dot, class_=f"series s{colour % COLOURS}")
