"""`plan` and `doctor`: what a run will take, and whether this machine is ready for it."""

from __future__ import annotations

from mmssl.verbs.words import Usage, emit, needed, split, take


def plan(rest: list[str], flags: list[str]) -> int:
    """Parameters, operations, memory, the largest batch, time and disk of a run."""
    recipe, overrides = split(rest, "recipe")
    memory, measure = take(overrides, "memory"), take(overrides, "measure") or "true"
    if measure not in ("true", "false"):
        raise Usage(f"measure={measure}: give true or false; false takes no real step, so that the time stays unknown")
    from mmssl.api import plan as estimate
    from mmssl.run.planning.text import text

    found = estimate(needed(recipe, "recipe", "plan"), overrides, memory, measure == "true")
    content = {"verb": "plan", "schema": 1} | found
    emit(flags, content, lambda: text(content))
    return 0


def doctor(rest: list[str], flags: list[str]) -> int:
    """What stands in the way of a run here; 1 where something does."""
    source, overrides = split(rest, "recipe or run")
    from mmssl.api import doctor as examine
    from mmssl.run.doctor import text

    findings = examine(source, overrides)
    emit(flags, {"verb": "doctor", "schema": 1, "findings": findings}, lambda: text(findings))
    return int(any(finding["level"] == "error" for finding in findings))
