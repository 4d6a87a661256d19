"""`doctor`: looks at this machine with a run in mind, and says what stands in its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import ConfigError, compose
from mmssl.registry import suggest
from mmssl.run.directory import is_run
from mmssl.run.doctor import cluster, machine, software
from mmssl.run.doctor.findings import LEVELS, Case, Check, Finding

CHECKS: dict[str, Check] = {
    "versions": software.versions,
    "libraries": software.libraries,
    "optional": software.optional,
    "devices": machine.devices,
    "cores": machine.processors,
    "threads": machine.threads,
    "memory": machine.memory,
    "shared memory": machine.shared_memory,
    "run.root": machine.run_root,
    "clock": machine.clock,
    "caches": machine.caches,
    "open files": machine.files,
    "data": machine.data,
    "network": cluster.interfaces,
    "nccl": cluster.variables,
    "torchrun": cluster.torchrun,
    "slurm": cluster.slurm,
    "launchers": cluster.launchers,
    "wandb": software.wandb,
}
"""Every check by its name, in the order in which they are told."""


def examine(source: str | Path | None, overrides: list[str]) -> list[dict[str, str]]:
    """Makes all checks.

    Args:
        source: a recipe, a run's directory, or None for the machine alone.
        overrides: `key=value`.

    Returns:
        `check`, `level`, `found` and `remedy` of each finding.

    Raises:
        ConfigError: for a recipe or key that there is not.
    """
    case = meant(source, overrides)
    found = []
    for name, look in CHECKS.items():
        try:
            made = list(look(case))
        except Exception as error:  # a check that fails is a finding, and the others go on
            made = [Finding("warning", f"could not be looked at: {type(error).__name__}: {error}", "Look yourself")]
        found += [{"check": name, "level": one.level, "found": one.found, "remedy": one.remedy} for one in made]
    return found


def meant(source: str | Path | None, overrides: list[str]) -> Case:
    """The run that a recipe, a run's directory or overrides alone mean."""
    if source is None and not overrides:
        return Case(None, build.make({"_target_": "trainer/lightning"}, "trainer"))
    if source is not None and is_run(Path(source)):
        tree = yaml.safe_load((Path(source) / "config.yaml").read_text())
        for override in overrides:
            _set(tree, override)
    elif source is None:
        raise ConfigError(f"{overrides[0]}: `mmssl doctor` takes keys together with a recipe or a run")
    else:
        tree = compose(str(source), overrides)
    check(tree)
    return Case(tree, build.make(tree["trainer"], "trainer"))


def _set(tree: dict[str, Any], override: str) -> None:
    """Sets one key of a run's configuration; `check` refuses what no part has."""
    key, _, value = override.partition("=")
    *parents, last = key.split(".")
    node: Any = tree
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or not parents:
        raise ConfigError(
            f"{key}: the run's configuration has no such key{suggest(parents[0] if parents else key, tree)}"
        )
    node[last] = yaml.safe_load(value)


def text(findings: list[dict[str, Any]]) -> str:
    """A line for each finding, remedies below, and how many there are of each level."""
    lines = []
    for one in findings:
        lines.append(f"{one['level']:<8}{one['check']:<15}{one['found']}")
        if one["remedy"]:
            lines.append(f"{'':<23}-> {one['remedy']}")
    counts = {level: sum(one["level"] == level for one in findings) for level in LEVELS}
    return "\n".join([*lines, "", ", ".join(f"{number} {level}" for level, number in counts.items() if number)])
