"""`evaluate` and `bench`."""

from __future__ import annotations

import json

from mmssl.verbs.words import emit, needed, split, take


def evaluate(rest: list[str], flags: list[str]) -> int:
    """Scores an encoder, or compares several."""
    overrides = [word for word in rest if "=" in word]
    sources = [word for word in rest if "=" not in word]
    first = needed(sources[0] if sources else None, "run", "evaluate")
    protocols = take(overrides, "protocol")
    if take(overrides, "watch") == "true":
        from mmssl.verbs.watch import watch

        return watch(first, overrides, protocols, flags)
    from mmssl.api import evaluate as score

    summary = score(sources, overrides, protocols.split(",") if protocols else None, "--trust" in flags)
    from mmssl.evaluation.telling import compared, table

    def told() -> str:
        if "encoders" in summary:
            return compared(summary["encoders"], summary["differences"])
        return table(summary["eval"])

    emit(flags, summary, lambda: told() + f"\n\nwritten to {summary['run']}")
    return 0


def bench(rest: list[str], flags: list[str]) -> int:
    """Step time, samples/s, data wait and memory, as JSON."""
    recipe, overrides = split(rest, "recipe")
    steps = int(take(overrides, "steps") or 20)
    from mmssl.api import resolve

    tree = resolve(needed(recipe, "recipe", "bench"), overrides)
    from mmssl.run.bench import bench as measure
    from mmssl.run.untrained import standing

    with standing(tree) as own:
        content = {"verb": "bench", "schema": 1} | measure(own, steps)
    emit(flags, content, lambda: json.dumps(content, indent=1))
    return 0
