"""A recipe and overrides to one resolved tree, through Hydra.

To Hydra a recipe is the override `recipe=image/mae` of one root config, so that any launcher or sweeper may vary it.
"""

from __future__ import annotations

import fnmatch
import math
import os
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from yaml import YAMLError

from mmssl import registry
from mmssl.config.files import CONF, GROUPS, SLOTS, UNTRAINED, folders, options, recipe_file
from mmssl.registry import suggest


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, what was got and the remedy."""


class RecipeSource(FileConfigSource):
    """Shows an `experiments/` to Hydra as the group `recipe`, and any user's file by its absolute path."""

    @staticmethod
    def scheme() -> str:
        """The scheme of search-path entries."""
        return "recipes"

    @staticmethod
    def _inner(path: str) -> str | None:
        if path in ("", "recipe"):
            return "" if path else None
        return path.removeprefix("recipe/") if path.startswith("recipe/") else None

    def load_config(self, config_path: str) -> ConfigResult:
        """Loads `recipe/image/mae`, or `recipe/` and an absolute path."""
        return super().load_config(self._inner(config_path) or "")

    def is_group(self, config_path: str) -> bool:
        """Whether this is the group or a folder of it."""
        inner = self._inner(config_path)
        return inner is not None and super().is_group(inner)

    def is_config(self, config_path: str) -> bool:
        """Whether this is a recipe."""
        inner = self._inner(config_path)
        return bool(inner) and super().is_config(inner or "")

    def available(self) -> bool:
        """Whether the folder is there."""
        return os.path.isdir(self.path)

    def list(self, config_path: str, results_filter: Any) -> list[str]:
        """Recipes and folders of a folder of the group."""
        if config_path == "":
            return ["recipe"]
        inner = self._inner(config_path)
        return [] if inner is None else super().list(inner, results_filter)


class RecipePath(SearchPathPlugin):
    """Adds the recipes, and what plug-ins bring, to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends every `experiments/`, and the `conf/` of plug-ins."""
        for folder in folders("experiments"):
            search_path.append("mmssl", f"recipes://{folder}")
        for folder in folders("conf")[1:]:  # Hydra knows our own
            search_path.append("mmssl", f"file://{folder}")


def plug_in() -> None:
    """Makes the recipes known to Hydra; safe to call twice."""
    Plugins.instance().register(RecipeSource)
    Plugins.instance().register(RecipePath)
    # where a stage lies is known when the run begins; `mmssl.config.stages` puts it in
    OmegaConf.register_new_resolver("stage", "stage:{}".format, replace=True)


def overrides_of(recipe: str | None, given: list[str]) -> list[str]:
    """Overrides as Hydra wants them: recipe first, paths absolute, and `++` before dotted keys.

    `a.b=c` may set any argument of a part, written in the recipe or not; `check` refuses those that no part has.
    """
    listed = [f"recipe={recipe}", *given] if recipe is not None else list(given)
    return [_normal(override) for override in listed]


def _normal(override: str) -> str:
    key, equals, value = override.partition("=")
    if key == "recipe":
        values = [str(recipe_file(name)) if name.endswith((".yaml", ".yml")) else name for name in value.split(",")]
        return f"recipe={','.join(values)}"
    # a whole part in braces merges like dotted keys do; Hydra refuses names that the old part did not write
    if equals and ("." in key or value.startswith("{")) and not key.startswith(("+", "~", "hydra.")):
        return f"++{override}"
    return override


