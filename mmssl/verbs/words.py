"""The words of a command line: what is bare, what is an override, and what is told in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


class Usage(ValueError):
    """A command line that makes no sense."""


def emit(flags: list[str], content: dict[str, Any], text: Callable[[], str]) -> None:
    """One JSON object with --json, else text."""
    print(json.dumps(content, ensure_ascii=False) if "--json" in flags else text())


def split(rest: list[str], what: str) -> tuple[str | None, list[str]]:
    """The first bare word, and the overrides.

    Raises:
        Usage: when there are several bare words.
    """
    bare = [word for word in rest if "=" not in word]
    if len(bare) > 1:
        raise Usage(f"one {what} is wanted, got {' and '.join(bare)}; overrides are written key=value")
    return (bare[0] if bare else None), [word for word in rest if "=" in word]


def needed(word: str | None, what: str, verb: str) -> str:
    """The word, or an error that says what is missing."""
    if word is None:
        shows = "list recipes" if what == "recipe" else "runs"
        raise Usage(f"`mmssl {verb}` needs a {what}; `mmssl {shows}` shows what there is")
    return word


def take(overrides: list[str], key: str) -> str | None:
    """Removes `key=value` from the overrides and returns the value."""
    for override in overrides:
        if override.startswith(f"{key}="):
            overrides.remove(override)
            return override.partition("=")[2]
    return None
