"""Shipped recipes: each composes at both sizes, says what it is, and plain YAML says the same as Hydra."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest

from mmssl.config.check import check
from mmssl.config.compose import compose
from mmssl.config.files import EXPERIMENTS, SLOTS, count_lines, describe, merged, recipe_file, recipes

PAPER = ["data=folder", "data.root=FOLDER"]
FAMILIES = {"mae", "jepa", "contrastive", "distillation"}


@functools.cache  # composing takes a third of a second
def _composed(name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    return compose(name, list(overrides))


def composed(name: str, *overrides: str, trust: bool = True) -> dict[str, Any]:
    tree = copy.deepcopy(_composed(name, overrides))
    check(tree, trust=trust)
    return tree


def targets(node: Any) -> list[str]:
    """The names of all parts of a tree, also in lists."""
    below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    own = [node["_target_"]] if isinstance(node, dict) and "_target_" in node else []
    return own + [name for value in below for name in targets(value)]


@pytest.mark.parametrize("name", recipes())
def test_shipped_recipes_compose_at_both_sizes(name):
    for overrides in ([], PAPER):
        tree = composed(name, *overrides, trust=False)
        assert tree["objective"] and tree["views"]
    assert set(tree) <= set(SLOTS), "a recipe has no slot of its own"


@pytest.mark.parametrize("name", recipes())
def test_shipped_recipes_say_what_they_are(name):
    meta = composed(name)["meta"]
    assert set(meta) >= {"paper", "family", "command", "expect", "differs"}
    assert all(meta[key] for key in ("paper", "family", "command", "expect", "differs"))
    assert set(meta["family"]) <= FAMILIES
    assert meta["command"].startswith(f"mmssl pretrain {name} ")
    words = meta["command"].split()[2:]
    tree = composed(words[0], *words[1:])  # the command itself is free of mistakes
    size = tree["data"]["batch_size"]
    assert tree["trainer"]["devices"] == 1 if size == "full" else size % tree["trainer"]["devices"] == 0


@pytest.mark.parametrize("name", recipes())
def test_plain_yaml_says_the_same_as_hydra(name):
    row, tree = describe(name), composed(name, *PAPER)
    streams = tree["meta"].get("streams")  # several networks in one step; the data are decoded by one adapter
    assert (
        row["name"] == name and row["modality"] == ("multimodal" if streams else tree["modality"]) == name.split("/")[0]
    )
    assert row.get("streams") == streams and set(streams or []) <= set(tree["views"])
    assert row["family"] == tree["meta"]["family"] and row["paper"] == tree["meta"]["paper"]
    assert set(row["parts"]) - {"predictor/transformer"} <= set(targets(tree))
    assert 0 < row["lines"] < 40


def test_mr_mae_adds_one_sentence_to_mae():
    mae, mimic = composed("image/mae", *PAPER), composed("image/mr_mae", *PAPER)
    added = mimic["objective"].pop("mimic")
    for tree in (mae, mimic):
        del tree["meta"], tree["recipe"]
    assert mae == mimic
    assert added["at"] == "visible" and added["target"]["_target_"] == "target/frozen"
    assert describe("image/mr_mae")["lines"] <= 11


def test_count_lines():
    text = "# c\nmeta:\n  a: 1\n  b: 2\n\ndefaults: [x]\nmasker: {ratio: 0.5}   # why\nobjective:\n  p: 1\n"
    assert count_lines(text) == 4


def test_merged_replaces_lists_and_joins_mappings():
    assert merged({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3], "d": 4}}) == {"a": {"b": 1, "c": [3], "d": 4}}
    assert merged({"a": 1}, None) is None


def test_recipe_file_finds_shipped_names():
    assert recipe_file("image/mae") == EXPERIMENTS / "image" / "mae.yaml"


def test_the_readme_names_every_recipe_under_its_families():
    text = (EXPERIMENTS.parent / "README.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `") and "/` |" in line]
    found = {row[0].strip(" `/"): row[1:] for row in rows}
    for name in recipes():
        modality, _, method = name.partition("/")
        families = describe(name)["family"]
        for family, cell in zip(("mae", "jepa", "contrastive", "distillation"), found[modality], strict=True):
            assert (f"`{method}`" in cell) == (family in families), (name, family)
