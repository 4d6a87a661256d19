"""Where configuration files lie, and what a recipe says of itself. Reads plain YAML; Hydra and torch stay away."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mmssl.registry import UnknownName, suggest

PACKAGE = Path(__file__).parent.parent
# In a wheel both folders lie inside the package, in a checkout beside it.
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONF, EXPERIMENTS = ROOT / "conf", ROOT / "experiments"
GROUPS = ("modality", "encoder", "views", "data", "optim", "trainer", "logger")

# The slots of a run. Growing this list is a decision: a test freezes it.
SLOTS = (
    "meta", "recipe", "modality", "seed", "keep", "data", "views", "view", "sample_preset", "tokenizer", "encoder",
    "streams", "masker", "corruptor", "guide", "heads", "looks", "objective", "teacher", "optim", "trainer", "logger",
    "evaluation", "init_from", "init_share", "run",
)  # fmt: skip


@cache
def recipes() -> list[str]:
    """Names of all shipped recipes, such as `image/mae`."""
    return sorted(str(file.relative_to(EXPERIMENTS).with_suffix("")) for file in EXPERIMENTS.rglob("*.yaml"))


def options(group: str) -> list[str]:
    """Names of the files of a configuration group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def recipe_file(name: str) -> Path:
    """The file of a recipe: a shipped name, or the path of a user's YAML.

    Raises:
        UnknownName: with near names, when there is neither.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            near = [str(p.name) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
            raise UnknownName(f"recipe: there is no file {path}{suggest(path.name, near)}")
        return path
    if name not in recipes():
        raise UnknownName(f"unknown recipe {name!r}{suggest(name, recipes())}")
    return EXPERIMENTS / f"{name}.yaml"


def chain(name: str) -> list[tuple[str, dict[str, Any]]]:
    """A recipe's plain YAML and those it inherits from along `defaults:`, the recipe itself last."""
    text = yaml.safe_load(recipe_file(name).read_text()) or {}
    parents = [entry for entry in text.get("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    found: list[tuple[str, dict[str, Any]]] = []
    for parent in parents:
        found += chain(parent.removeprefix("/recipe/"))
    return [*found, (name, text)]


def merged(base: Any, top: Any) -> Any:
    """One plain tree over another, mapping by mapping, as Hydra merges them."""
    if isinstance(base, dict) and isinstance(top, dict):
        return base | {key: merged(base.get(key), value) for key, value in top.items()}
    return top


def parts(tree: Any) -> list[str]:
    """Names of the parts that a plain YAML tree mentions, in order."""
    if isinstance(tree, dict):
        own = [tree["_target_"]] if isinstance(tree.get("_target_"), str) else []
        return own + [name for value in tree.values() for name in parts(value)]
    if isinstance(tree, list):
        return [name for value in tree for name in parts(value)]
    return []


def count_lines(text: str) -> int:
    """Lines of a recipe without blanks, comments and its `meta` block."""
    lines, in_meta = 0, False
    for line in text.splitlines():
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        if not line[0].isspace():
            in_meta = line.startswith("meta:")
        lines += not in_meta
    return lines


def describe(name: str) -> dict[str, Any]:
    """What `mmssl list recipes --json` says of a recipe: name, modality, family, paper, parts, lines.

    One with `meta.streams` is `multimodal`, whatever its data are decoded by.
    """
    inherited = chain(name)
    whole: dict[str, Any] = {}
    modality = ""
    for _, text in inherited:
        whole = merged(whole, text)
        for entry in text.get("defaults", []):
            if isinstance(entry, dict) and "override /modality" in entry:
                modality = entry["override /modality"]
    meta = whole.get("meta", {})
    row = {
        "name": name,
        "modality": "multimodal" if "streams" in meta else modality,
        "family": meta.get("family", []),
        "paper": meta.get("paper", ""),
        "parts": sorted(set(parts(whole))),
        "lines": count_lines(recipe_file(name).read_text()),
    }
    return row | ({"streams": meta["streams"]} if "streams" in meta else {})
