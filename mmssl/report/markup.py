"""HTML and SVG built from functions: text is escaped unless it was built here, so a name can never become markup."""

from __future__ import annotations

import math
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_VOID = {"meta", "img", "br", "hr"}


class Markup(str):
    """Text that is already HTML or SVG; any other text is escaped where it is used."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Escapes a value for use in HTML and XML; characters that XML forbids become U+FFFD."""
    if isinstance(value, Markup):
        return value
    return Markup(escape(_CONTROL.sub("\ufffd", str(value)), quote=True))


def join(*children: object) -> Markup:
    """Concatenates children; None is left out."""
    return Markup("".join(text(child) for child in children if child is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element.

    Args:
        name: the element's name.
        *children: text (escaped) or `Markup` (as it is); None is left out.
        **attributes: `class_` is `class`, `stroke_width` is `stroke-width`; None and False are left out, True is an
            empty attribute.
    """
    shown = [(key, "" if value is True else value) for key, value in attributes.items() if value not in (None, False)]
    head = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"' for key, value in shown)
    return Markup(f"<{name}{head}>" if name in _VOID else f"<{name}{head}>{join(*children)}</{name}>")


def number(value: object, digits: int = 4) -> str:
    """A number for reading: `digits` significant digits, thousands with a thin space, a dash for what is not there."""
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return {"nan": "not a number", "inf": "infinite", "-inf": "−infinite"}[str(float(value))]
    if float(value).is_integer() and abs(value) < 1e15:
        shown = f"{int(value):,}".replace(",", "\u2009")
    else:
        shown = f"{value:.{digits}g}"
        mantissa, _, exponent = shown.partition("e")
        shown = f"{mantissa}e{int(exponent)}" if exponent else shown
    return shown.replace("-", "−")


def duration(seconds: object) -> str:
    """Seconds as a person says them: `42 s`, `5 min 11 s`, `3 h 20 min`, `2 d 4 h`."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{number(float(f'{seconds:.2g}'))} s"
    whole = round(seconds)
    for unit, small, size in (("d", "h", 86400), ("h", "min", 3600), ("min", "s", 60)):
        if whole >= size:
            rest = whole % size // {"h": 3600, "min": 60, "s": 1}[small]
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def slug(name: str) -> str:
    """A name as an `id`: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end; after an error the old one is untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> Path:
    """Writes a file such that a reader sees the old content or the new, never a part; makes its folder."""
    with drafted(path) as draft, draft.open("xb") as file:
        file.write(content)
    return path
