"""Scores with their intervals beside honest baselines: in words, as a table, and drawn."""

from __future__ import annotations

from collections.abc import Sequence

from mmssl.report.intervals import Interval, interval_plot, rounded
from mmssl.report.markup import Markup, join, tag
from mmssl.report.reading import BASELINES, Score

_SIDE = {
    ("better", True): "above",
    ("worse", True): "below",
    ("better", False): "below (better)",
    ("worse", False): "above (worse)",
}


def compare(score: Score, baseline: str) -> str:
    """How a score stands to a baseline: `better` or `worse` where the interval of their paired difference leaves 0 out.

    Where there is no such interval, both scores' own intervals must not touch; else `overlaps`. A side without an
    interval counts as the point it is. `unknown` where either value, or the score's own interval, is missing.
    """
    value, span = score.baselines[baseline]
    if score.interval is None or value is None:
        return "unknown"
    low, high = span or (value, value)
    apart = score.differences.get(baseline, (score.interval[0] - high, score.interval[1] - low))
    if apart[0] > 0:
        return "better" if score.higher_is_better else "worse"
    if apart[1] < 0:
        return "worse" if score.higher_is_better else "better"
    return "overlaps"


def words(score: Score) -> str:
    """One sentence: does the whole interval lie above the baselines?"""
    if score.value is None:
        return f"There is no {score.metric}."
    if score.interval is None:
        return "There is no interval, so it cannot be said whether this score beats the baselines."
    found = {name: compare(score, name) for name, (value, _) in score.baselines.items() if value is not None}
    if not found:
        return "There is no baseline to compare it with."
    kinds = set(found.values())
    if set(found) <= set(score.differences):
        return _paired(found)
    if len(found) > 1 and len(kinds) == 1 and "overlaps" not in kinds:
        all_of = "both baselines" if len(found) == 2 else f"all {len(found)} baselines"
        return f"The whole interval lies {_SIDE[kinds.pop(), score.higher_is_better]} {all_of}."
    parts = []
    for name, kind in found.items():
        verb = "overlaps that of" if kind == "overlaps" else f"lies {_SIDE[kind, score.higher_is_better]}"
        parts.append(f"{verb} {label(name)}")
    end = "; an overlap alone shows no difference." if "overlaps" in kinds else "."
    return "The interval " + " and ".join(parts) + end


def _paired(found: dict[str, str]) -> str:
    """One sentence about paired differences."""
    said = {"better": "better than", "overlaps": "within noise of", "worse": "worse than"}
    parts = [
        f"{verb} {' and '.join(label(name) for name, own in found.items() if own == kind)}"
        for kind, verb in said.items()
        if kind in found.values()
    ]
    sentence = ", ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}, by the paired difference over the same test samples."


def label(name: str) -> str:
    """A baseline's name as words."""
    return name.replace("_", " ")


def cell(value: float | None, span: tuple[float, float] | None, why: str = "") -> Markup:
    """A table cell: the value, its interval beneath, or why there is none."""
    if value is None:
        return tag("td", "–", tag("span", why, class_="why") if why else None)
    shown, below = rounded(value, span)
    return tag("td", tag("b", shown), tag("span", below, class_="span"))


def section(scores: Sequence[Score], status: str) -> Markup:
    """The section's body; one sentence where nothing was scored."""
    if not scores:
        wait = "The run is not finished" if status == "running" else "No evaluation was run, or the data has no labels"
        said = f"{wait}, so there are no scores. Label-free signals stand under Curves; "
        return tag("p", said, tag("code", "mmssl evaluate RUN"), " adds scores.", class_="none")
    marked = [
        tag("li", tag("span", score.protocol, class_="mark"), f" ({score.metric}): {words(score)}") for score in scores
    ]
    cards = [tag("div", _table(scores), class_="card"), tag("div", *_plots(scores), class_="card")]
    return join(tag("ul", *marked, class_="words"), tag("div", *cards, class_="pair"))


def _table(scores: Sequence[Score]) -> Markup:
    names = list(dict.fromkeys([*BASELINES, *(name for score in scores for name in score.baselines)]))
    head = tag("tr", *(tag("th", name, scope="col") for name in ("protocol", "this run", *map(label, names))))
    rows = []
    for score in scores:
        pairs = [(*score.baselines.get(name, (None, None)), score.why.get(name, "")) for name in names]
        first = tag("th", score.protocol, tag("span", _metric(score), class_="span"), scope="row")
        rows.append(tag("tr", first, cell(score.value, score.interval), *(cell(*pair) for pair in pairs)))
    note = "Values with 95 % intervals. Random init is the same architecture, untrained."
    return scrolling(tag("table", tag("thead", head), tag("tbody", *rows)), "Scores and baselines", note)


def _metric(score: Score) -> str:
    return score.metric + ("" if score.higher_is_better else ", lower is better")


def scrolling(table: Markup, name: str, note: str) -> Markup:
    """A note, and under it a box that a wide table scrolls in, reachable by keyboard."""
    box = tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=name)
    return join(tag("p", note, class_="note"), box)


def _plots(scores: Sequence[Score]) -> list[Markup]:
    """One plot for each metric, since only equal metrics share an axis."""
    plots = []
    for metric in dict.fromkeys(score.metric for score in scores):
        same = [score for score in scores if score.metric == metric and score.value is not None]
        groups = [(score.protocol, _rows(score)) for score in same]
        plots.append(tag("figure", interval_plot(groups, f"{metric} with 95 % intervals", metric, width=420)))
    return plots


def _rows(score: Score) -> list[Interval]:
    own = Interval("this run", score.value or 0.0, *(score.interval or (None, None)))
    return [own, *baseline_rows(score.baselines)]


def baseline_rows(baselines: dict[str, tuple[float | None, tuple[float, float] | None]]) -> list[Interval]:
    """The baselines that have a value, as rows of an interval plot."""
    known = [(label(name), value, span or (None, None)) for name, (value, span) in baselines.items()]
    return [Interval(name, value, *span) for name, value, span in known if value is not None]
