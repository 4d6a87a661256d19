"""`audit` and `shards`: data without training."""

from __future__ import annotations

from mmssl.verbs.words import Usage, emit, take


def audit(rest: list[str], flags: list[str]) -> int:
    """Looks at every sample of some data once, and at what they share with other data."""
    near = take(rest, "near")
    from mmssl.api import audit as look
    from mmssl.run.audit import text

    content = {"verb": "audit", "schema": 1} | look(rest, None if near is None else near == "true")
    emit(flags, content, lambda: text(content))
    return 0


def shards(rest: list[str], flags: list[str]) -> int:
    """Writes a data set of files as tar shards."""
    out, size, samples = take(rest, "out"), take(rest, "size") or "256MB", take(rest, "samples")
    if out is None:
        raise Usage("`mmssl shards data=folder data.root=DIR` needs out=DIR, a new folder")
    from mmssl.api import shards as write
    from mmssl.run.write_shards import text

    content = {"verb": "shards", "schema": 1} | write(out, rest, size, samples)
    emit(flags, content, lambda: text(content))
    return 0
