"""Line charts as inline SVG. Pure functions: numbers in, markup out.

Colours are classes (`s0` ... `s7`, the Okabe-Ito palette) that the page's style sheet fills in for light and dark.
Text sizes are in the drawing's own units: a chart is made for about the width it is shown at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mmssl.report.markup import Markup, number, tag

COLOURS = 8
"""How many colours there are; a further series takes the first again, with another dash."""

LETTER = 6.6
"""Mean width of a letter at the labels' 12 units."""

_RIGHT = 18  # room for half of the last label
_DASHES = (None, "6 3", "2 3", "8 3 2 3")


@dataclass(frozen=True)
class Series:
    """One line: values (y) at places (x), in the order of x. Non-finite values leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round places (steps of 1, 2 or 5 times a power of ten) within [low, high].

    >>> ticks(0, 97)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power / rough))) * power
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)) + 1)
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round places within [low, high] for a logarithmic axis: powers of ten, with 2 and 5 where they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for marks in ((1,), (1, 3), (1, 2, 5)):
        stride = max(1, math.ceil((last - first) / (count + 1))) if marks == (1,) else 1
        found = [m * 10.0**e for e in range(first, last + 1, stride) for m in marks]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) >= 3:
            return found
    return found if len(found) >= 2 else ticks(low, high, count)


def decimate(x: Sequence[float], y: Sequence[float], limit: int = 400) -> tuple[list[float], list[float]]:
    """Thins a curve to at most `limit` points and keeps what the eye would see.

    The first and last point stay, and of each stretch in between the lowest, the highest and one value that is not
    finite, if there is one. So spikes, gaps and both extremes survive.
    """
    if len(x) <= limit:
        return list(x), list(y)
    buckets = max(1, (limit - 2) // 3)
    edges = [1 + round(i * (len(x) - 2) / buckets) for i in range(buckets + 1)]
    keep = {0, len(x) - 1}
    for start, stop in pairwise(edges):
        finite = [i for i in range(start, stop) if math.isfinite(y[i])]
        keep.update(sorted(finite, key=lambda i: y[i])[:: max(1, len(finite) - 1)][:2])
        keep.update([i for i in range(start, stop) if not math.isfinite(y[i])][:1])
    places = sorted(keep)
    return [x[i] for i in places], [y[i] for i in places]


@dataclass(frozen=True)
class Axis:
    """Maps values to places along one side of the frame."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return self.start + (at - low) / (high - low) * (self.stop - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values."""
        return log_ticks(self.low, self.high, count) if self.log else ticks(self.low, self.high, count)


def axis_of(values: Sequence[float], start: float, stop: float, log: bool = False, margin: float = 0.04) -> Axis:
    """An axis that holds all values with a little room."""
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** margin if high > low else 1.5
        return Axis(low / room, high * room, start, stop, True)
    room = (high - low) * margin if high > low else (abs(high) * 0.1 or 1.0)
    return Axis(low - room, high + room, start, stop)


def labels_of(values: Sequence[float]) -> list[str]:
    """Tick labels with equally many decimals, so that they read as one column."""
    gap = min((b - a for a, b in pairwise(values)), default=abs(values[0]) if values else 1.0) or 1.0
    top = max((abs(value) for value in values), default=1.0)
    if top >= 1e5 or 0 < top < 1e-3:
        return [number(value, 3) for value in values]
    even = all(value > 0 for value in values) and len(values) > 2 and values[-1] / values[0] > 50
    digits = max(0, -math.floor(math.log10(gap) + 1e-9))
    return [number(v, 3) if even else number(v) if not digits else f"{v:.{digits}f}".replace("-", "−") for v in values]


