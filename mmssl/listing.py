"""What there is: recipes, modalities and parts, read from source and YAML without importing anything heavy."""

from __future__ import annotations

from typing import Any

from mmssl.config.compose import ConfigError
from mmssl.config.files import describe, options, recipe_file, recipes, users
from mmssl.registry import entries, entry, names, suggest

_GROUPS = ("modality", "encoder", "views", "data", "optim", "trainer", "logger")


def listing(what: str) -> tuple[dict[str, Any], str]:
    """All recipes, or all parts of a kind and the choices of its group, as an object and as text.

    Args:
        what: `recipes`, or a kind of part in the singular or plural.

    Raises:
        ConfigError: for a word that is neither.
    """
    if what == "recipes":
        rows = [describe(name) for name in recipes()]
        lines = [
            f"{row['name']:28} {'+'.join(row['family']):18} {len(row['parts']):5} {row['lines']:5}  {row['paper']}"
            for row in rows
        ]
        return {"recipes": rows}, "\n".join([f"{'recipe':28} {'family':18} parts lines  paper", *lines])
    kinds = sorted({part.kind for part in entries().values()})
    kind = next((k for k in kinds if what in (k, k + "s", k[:-1] + "ies", k + "es")), None)
    if kind is None and what not in _GROUPS:
        words = ["recipes", *(k[:-1] + "ies" if k.endswith("y") else k + "s" for k in kinds), "data"]
        raise ConfigError(f"there is no list of {what!r}{suggest(what, words)}")
    using = users()
    rows = [
        {"name": n, "does": entries()[n].doc.partition("\n")[0], "recipes": using.get(n, [])}
        for n in (names(kind) if kind else [])
    ]
    choices = options(kind or what) if (kind or what) in _GROUPS else []
    lines = [f"{row['name']:28} {len(row['recipes']):3}  {row['does']}" for row in rows]
    lines = [f"{'part':28} recipes that name it, and what it does", *lines] if rows else []
    if choices:
        lines.append(f"choices of {kind or what}=: {', '.join(choices)}")
    return {"kind": kind or what, "parts": rows, "choices": choices}, "\n".join(lines)


def document(name: str) -> tuple[dict[str, Any], str]:
    """A part's signature, defaults, documentation and file, or a recipe's header, as an object and as text."""
    if name in recipes():
        return describe(name), recipe_file(name).read_text()
    part = entry(name)
    arguments = [vars(argument) for argument in part.arguments.values()]
    lines = [f"{name}    {part.file}:{part.line}", "", part.doc, ""]
    for argument in arguments:
        default = "required" if argument["default"] is None else f"= {argument['default']}"
        lines.append(f"  {argument['name']}: {argument['annotation']}  {default}")
    if part.supplied:
        lines.append(f"\nsupplied by its parent: {', '.join(part.supplied)}")
    content = {
        "name": name, "file": str(part.file), "line": part.line, "arguments": arguments, "supplied": part.supplied,
        "doc": part.doc,
    }  # fmt: skip
    return content, "\n".join(lines)