def check_names(overrides: list[str]) -> None:
    """Refuses misspelt recipes, groups and root keys before Hydra sees them.

    Raises:
        ConfigError: naming the key and what was probably meant.
        UnknownName: for a recipe.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+~")
        if key.startswith("hydra"):
            continue
        if not equals and not override.startswith("~"):
            raise ConfigError(f"{override!r} is no override; write key=value, for instance data.batch_size=64")
        root = key.split(".")[0].split("@")[0].split("/")[0]
        if root not in SLOTS:
            raise ConfigError(f"unknown key {root!r} in {override!r}{suggest(root, SLOTS)}")
        if key == "recipe":
            for name in value.split(","):
                recipe_file(name)
        elif key in GROUPS and not value.startswith(("{", "[", "choice(", "null")):
            for name in value.split(","):
                if name not in options(key):
                    raise ConfigError(f"{key}={name}: there is no such choice{suggest(name, options(key))}")


def compose(recipe: str | None, given: list[str]) -> dict[str, Any]:
    """The resolved configuration of one run, as plain containers.

    The order of precedence: parts' own defaults, conf/, recipe, the preset of the data, overrides.

    Args:
        recipe: a name, a path, or None where `given` holds `recipe=...`.
        given: overrides `key=value` as on the command line.

    Raises:
        ConfigError: for anything that does not fit, naming the key.
    """
    overrides = overrides_of(recipe, given)
    check_names(overrides)
    if not any(o.startswith("recipe=") for o in overrides):
        raise ConfigError("no recipe is named; the first word has to be one, for instance `mmssl pretrain image/mae`")
    first = _compose(overrides)
    given_preset = first["data"].get("preset") or []
    switched = _exchanged(first, given_preset, overrides)
    if switched:
        first = _compose([overrides[0], *switched, *overrides[1:]])
        _switch_parts(first, switched)
    preset = switched + _applicable(first, [entry for entry in given_preset if ": " not in entry], overrides)
    tree = _compose([overrides[0], *preset, *overrides[1:]]) if preset else first
    tree["data"].pop("preset", None)
    _switch_parts(tree, switched + overrides)
    tree["recipe"] = next(o for o in overrides if o.startswith("recipe=")).partition("=")[2]
    # null takes away what is inherited
    tree["objective"] = {name: term for name, term in (tree.get("objective") or {}).items() if term is not None}
    return tree | UNTRAINED if tree.get("fit") else tree


def _exchanged(tree: dict[str, Any], preset: list[str], overrides: list[str]) -> list[str]:
    """A preset's entries of the form `encoder/timm: encoder/vit`: another part where a slot holds this one.

    They let a small data set train with a small encoder what its paper trains with a large one of another kind.
    """
    said = {o.partition("=")[0].lstrip("+~") for o in overrides}
    pairs = [entry.split(": ") for entry in preset if ": " in entry]
    found = []
    for old, new in pairs:
        slot = old.partition("/")[0]
        node = tree.get(slot)
        if isinstance(node, dict) and node.get("_target_") == old and not said & {slot, f"{slot}._target_"}:
            found.append(_normal(f"{slot}._target_={new}"))
    return found


def _switch_parts(tree: dict[str, Any], overrides: list[str]) -> None:
    """Where the command line puts another part in a place, arguments that only the old part takes go."""
    said = {o.partition("=")[0].lstrip("+~"): o.partition("=")[2] for o in overrides}
    for key, name in said.items():
        if not key.endswith("._target_") or name not in registry.entries():
            continue
        node: Any = tree
        for step in key.split(".")[:-1]:
            node = node[step]
        for argument in [a for a in node if a != "_target_" and a not in registry.entry(name).arguments]:
            if f"{key.removesuffix('_target_')}{argument}" not in said:
                del node[argument]


def _compose(overrides: list[str]) -> dict[str, Any]:
    plug_in()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra_compose("run", overrides=overrides)
        tree = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except InterpolationToMissingValueError as error:
        key = str(error).partition("Missing mandatory value: ")[2].split("\n")[0] or "a value"
        raise ConfigError(f"{key} has to be given: add {key}=... to the command line") from error
    except (HydraException, OverrideParseException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"the configuration does not compose: {error}") from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _applicable(tree: dict[str, Any], preset: list[str], overrides: list[str]) -> list[str]:
    """A data set's preset, without what the user says anyway or what the chosen parts have no argument for.

    `*` in a key stands for every name at that place: `objective.*.predictor.depth=2`. `tokenizer.frames<=8` makes
    smaller what is larger, and leaves what is less.
    """
    said = {o.partition("=")[0].lstrip("+~") for o in overrides}
    kept = []
    for entry in preset:
        key, _, value = entry.partition("=")
        least = float(value) if key.endswith("<") else None
        for path in _paths(tree, key.removesuffix("<").split(".")):
            if least is not None and (flat(tree).get(path) or math.inf) <= least:
                continue
            if path not in said and (path in GROUPS or _has_argument(tree, path)):
                kept.append(_normal(f"{path}={value}"))
    return kept


def _paths(tree: Any, keys: list[str]) -> list[str]:
    """Dotted paths that a pattern stands for; the last key need not be there yet."""
    if len(keys) == 1:
        return keys
    if not isinstance(tree, dict):
        return []
    return [
        f"{name}.{rest}"
        for name in tree
        if fnmatch.fnmatch(str(name), keys[0])
        for rest in _paths(tree[name], keys[1:])
    ]


def _has_argument(tree: dict[str, Any], path: str) -> bool:
    *parents, last = path.split(".")
    node: Any = tree
    for key in parents:
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return False
    target = node.get("_target_")
    if target is None or last in node:
        return True
    return target in registry.entries() and last in registry.entry(target).arguments


def origins(recipe: str | None, given: list[str]) -> dict[str, str]:
    """Where each value of the resolved configuration comes from: `conf`, a recipe, `preset` or `command line`."""
    overrides = overrides_of(recipe, given)
    full = flat(compose(recipe, given))
    base = flat(_compose(["recipe=" + _root_recipe()]))
    bare = flat(_compose([overrides[0]]))
    chosen = flat(_compose(overrides))
    said = {o.partition("=")[0].lstrip("+~") for o in overrides}
    found = {}
    for key, value in full.items():
        if any(key == s or key.startswith(s + ".") for s in said):
            found[key] = "command line"
        elif chosen.get(key, None) != value:
            found[key] = "preset"
        elif bare.get(key, None) != value:
            found[key] = "command line (group)"
        elif base.get(key, _ABSENT) != value:
            found[key] = "recipe"
        else:
            found[key] = "conf"
    return found


_ABSENT = object()


def _root_recipe() -> str:
    return str(CONF / "empty.yaml")


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree as dotted keys and values."""
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}{key}.").items()}
    return {prefix[:-1]: tree}
