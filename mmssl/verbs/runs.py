"""`runs` and `report`."""

from __future__ import annotations

from mmssl.verbs.words import emit, needed, split, take


def runs(rest: list[str], flags: list[str]) -> int:
    """A table of the runs under a folder, of some of them where keys are given."""
    from mmssl.runs import find, text

    folder, said = split(rest, "folder")
    sort = take(said, "sort")
    found = find(folder, dict(word.split("=", 1) for word in said), sort)
    none = f"no run here has {' '.join(said)}; `mmssl runs` without keys shows all" if said else ""
    emit(flags, {"verb": "runs", "schema": 1, "runs": found}, lambda: text(found) if found or not said else none)
    return 0


def report(rest: list[str], flags: list[str]) -> int:
    """Writes report.html of one run, or one page of several."""
    from pathlib import Path

    overrides = [word for word in rest if "=" in word]
    out = take(overrides, "out")
    paths = [Path(word) for word in rest if "=" not in word]
    if not paths:
        needed(None, "run", "report")
    from mmssl.report.html import write

    file = write(paths[0] if len(paths) == 1 else paths, Path(out) if out else None)
    emit(flags, {"verb": "report", "schema": 1, "file": str(file)}, lambda: f"wrote {file}")
    return 0
