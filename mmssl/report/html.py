"""Writes the report of a run, or of several: one HTML file that holds everything it shows and loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from mmssl.report import compare, scores, sections
from mmssl.report.figures import curves
from mmssl.report.markup import Markup, join, replace_file, slug, tag
from mmssl.report.ranking import Sweep
from mmssl.report.reading import Run, read
from mmssl.report.sweep import is_sweep

CSS, SCRIPT = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))


def write(run: Path | list[Path], out: Path | None = None) -> Path:
    """Writes a report from what a run's directory holds by now.

    Args:
        run: a run's directory, or a sweep's; several runs give one page that compares them.
        out: the file to write; by default `report.html` in the run's or the sweep's directory, or, for several runs, in
            the working directory.

    Returns:
        The file, which readers see whole or not at all.

    Raises:
        ValueError: when a directory does not exist, or none is given. Anything missing inside one is said on the page.
    """
    paths = [Path(one) for one in run] if isinstance(run, (list, tuple)) else [Path(run)]
    if not paths:
        raise ValueError("report: no run was given. Name one or more run directories; `mmssl runs` lists them.")
    if len(paths) == 1 and is_sweep(paths[0]):
        sweep = Sweep(paths[0])
        page = _page(f"sweep of {len(sweep.rows)} jobs", sweep.heading(), sweep.parts(), sweep.notes)
        return replace_file(Path(out) if out is not None else paths[0] / "report.html", page.encode())
    runs = [read(path) for path in paths]
    if len(runs) == 1:
        page, default = single(runs[0]), paths[0] / "report.html"
    else:
        page, default = several(runs), Path("report.html")
    return replace_file(Path(out) if out is not None else default, page.encode())


def single(run: Run) -> str:
    """The page of one run."""
    named = f"{run.recipe} · {sections.data_name(run)}" if sections.data_name(run) else run.recipe
    head = join(
        tag("p", "mmssl report · ", tag("code", sections.where(run.path)), class_="kind"),
        tag("h1", run.recipe),
        sections.status_chips(run),
        sections.verdict(run),
        tag("div", sections.facts(run), sections.command(run), class_="card"),
    )
    parts = [
        ("Scores", scores.section(run.scores, run.status)),
        ("Curves", curves(run)),
        ("Pictures", sections.pictures(run)),
        ("Skipped files", sections.skipped(run)),
        ("Configuration", sections.settings(run)),
    ]
    return _page(named, head, parts, run.notes)


def several(runs: Sequence[Run]) -> str:
    """The page that compares runs."""
    names = compare.names_of(runs)
    notes = [f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes]
    return _page(f"{len(runs)} runs", compare.heading(runs), compare.parts(runs, names), notes)


def _page(title: str, head: Markup, parts: Sequence[tuple[str, Markup]], notes: Sequence[str]) -> str:
    links = [tag("li", tag("a", name, href=f"#{slug(name)}")) for name, _ in parts]
    blocks = [tag("section", tag("h2", name, id=slug(name)), body, aria_labelledby=slug(name)) for name, body in parts]
    missing = tag("ul", *(tag("li", note) for note in notes)) if notes else None
    said = "Written by mmssl. This file is complete: it loads nothing and can be sent as it is."
    footer = tag("footer", tag("p", "Noted while reading:") if notes else None, missing, tag("p", said))
    return "<!DOCTYPE html>\n" + tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", http_equiv="Content-Security-Policy", content=_policy()),
            tag("title", f"{title} · mmssl"),
            tag("style", Markup(CSS)),
        ),
        tag(
            "body",
            tag("header", head),
            tag("nav", tag("ul", *links), aria_label="Sections"),
            tag("main", *blocks),
            footer,
            tag("script", Markup(SCRIPT)),
        ),
        lang="en",
    )


def _policy() -> str:
    """The browser itself refuses to load anything, and to run any script but ours."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
