"""Data without a recipe, for verbs that look at data only."""

from __future__ import annotations

from typing import Any

import yaml

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import ConfigError, compose
from mmssl.config.files import CONF, group_files, options
from mmssl.config.slots import made_for
from mmssl.registry import entries


def bare_data(overrides: list[str]) -> Any:
    """The data that overrides say: `data=folder data.root=DIR`, and `modality=audio` where the data do not imply it.

    Raises:
        ConfigError: for anything misspelt or missing, naming the key.
    """
    said = {override.partition("=")[0]: override.partition("=")[2] for override in overrides}
    if "data" not in said:
        raise ConfigError("no data are named; say data=folder data.root=DIR, for instance. `mmssl list data` has all")
    found = ["modality=" + own] if "modality" not in said and (own := _modality(said["data"])) else []
    tree = compose(str(CONF / "empty.yaml"), [*found, *overrides])
    check(tree)
    return build.data(tree)


def two_data(overrides: list[str]) -> tuple[Any, Any]:
    """The data that overrides say, and the other data that `against=folder against.root=DIR` says; None without.

    Raises:
        ConfigError: for anything misspelt or missing, naming the key.
    """
    others = ["data" + override.removeprefix("against") for override in overrides if override.startswith("against")]
    data = bare_data([override for override in overrides if not override.startswith("against")])
    if not others:
        return data, None
    try:
        return data, bare_data([f"modality={data.adapter.name}", *others])
    except ConfigError as error:
        raise ConfigError(f"against: {error}") from error


def _modality(name: str) -> str:
    """The modality of a data set that only one can read; empty for the others."""
    if name not in options("data"):
        return ""
    source = (yaml.safe_load(group_files("data")[name].read_text()).get("source") or {}).get("_target_")
    return made_for(source) if source in entries() else ""
