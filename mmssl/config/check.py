"""Checks a resolved tree against the signatures of the parts it names, before anything heavy is imported or built."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from typing import Any

from mmssl.config.compose import ConfigError
from mmssl.config.slots import check_slots
from mmssl.registry import Argument, entry, suggest

_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def check(tree: Any, where: str = "", trust: bool = True) -> None:
    """Refuses unknown parts, unknown or missing arguments and values of the wrong type, anywhere in the tree.

    Args:
        tree: a resolved configuration.
        where: dotted path of the tree, for messages.
        trust: whether `_target_` may be an import path; configurations from checkpoints may hold registered names only.

    Raises:
        ConfigError: naming the key, what was got and what was probably meant.
    """
    if isinstance(tree, list):
        for i, value in enumerate(tree):
            check(value, f"{where}[{i}]", trust)
    if not isinstance(tree, dict):
        if tree == "???":
            raise ConfigError(f"{where} has to be given: add {where}=... to the command line")
        return
    if not where and "objective" in tree:
        check_slots(tree)
    if "_target_" in tree:
        _check_part(tree, where, trust)
    for key, value in tree.items():
        if where or key != "stages":  # each stage is a configuration, and is checked as one
            check(value, f"{where}.{key}" if where else str(key), trust)


def _check_part(node: dict[str, Any], where: str, trust: bool) -> None:
    name = node["_target_"]
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: _target_ has to be the name of a part such as masker/random (got {name!r})")
    if "/" not in name:
        if not trust:
            raise ConfigError(
                f"{where}: this checkpoint names the import path {name!r}, which could run any code. If you trust its "
                "origin, load it with trust=true."
            )
        _check_dotted(node, name, where)
        return
    try:
        known = entry(name, where).arguments
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check_arguments(node, name, known, where)


def _check_dotted(node: dict[str, Any], name: str, where: str) -> None:
    """A user's own class or function, by its import path."""
    signature = inspect.signature(locate(name, where))
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return
    known = {
        p.name: Argument(p.name, None if p.default is p.empty else repr(p.default), None)
        for p in signature.parameters.values()
        if p.kind is not p.POSITIONAL_ONLY
    }
    _check_arguments(node, name, known, where, complete=False)


def locate(path: str, where: str = "") -> Any:
    """The object at a dotted import path.

    Raises:
        ConfigError: when there is none.
    """
    import importlib

    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where}: cannot import {path!r} ({error}); registered parts are written kind/name"
        ) from error


def _check_arguments(
    node: dict[str, Any], name: str, known: Mapping[str, Argument], where: str, complete: bool = True
) -> None:
    for key, value in node.items():
        if key == "_target_":
            continue
        place = f"{where}.{key}" if where else key
        if key not in known:
            raise ConfigError(f"{place}: {name} takes no {key!r}{suggest(key, known)}; see `mmssl doc {name}`")
        _check_value(value, known[key], place, name)
    if complete:
        for argument in known.values():
            if argument.default is None and argument.name not in node:
                raise ConfigError(f"{where}: {name} needs {argument.name!r}; give {where}.{argument.name}=...")


def _check_value(value: Any, argument: Argument, where: str, name: str) -> None:
    """Compares plain values with plain annotations; anything else is left to the part itself."""
    if argument.annotation is None or isinstance(value, dict) or value == "???":  # missing: `check` says so
        return
    words = {word.strip() for word in argument.annotation.split("|")}
    if value is None:
        if "None" not in words and all(word in _TYPES for word in words):
            raise ConfigError(f"{where}: {name} wants {argument.annotation}, and null is none")
        return
    if not all(word in _TYPES or word == "None" for word in words):
        return
    allowed = tuple(kind for word in words for kind in _TYPES.get(word, ()))
    if (isinstance(value, bool) and bool not in allowed) or not isinstance(value, allowed):
        hint = f" ({_default(argument)} by default)" if argument.default is not None else ""
        raise ConfigError(f"{where}: {name} wants {argument.annotation}{hint}, got {value!r}")


def _default(argument: Argument) -> str:
    try:
        return repr(ast.literal_eval(argument.default or "None"))
    except ValueError:
        return str(argument.default)
