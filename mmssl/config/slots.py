"""Checks what no signature says: the slots of a run that are plain values or mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmssl.config.compose import ConfigError
from mmssl.registry import names, suggest

KEYS = {"run": ("root",), "evaluation": ("protocols", "pool", "limit", "every_epochs")}
POOLS = ("mean", "sum", "max", "meanmax", "cls")  # as in mmssl.types, which needs torch
LOOK = ("views", "masker", "corruptor", "guide", "mask")
PARTS = ("tokenizer", "encoder", "masker", "corruptor", "guide", "teacher", "optim", "trainer", "data")


def check_slots(tree: Mapping[str, Any]) -> None:
    """Refuses unknown keys of plain mappings, slots that hold no part, and wrong plain values.

    Raises:
        ConfigError: naming the key, what was got and what was probably meant.
    """
    for slot, known in KEYS.items():
        _known(tree.get(slot) or {}, known, slot)
    for slot in PARTS:
        value = tree.get(slot)
        if value is not None and not (isinstance(value, dict) and "_target_" in value):
            example = next(iter(names(slot)), f"{slot}/NAME")
            raise ConfigError(f"{slot} has to be a part, such as {slot}._target_={example} (got {value!r})")
    seed, keep = tree.get("seed"), tree.get("keep")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(f"seed has to be a whole number (got {seed!r})")
    if keep not in ("student", "teacher"):
        raise ConfigError(f"keep has to be 'student' or 'teacher' (got {keep!r}){suggest(str(keep), KEEP)}")
    pool = tree["evaluation"].get("pool")
    if pool not in POOLS:
        raise ConfigError(f"evaluation.pool: there is no pool {pool!r}{suggest(str(pool), POOLS)}")
    for name, head in (tree.get("heads") or {}).items():
        if not (isinstance(head, dict) and str(head.get("_target_", "")).startswith("head/")):
            raise ConfigError(f"heads.{name} has to be a head: {{_target_: head/mlp, dims: [128]}} (got {head!r})")
    check_looks(tree)


KEEP = ("student", "teacher")


def check_looks(tree: Mapping[str, Any]) -> None:
    """Refuses looks with unknown keys, views or masks.

    Raises:
        ConfigError: naming the key and what was probably meant.
    """
    looks = tree.get("looks") or {}
    for name, said in looks.items():
        said = said or {}
        _known(said, LOOK, f"looks.{name}")
        for view in said.get("views", [name]):
            if view not in tree["views"]:
                raise ConfigError(f"looks.{name}.views: there is no view {view!r}{suggest(view, tree['views'])}")
        shared = said.get("mask")
        if shared is not None and shared.removeprefix("~") not in looks:
            raise ConfigError(f"looks.{name}.mask: there is no look {shared!r}{suggest(shared, looks)}")


def _known(given: Iterable[str], known: Iterable[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}.{key}: {where} has no {key!r}{suggest(key, known)}")
