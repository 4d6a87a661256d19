"""The plot of the suite: `docs/results/speed/speed.html`, with the report's own charts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.report.charts import Series, line_chart
from mmssl.report.html import CSS
from mmssl.report.markup import Markup, replace_file, tag


def write(folder: Path) -> Path:
    """Draws what is kept: how steps and loaders grow, and the ratio of every work from one measurement to the next."""
    charts = [*_scaling(folder / "scaling.json"), *_history(folder / "history.jsonl")]
    cards = [tag("figure", tag("h3", title), chart, class_="card") for title, chart in charts]
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
            tag("title", "mmssl: speed"),
            tag("style", Markup(CSS)),
        ),
        tag("body", tag("header", tag("h1", "Speed")), tag("main", tag("div", *cards, class_="grid"))),
        lang="en",
    )
    return replace_file(folder / "speed.html", f"<!DOCTYPE html>\n{page}".encode())


def _scaling(file: Path) -> list[tuple[str, Markup]]:
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    tokens = [p for p in found["points"] if p["batch"] == 8]
    batches = sorted((p for p in found["points"] if p["side"] == 224), key=lambda p: p["batch"])
    speeds = found["loader"]
    workers = Series("samples", [float(n) for n in speeds], list(speeds.values()))
    return [
        ("Step by tokens, batch 8", line_chart(_parts(tokens, "tokens"), "step by tokens", "tokens", "ms")),
        ("Step by batch, 196 tokens", line_chart(_parts(batches, "batch"), "step by batch", "samples", "ms")),
        ("Peak memory by batch", line_chart([_one(batches, "batch", "peak_mb")], "peak memory", "samples", "MiB")),
        ("Loader by workers", line_chart([workers], "loader by workers", "workers", "samples a second")),
    ]


def _one(points: Sequence[Mapping[str, Any]], x: str, y: str) -> Series:
    return Series(y.partition("_")[0], [p[x] for p in points], [p[y] for p in points])


def _parts(points: Sequence[Mapping[str, Any]], x: str) -> list[Series]:
    return [_one(points, x, y) for y in ("step_ms", "forward_ms", "backward_ms", "optimizer_ms")]


def _history(file: Path) -> list[tuple[str, Markup]]:
    if not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    works = sorted({line["work"] for line in lines if line.get("ratio") is not None})
    ratios = {work: [line["ratio"] for line in lines if line["work"] == work] for work in works}
    series = [Series(work, [float(i + 1) for i in range(len(found))], found) for work, found in ratios.items()]
    return [("Time over the reference's", line_chart(series, "ratios", "measurement", "ratio"))]
