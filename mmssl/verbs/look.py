"""`list`, `doc`, `show` and `preview`: what there is, before anything is trained."""

from __future__ import annotations

from mmssl.verbs.words import emit, needed, split, take


def list_(rest: list[str], flags: list[str]) -> int:
    """Lists recipes, modalities, or parts of a kind."""
    from mmssl.listing import listing

    content, text = listing(rest[0] if rest else "recipes")
    emit(flags, {"verb": "list", "schema": 1} | content, lambda: text)
    return 0


def doc(rest: list[str], flags: list[str]) -> int:
    """A part's signature, defaults, documentation and file; or a recipe's header."""
    from mmssl.listing import document

    content, text = document(needed(rest[0] if rest else None, "recipe", "doc"))
    emit(flags, {"verb": "doc", "schema": 1} | content, lambda: text)
    return 0


def show(rest: list[str], flags: list[str]) -> int:
    """The resolved configuration of a recipe, with the origin of each value."""
    from mmssl.config.check import check
    from mmssl.config.compose import compose, flat, origins

    recipe, overrides = split(rest, "recipe")
    recipe = needed(recipe, "recipe", "show")
    tree = compose(recipe, overrides)
    check(tree)
    where = origins(recipe, overrides)
    values = flat(tree)
    emit(
        flags, {"verb": "show", "schema": 1, "config": tree, "origin": where},
        lambda: "\n".join(f"{key}: {value!r}".ljust(72) + f"  # {where[key]}" for key, value in values.items()),
    )  # fmt: skip
    return 0


def preview(rest: list[str], flags: list[str]) -> int:
    """One PNG of samples, views and masks."""
    from pathlib import Path

    recipe, overrides = split(rest, "recipe")
    out = Path(take(overrides, "out") or "preview.png")
    from mmssl.api import build

    module, data = build(needed(recipe, "recipe", "preview"), overrides)
    from mmssl.run.pictures import preview as draw

    draw(data, module, out)
    emit(flags, {"verb": "preview", "schema": 1, "file": str(out)}, lambda: f"wrote {out}")
    return 0
