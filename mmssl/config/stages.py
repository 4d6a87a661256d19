"""Stages: what is trained before a run, with the run's recipe or another one, and handed on to it.

`stages:` maps names to overrides, written as the tree they change. `${stage:NAME}` stands for the directory of a stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmssl.config.check import check as check_parts
from mmssl.config.compose import ConfigError, compose, overrides_of
from mmssl.config.words import word
from mmssl.registry import suggest

# What the command line says of these holds for every stage, also for one that has a recipe of its own.
SHARED = ("data", "trainer", "seed", "run", "logger", "evaluation")
MARK = "stage:"


def composed(recipe: str | None, given: list[str]) -> dict[str, Any]:
    """The resolved configuration of a run; under `stages` those of its stages, in their order.

    A stage is the recipe with the stage's values between those of the recipe and those of the command line. Where it
    names a `recipe` of its own, what the command line says of data, trainer, seed, run, logger and evaluation holds for
    it all the same. `stages.NAME.a.b=c` reaches one stage alone.

    Raises:
        ConfigError: for anything that does not fit, naming the key.
    """
    tree = compose(recipe, given)
    said = tree.get("stages") or {}
    tree["stages"] = {}
    for name, values in said.items():
        where = f"stages.{name}"
        if not isinstance(values, dict):
            raise ConfigError(f"{where} has to hold the values that this stage changes, as a tree (got {values!r})")
        tree["stages"][name] = _stage(where, values, recipe, given)
    return tree


def check(tree: dict[str, Any]) -> None:
    """Checks a configuration and those of its stages, as `mmssl.config.check` does, and that a stage comes before use.

    Raises:
        ConfigError: naming the key, what was got and what was probably meant.
    """
    before: list[str] = []
    for name, stage in tree["stages"].items():
        check_parts(stage)
        _check_marks(stage, before, f"stages.{name}")
        before.append(name)
    check_parts(tree)
    _check_marks({key: value for key, value in tree.items() if key != "stages"}, before, "")


def _stage(where: str, values: dict[str, Any], recipe: str | None, given: list[str]) -> dict[str, Any]:
    """The configuration of one stage."""
    first, *rest = overrides_of(recipe, given)
    others = [one for one in rest if not _key(one).startswith("stages")]
    late = [one.lstrip("+").removeprefix(f"{where}.") for one in rest if _key(one).startswith(f"{where}.")]
    own = {key: value for key, value in values.items() if key != "recipe"}
    base = values.get("recipe")
    if base is not None:
        others = [one for one in others if re.split(r"[.=]", _key(one))[0] in SHARED]
    # what the command line says of this stage alone is among its own values already, and has to come last again
    tree = compose(base or first.partition("=")[2], [*_flat(own, where), *others, *late, "stages=null"])
    tree["stages"] = {}
    return tree


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _flat(values: Mapping[str, Any], where: str, prefix: str = "") -> list[str]:
    """A tree as overrides."""
    found = []
    for key, value in values.items():
        if not re.fullmatch(r"\w+", str(key)):
            raise ConfigError(
                f"{where}: the key {key!r} is no plain name; make this stage a recipe of its own: {where}.recipe"
            )
        if isinstance(value, dict) and value:
            found += _flat(value, where, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={word(value)}")
    return found


def _check_marks(node: Any, there: list[str], where: str) -> None:
    """Refuses a reference to a stage that does not come before.

    Raises:
        ConfigError: naming the key.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            _check_marks(value, there, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            _check_marks(value, there, f"{where}[{i}]")
    elif isinstance(node, str) and node.startswith(MARK) and node.removeprefix(MARK) not in there:
        name = node.removeprefix(MARK)
        hint = " A stage has what its recipe says: give this key a value of its own there, or null."
        raise ConfigError(
            f"{where}: there is no stage {name!r} before this one{suggest(name, there)}"
            + (hint if where.startswith("stages.") else "")
        )


def placed(node: Any, folders: Mapping[str, str]) -> Any:
    """A configuration with the directories of stages in place of their marks."""
    if isinstance(node, dict):
        return {key: placed(value, folders) for key, value in node.items()}
    if isinstance(node, list):
        return [placed(value, folders) for value in node]
    if isinstance(node, str) and node.startswith(MARK):
        return folders[node.removeprefix(MARK)]
    return node
