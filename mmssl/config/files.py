"""Where configuration files lie, and what a recipe says of itself. Reads plain YAML; Hydra and torch stay away."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mmssl.registry import UnknownName, roots, suggest

PACKAGE = Path(__file__).parent.parent
# In a wheel both folders lie inside the package, in a checkout beside it.
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONF, EXPERIMENTS = ROOT / "conf", ROOT / "experiments"
GROUPS = ("modality", "encoder", "views", "data", "optim", "trainer", "logger")

# The slots of a run. Growing this list is a decision: a test freezes it.
SLOTS = (
    "meta", "recipe", "modality", "seed", "keep", "data", "views", "view", "augment", "sample_preset", "tokenizer",
    "encoder", "streams", "masker", "corruptor", "guide", "heads", "looks", "objective", "teacher", "optim", "trainer",
    "logger", "evaluation", "init_from", "init_share", "run", "stages", "fit",
)  # fmt: skip
# What a run has that fits codes and trains nothing, whatever its recipe says of the training.
UNTRAINED: dict[str, Any] = {
    "objective": {}, "heads": {}, "masker": None, "corruptor": None, "guide": None, "looks": None, "teacher": None,
    "keep": "student",
}  # fmt: skip


@cache
def folders(name: str) -> list[Path]:
    """The folder `conf` or `experiments` of mmssl, and those inside the packages of plug-ins that have one."""
    own = [ROOT / name]
    return own + [place / name for package, place in roots() if package != "mmssl" and (place / name).is_dir()]


def _files(name: str, within: str, pattern: str) -> dict[str, Path]:
    """YAML files below all folders of a name, by their path without the ending.

    Raises:
        ValueError: when two have the same name.
    """
    found: dict[str, Path] = {}
    for folder in folders(name):
        for file in sorted((folder / within).glob(pattern)):
            key = file.relative_to(folder / within).with_suffix("").as_posix()
            if key in found:
                raise ValueError(f"two files are called {name}/{within}{key}: {found[key]} and {file}; rename one")
            found[key] = file
    return found


@cache
def _recipes() -> dict[str, Path]:
    return _files("experiments", "", "**/*.yaml")


def recipes() -> list[str]:
    """Names of all installed recipes, such as `image/mae`."""
    return sorted(_recipes())


@cache
def group_files(group: str) -> dict[str, Path]:
    """The files of a configuration group by name, plug-ins' included."""
    return _files("conf", f"{group}/", "*.yaml")


def options(group: str) -> list[str]:
    """Names of the files of a configuration group."""
    return sorted(group_files(group))


def recipe_file(name: str) -> Path:
    """The file of a recipe: an installed name, or the path of a user's YAML.

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
    return _recipes()[name]


def chain(name: str) -> list[tuple[str, dict[str, Any]]]:
    """A recipe's plain YAML and those it inherits from along `defaults:`, the recipe itself last."""
    text = _loaded(recipe_file(name))
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


def _loaded(file: Path) -> dict[str, Any]:
    """A file's plain YAML, by libyaml where it is there: ten times as fast."""
    return yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


_plain = cache(_loaded)  # of files that are installed, and are not changed by who reads them


def _choices(text: dict[str, Any]) -> dict[str, str]:
    """The files that a list of defaults chooses, by group."""
    entries = [entry for entry in text.get("defaults", []) if isinstance(entry, dict)]
    return {key.removeprefix("override /"): value for entry in entries for key, value in entry.items()}


def _group(group: str, name: str | None) -> dict[str, Any]:
    """The plain YAML of a group's file."""
    return _plain(group_files(group)[name]) if name in group_files(group) else {}


def users() -> dict[str, list[str]]:
    """The recipes that mention each part, by part."""
    found: dict[str, list[str]] = {}
    for name in recipes():
        for part in describe(name)["parts"]:
            found.setdefault(part, []).append(name)
    return found


def describe(name: str) -> dict[str, Any]:
    """What `mmssl list recipes --json` says of a recipe: name, modality, family, paper, parts, lines.

    One with `meta.streams` is `multimodal`, whatever its data are decoded by. Parts are those of training: what a
    recipe says itself, and the tokenizer, encoder, optimizer and views that it chooses from groups.
    """
    inherited = chain(name)
    chosen = _choices(_plain(CONF / "run.yaml"))
    for _, text in inherited:
        chosen |= _choices(text)
    modality = chosen["modality"]
    whole: dict[str, Any] = {group: _group(group, chosen.get(group)) for group in ("encoder", "optim", "views")}
    whole["tokenizer"] = _group("modality", modality).get("tokenizer", {})
    for _, text in inherited:
        whole = merged(whole, text)
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
