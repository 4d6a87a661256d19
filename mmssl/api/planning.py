"""Before a run, from Python: `plan` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.api.training import resolve


def plan(
    recipe: str, overrides: list[str] | None = None, memory: str | None = None, measure: bool = True
) -> dict[str, Any]:
    """What a run will take, before its first step; the same as `mmssl plan RECIPE [memory=24GB] key=value ...`.

    Args:
        recipe: a name such as `image/mae`, or the path of a YAML.
        overrides: `key=value` as on the command line.
        memory: of the device that the batch has to fit into, such as `24GB`; None for what is there.
        measure: whether a real step is timed, where one fits into the machine at ease.

    Returns:
        Parameters, tokens, operations of a step, memory by kind, the largest batch, steps, time and disk.

    Raises:
        ConfigError: for anything misspelt, missing, or unfit for the data.
    """
    tree = resolve(recipe, overrides)
    from mmssl.run.planning.estimate import memory_bytes
    from mmssl.run.planning.estimate import plan as estimate
    from mmssl.run.untrained import standing

    with standing(tree) as own:
        return estimate(own, memory_bytes(memory), measure)


def doctor(source: str | Path | None = None, overrides: list[str] | None = None) -> list[dict[str, str]]:
    """Looks at this machine with a run in mind; the same as `mmssl doctor [RECIPE | RUN] key=value ...`.

    Args:
        source: a recipe, a run's directory, or None for the machine alone.
        overrides: `key=value` as on the command line.

    Returns:
        Findings: `check`, `level` (`ok`, `note`, `warning`, `error`), `found` and `remedy`, in the order of the checks.
    """
    from mmssl.run.doctor import examine

    return examine(source, list(overrides or []))