def line_chart(
    series: Sequence[Series],
    title: str,
    x_title: str = "step",
    y_title: str = "",
    log_y: bool = False,
    width: int = 360,
    height: int = 230,
) -> Markup:
    """Draws curves over one pair of axes.

    Args:
        series: the curves; those without a finite value are left out.
        title: what a screen reader says first.
        x_title: title of the x axis.
        y_title: title of the y axis; it stands above its axis, where it is read without turning one's head.
        log_y: logarithmic y axis; ignored where a value is not positive.
        width: width of the drawing in its own units.
        height: height of the drawing, without its legend.

    Returns:
        One `<svg>`, well-formed XML, that fills the width it is given. Hidden in it are the points shown, for a
        read-out (`data-x`, `data-y`). Where nothing can be drawn, a paragraph that says so.
    """
    thin = [(one.name, *decimate(one.x, one.y)) for one in series]
    xs = [a for _, x, y in thin for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    ys = [b for _, _, y in thin for b in y if math.isfinite(b)]
    if not ys:
        return tag("p", "Nothing to draw: no finite value was measured.", class_="none")
    log_y = log_y and min(ys) > 0
    legend, top = _legend([name for name, _, _ in thin], width) if len(thin) > 1 else (None, 0)
    y_title = " ".join(filter(None, (y_title, "(log scale)" if log_y else "")))
    top += 22 if y_title else 10
    bottom = top + height - 56
    y_axis = axis_of(ys, bottom, top, log_y)
    y_ticks = y_axis.ticks(5)
    left = 14 + LETTER * max((len(label) for label in labels_of(y_ticks)), default=1)
    span = (min(xs), max(xs))
    x_axis = Axis(*(span if span[1] > span[0] else (span[0] - 1, span[0] + 1)), left, width - _RIGHT)
    curves = [_curve(i, name, x, y, x_axis, y_axis) for i, (name, x, y) in enumerate(thin)]
    said = f"{title}: " + "; ".join(_said(name, y) for name, _, y in thin)
    return tag(
        "svg",
        tag("title", title),
        tag("desc", said),
        legend,
        tag("text", y_title, x=left, y=top - 9, class_="axis") if y_title else None,
        _grid(x_axis, y_axis, y_ticks, x_title, bottom, width, all(float(x).is_integer() for x in xs)),
        *curves,
        tag("g", tag("line", y1=top, y2=bottom, x1=0, x2=0), class_="cursor", visibility="hidden"),
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {bottom + 42:.0f}", class_="chart", role="img",
        aria_label=said, data_left=f"{left:.1f}", data_right=width - _RIGHT, data_low=repr(x_axis.low),
        data_high=repr(x_axis.high), data_x_title=x_title,
    )  # fmt: skip


def _said(name: str, y: Sequence[float]) -> str:
    finite = [value for value in y if math.isfinite(value)]
    if not finite:
        return f"{name} has no finite value"
    first, last, low, high = (number(value) for value in (finite[0], finite[-1], min(finite), max(finite)))
    return f"{name} from {first} to {last}, between {low} and {high}"


def _grid(
    x_axis: Axis, y_axis: Axis, y_ticks: list[float], x_title: str, bottom: float, width: int, whole: bool
) -> Markup:
    """Grid lines, tick labels and the x axis's title."""
    parts: list[Markup] = []
    for value, label in zip(y_ticks, labels_of(y_ticks), strict=True):
        y = f"{y_axis(value):.1f}"
        parts.append(tag("line", x1=f"{x_axis.start:.1f}", x2=width - _RIGHT, y1=y, y2=y, class_="rule"))
        parts.append(tag("text", label, x=f"{x_axis.start - 7:.1f}", y=y, dy="0.35em", text_anchor="end"))
    values = x_axis.ticks(max(2, width // 90))
    values = [value for value in values if value.is_integer()] if whole else values
    for value, label in zip(values, labels_of(values), strict=True):
        x = x_axis(value)
        parts.append(tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=bottom, y2=bottom + 4, class_="tick"))
        half = LETTER * len(label) / 2
        x = min(max(x, half + 2), width - half - 2)
        parts.append(tag("text", label, x=f"{x:.1f}", y=bottom + 18, text_anchor="middle"))
    parts.append(tag("line", x1=f"{x_axis.start:.1f}", x2=width - _RIGHT, y1=bottom, y2=bottom, class_="base"))
    middle = (x_axis.start + x_axis.stop) / 2
    parts.append(tag("text", x_title, x=f"{middle:.1f}", y=bottom + 36, text_anchor="middle", class_="axis"))
    return tag("g", *parts, class_="frame", aria_hidden="true")


def _curve(index: int, name: str, x: list[float], y: list[float], x_axis: Axis, y_axis: Axis) -> Markup:
    """One line; a stretch of a single point, which a line cannot show, is a dot. Few points are dots as well."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(x, y, strict=True):
        if math.isfinite(b):
            stretches[-1].append((x_axis(a), y_axis(b)))
        elif stretches[-1]:
            stretches.append([])
    path = " ".join("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points) for points in stretches if len(points) > 1)
    dots = [point for points in stretches for point in points if len(x) <= 24 or len(points) == 1]
    dash = _DASHES[index // COLOURS % len(_DASHES)]
    return tag(
        "g",
        tag("title", name),
        tag("path", d=path, stroke_dasharray=dash) if path else None,
        *(tag("circle", cx=f"{a:.1f}", cy=f"{b:.1f}", r=2.4) for a, b in dots),
        class_=f"series s{index % COLOURS}", data_name=name,
        data_x=" ".join(f"{a:.8g}" for a in x), data_y=" ".join(f"{b:.6g}" for b in y),
    )  # fmt: skip


def _legend(names: Sequence[str], width: int) -> tuple[Markup, int]:
    """A legend of as many rows as it needs, and its height."""
    parts, x, y = [], 2.0, 12
    for i, name in enumerate(names):
        short = name if len(name) <= 34 else name[:16] + "…" + name[-17:]
        needs = 24 + 1.06 * LETTER * len(short) + 14
        if x > 2 and x + needs > width:
            x, y = 2.0, y + 18
        line = tag("path", d=f"M{x:.1f} {y - 4}h16", stroke_dasharray=_DASHES[i // COLOURS % len(_DASHES)])
        label = tag("text", tag("title", name), short, x=f"{x + 22:.1f}", y=y)
        parts.append(tag("g", line, label, class_=f"series s{i % COLOURS}"))
        x += needs
    return tag("g", *parts, class_="legend", aria_hidden="true"), y + 10
