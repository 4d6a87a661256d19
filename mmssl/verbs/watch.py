"""`evaluate RUN watch=true`: checkpoints are scored as they land."""

from __future__ import annotations

from typing import Any

from mmssl.verbs.words import Usage, emit, take


def watch(run: str, overrides: list[str], protocols: str | None, flags: list[str]) -> int:
    """Scores each checkpoint of a run until the run has ended."""
    best, said = take(overrides, "best"), {key: take(overrides, key) for key in ("seconds", "minutes")}
    try:
        times: dict[str, Any] = {key: float(word) for key, word in said.items() if word is not None}
    except ValueError as error:
        raise Usage(f"seconds and minutes are numbers, for instance seconds=20 ({error})") from error
    from mmssl.api import watch as look

    chosen = protocols.split(",") if protocols else None
    found = look(run, overrides, chosen, best, trust="--trust" in flags, **times)
    emit(flags, {"verb": "evaluate", "schema": 1} | found, lambda: _text(found))
    return 0


def _text(found: dict[str, Any]) -> str:
    lines = [f"{len(found['scores'])} checkpoints scored, the run is {found['status']}"]
    if best := found.get("best"):
        lines.append(f"best.ckpt: step {best['step']}, {best['criterion']} {best['value']:.4g}")
    return "\n".join([*lines, "", f"written to {found['run']}/scores.csv"])
