"""Checks what no signature says: the slots of a run that are plain values or mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmssl.config.compose import ConfigError
from mmssl.registry import entries, entry, names, suggest

KEYS = {"run": ("root",), "evaluation": ("protocols", "pool", "limit", "memory_mb", "every_epochs", "online")}
POOLS = ("mean", "sum", "max", "meanmax", "cls")  # as in mmssl.types, which needs torch
LOOK = ("views", "masker", "corruptor", "guide", "mask", "network")
STREAM = ("tokenizer", "encoder", "facts", "modality")
PARTS = ("tokenizer", "encoder", "masker", "corruptor", "guide", "teacher", "optim", "trainer", "data", "fit")


def check_slots(tree: Mapping[str, Any]) -> None:
    """Refuses unknown keys of plain mappings, slots that hold no part, and wrong plain values.

    Raises:
        ConfigError: naming the key, what was got and what was probably meant.
    """
    for slot, known in KEYS.items():
        if not isinstance(tree.get(slot), dict):
            hint = "; evaluation.protocols=null evaluation.online=false measures nothing" * (slot == "evaluation")
            raise ConfigError(f"{slot} has to hold {', '.join(known)} (got {tree.get(slot)!r}){hint}")
        _known(tree[slot], known, slot)
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
    check_streams(tree)
    check_looks(tree)
    _check_modalities(tree)


KEEP = ("student", "teacher")


def check_streams(tree: Mapping[str, Any]) -> None:
    """Refuses streams with unknown keys, without a tokenizer or an encoder, or that no look is of; and looks of none.

    Raises:
        ConfigError: naming the key and what was probably meant.
    """
    streams = tree.get("streams") or {}
    named = {name: (look or {}).get("network", "main") for name, look in (tree.get("looks") or {}).items()}
    for name, stream in named.items():
        if stream not in ("main", *streams):
            near = suggest(str(stream), ("main", *streams))
            raise ConfigError(f"looks.{name}.network: there is no stream {stream!r}{near}")
    for name, said in streams.items():
        where = f"streams.{name}"
        if name == "main":
            raise ConfigError(f"{where}: the main network is that of tokenizer and encoder; name the stream otherwise")
        _known(said or {}, STREAM, where)
        for key in ("tokenizer", "encoder"):
            value = (said or {}).get(key)
            if not (isinstance(value, dict) and "_target_" in value):
                raise ConfigError(f"{where}.{key} has to be a part, as {key} of the run is (got {value!r})")
        if name not in named.values():
            raise ConfigError(f"{where}: no look is of this stream; say looks.NAME.network={name}, or remove it")


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


OWN = ("tokenizer", "encoder", "view", "augment", "data")  # slots of the main network, and of what it is scored on


def _check_modalities(tree: Mapping[str, Any]) -> None:
    """Refuses parts that were made for another modality than the run and its streams, before any data are read.

    Raises:
        ConfigError: naming the key, the part and its modality; or a stream's modality that there is not.
    """
    own, streams = str(tree.get("modality")), tree.get("streams") or {}
    said = {name: str((stream or {}).get("modality", own)) for name, stream in streams.items()}
    for name, modality in said.items():
        if modality != own and f"modality/{modality}" not in entries():
            near = suggest(modality, [part.partition("/")[2] for part in names("modality")])
            raise ConfigError(f"streams.{name}.modality: there is no modality {modality!r}{near}")
        _check_modality(streams[name], (modality,), f"streams.{name}")
    every = (own, *dict.fromkeys(said.values()))
    for slot, node in tree.items():
        if slot == "data":  # a copy of the views, which may end in another modality than they begin with
            _check_modality({key: value for key, value in node.items() if key != "views"}, (own,), slot)
        elif slot != "streams":
            _check_modality(node, (own,) if slot in OWN else every, slot)


def _check_modality(node: Any, modalities: tuple[str, ...], where: str) -> None:
    if isinstance(node, list):
        for i, value in enumerate(node):
            _check_modality(value, modalities, f"{where}[{i}]")
    if not isinstance(node, dict):
        return
    name = node.get("_target_")
    if name in entries():
        other = made_for(name)
        if other and other not in modalities:
            near = sorted(part for part in names(name.split("/")[0]) if made_for(part) in ("", *modalities))
            said = " and ".join(map(repr, dict.fromkeys(modalities)))
            raise ConfigError(
                f"{where}: {name} is made for modality {other!r}, and this run is of modality {said}; there is "
                f"{', '.join(near[:8])}{', ...' if len(near) > 8 else ''}"
            )
    for key, value in node.items():
        _check_modality(value, modalities, f"{where}.{key}")


def made_for(part: str) -> str:
    """The modality whose folder a registered part lies in; empty for parts of all modalities."""
    return entry(part).module.partition(".modalities.")[2].split(".")[0]


def _known(given: Iterable[str], known: Iterable[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}.{key}: {where} has no {key!r}{suggest(key, known)}")
