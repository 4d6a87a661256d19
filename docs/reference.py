"""Pages that `mkdocs build` makes from the code: the table of recipes, and a page for each kind of part."""

from __future__ import annotations

import html
from typing import Any

from mkdocs.structure.files import File, Files

from mmssl.config.files import describe, recipes, users
from mmssl.registry import Entry, entries


def on_config(config: Any) -> Any:
    """Adds the pages to the navigation."""
    kinds = [{kind: f"reference/{kind}.md"} for kind in _kinds()]
    config.nav.append({"Reference": [{"Recipes": "reference/recipes.md"}, {"Parts": kinds}]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages themselves."""
    pages = {"recipes": _recipes(), **{kind: _parts(kind) for kind in _kinds()}}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def _kinds() -> list[str]:
    return sorted({entry.kind for entry in entries().values()})


def _recipes() -> str:
    """One line per recipe."""
    lines = ["# Recipes", "", "| recipe | family | paper | lines | parts |", "|---|---|---|---|---|"]
    for name in recipes():
        row = describe(name)
        parts = ", ".join(f"[`{part}`]({part.split('/')[0]}.md#{_anchor(part)})" for part in row["parts"])
        lines.append(f"| `{name}` | {', '.join(row['family'])} | {row['paper']} | {row['lines']} | {parts} |")
    return "\n".join(lines) + "\n"


def _parts(kind: str) -> str:
    """All parts of a kind: signature, documentation, file."""
    found, using = [entry for name, entry in sorted(entries().items()) if entry.kind == kind], users()
    lines = [line for entry in found for line in _part(entry, using.get(entry.name, []))]
    return "\n".join([f"# {kind}", "", *lines]) + "\n"


def _part(entry: Entry, recipes: list[str]) -> list[str]:
    lines = [f"## {entry.name} {{: #{_anchor(entry.name)} }}", ""]
    if entry.arguments:
        lines += ["| key | type | default |", "|---|---|---|"]
        for one in entry.arguments.values():
            default = "required" if one.default is None else _code(one.default)
            lines.append(f"| `{one.name}` | {_code(one.annotation or '')} | {default} |")
        lines.append("")
    if entry.supplied:
        lines += [f"Supplied by its parent: {', '.join(f'`{name}`' for name in entry.supplied)}.", ""]
    if recipes:
        lines += [f"Named by {', '.join(f'`{name}`' for name in recipes)}.", ""]
    return [
        *lines,
        f'<pre class="part">{html.escape(entry.doc)}</pre>',
        "",
        f"`{entry.module.replace('.', '/')}.py`, line {entry.line}",
        "",
    ]


def _code(text: str) -> str:
    """Code in a cell of a table, where a bar would begin the next cell."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _anchor(name: str) -> str:
    return name.replace("/", "-")
