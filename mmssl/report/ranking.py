"""A sweep on one page: its jobs in the order of their score, what each axis does, and the best runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.report import compare, scores, sections
from mmssl.report.charts import COLOURS
from mmssl.report.intervals import Interval, interval_plot
from mmssl.report.markup import Markup, join, number, tag
from mmssl.report.reading import Run, read
from mmssl.report.sweep import axes, counts, ranked, read_sweep

_VALUES = 12  # an axis with more values than this, or with one job each, says little as a plot


class Sweep:
    """A sweep as its page shows it.

    Args:
        path: the sweep's directory.
    """

    def __init__(self, path: Path) -> None:
        self.sweep = read_sweep(path)
        self.path = path.resolve()
        self.rows = ranked(self.sweep)
        self.axes = axes(self.rows)
        self.score = self.sweep.get("score") or "the first score"
        self.runs: list[tuple[str, Run]] = [
            (self.name(i), read(Path(row["run"]))) for i, row in enumerate(self.rows) if row["run"] is not None
        ][:COLOURS]

    def name(self, place: int) -> str:
        """What a job is called: its number and what sets it apart."""
        said = ", ".join(f"{_leaf(key)}{values[place]}" for key, values in self.axes.items())
        return f"job {self.rows[place]['job']}" + (f": {said}" if said else "")

    def heading(self) -> Markup:
        """Title, how the jobs ended, and the best of them."""
        said = ", ".join(f"{count} {status}" for status, count in counts(self.rows).items())
        best = next((i for i, row in enumerate(self.rows) if row["value"] is not None), None)
        words = "No job has a score yet." if best is None else f"Best by {self.score}: {self._best(best)}."
        return join(
            tag("p", "mmssl report · ", tag("code", sections.where(self.path)), class_="kind"),
            tag("h1", f"Sweep of {len(self.rows)} jobs"),
            tag("p", f"{said or 'No job has begun'}. {words}"),
        )

    def _best(self, place: int) -> str:
        return f"{self.name(place)}, with {number(self.rows[place]['value'])}"

    def parts(self) -> list[tuple[str, Markup]]:
        """The page's sections: (title, body)."""
        found = [("Jobs", self._table()), *self._effects()]
        if len(self.runs) > 1:
            names, runs = [name for name, _ in self.runs], [run for _, run in self.runs]
            shown = "" if len(runs) == len(self.rows) else f" of the best {len(runs)}"
            found += [(f"{title}{shown}", body) for title, body in compare.parts(runs, names)]
        return found

    def _table(self) -> Markup:
        names = list(dict.fromkeys(name for row in self.rows for name in row.get("eval", {})))
        keys = ["recipe", *(key for key in self.axes if key != "recipe")]
        head = ("job", *keys, "status", "health", "steps", "loss", *names)
        lines = [_line(row, [row.get("recipe"), *(self.axes[key][i] for key in keys[1:])], names)
                 for i, row in enumerate(self.rows)]  # fmt: skip
        table = tag(
            "table",
            tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))),
            tag("tbody", *lines),
        )
        note = f"The best first, by {self.score}; jobs without it last. Intervals stand under Scores."
        return tag("div", scores.scrolling(table, "Jobs by score", note), class_="card")

    def _effects(self) -> list[tuple[str, Markup]]:
        """For each axis that several jobs share values of: the score of every job, grouped by the axis's value."""
        plots = []
        for key, values in self.axes.items():
            groups: dict[str, list[Interval]] = {}
            for row, value in zip(self.rows, values, strict=True):
                if row["value"] is not None:
                    groups.setdefault(str(value), []).append(Interval("one job", row["value"]))
            if 1 < len(groups) <= _VALUES and any(len(group) > 1 for group in groups.values()):
                drawn = interval_plot(sorted(groups.items()), f"{self.score} by {key}", self.score, width=420)
                plots.append(tag("figure", tag("figcaption", tag("strong", key)), drawn, class_="card"))
        return [("What each key does", tag("div", *plots, class_="pair"))] if plots else []

    @property
    def notes(self) -> list[str]:
        """What was missing or broken in the shown runs."""
        return [f"{name}: {note}" for name, run in self.runs for note in run.notes]


def _line(row: Mapping[str, Any], varied: Sequence[Any], names: Sequence[str]) -> Markup:
    why = row.get("why") if row["status"] != "completed" else None
    status = tag("td", row["status"], tag("span", why, class_="why") if why else None)
    loss = row.get("train", {}).get("loss")
    found = [row.get("eval", {}).get(name) for name in names]
    return tag(
        "tr",
        tag("th", row["job"], scope="row"),
        *(tag("td", "–" if value is None else value) for value in varied),
        status,
        tag("td", row.get("health") or "–"),
        *(tag("td", number(value)) for value in (row.get("steps"), loss, *found)),
    )


def _leaf(key: str) -> str:
    """The end of a dotted key, which is what a reader remembers of it; a recipe's name stands for itself."""
    return "" if key == "recipe" else f"{key.rpartition('.')[2]} "
