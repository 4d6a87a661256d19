"""Names of parts. `@register("masker/random")` gives a class or function a short name; nothing else changes.

Names are found by reading source, not by importing it, so that listing parts and checking a recipe take milliseconds
and need no heavy library. Imports the standard library only.

Two rules hold for every part, and replace schemas, late kinds and width arithmetic:

* what a recipe may say is **keyword-only**, and its default stands in the signature;
* what the parent supplies (sizes, neighbours, tensors) is **positional**.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])

_DECORATED = re.compile(r'^@register\("([^"]+)"\)\n(?:@.*\n)*(?:class|def) (\w+)', re.MULTILINE)


class UnknownName(ValueError):
    """A name that nothing has; the message says where it stood and what was probably meant."""


def suggest(got: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for near names, else the choices, at most twelve of them."""
    known = sorted(set(known))
    alike = {name: difflib.SequenceMatcher(None, got, name).ratio() for name in known}
    # a second guess only where it is nearly as good as the first
    near = [n for n in sorted(known, key=lambda n: -alike[n])[:2] if alike[n] >= max(0.6, max(alike.values()) - 0.1)]
    if not near:
        near = [name for name in known if got and (name.endswith("/" + got) or got in name)][:3]
    if near:
        return f"; did you mean {' or '.join(repr(name) for name in near)}?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; there is: {shown}" if known else ""


@dataclass(frozen=True)
class Argument:
    """One argument that a recipe may give a part."""

    name: str
    default: str | None
    annotation: str | None


@dataclass(frozen=True)
class Entry:
    """Where a registered part lives, known without importing it."""

    name: str
    module: str
    attribute: str
    file: Path

    @property
    def kind(self) -> str:
        """The word before the slash: masker, encoder, loss."""
        return self.name.split("/")[0]

    @property
    def node(self) -> ast.ClassDef | ast.FunctionDef:
        """The part's definition in its source file."""
        for node in _tree(self.file).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == self.attribute:
                return node
        raise AssertionError(f"{self.attribute} is not at the top level of {self.file}")

    @property
    def line(self) -> int:
        """The line its definition starts at."""
        return self.node.lineno

    @property
    def doc(self) -> str:
        """The part's docstring."""
        return ast.get_docstring(self.node) or ""

    @property
    def signature(self) -> ast.arguments:
        """Arguments of the function, or of the class's `__init__`."""
        node = self.node
        if isinstance(node, ast.FunctionDef):
            return node.args
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                return item.args
        return ast.arguments([], [], None, [], [], None, [])

    @property
    def arguments(self) -> dict[str, Argument]:
        """What a recipe may say: the keyword-only arguments."""
        args = self.signature
        return {
            arg.arg: Argument(
                arg.arg,
                None if default is None else ast.unparse(default),
                None if arg.annotation is None else ast.unparse(arg.annotation),
            )
            for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
        }

    @property
    def supplied(self) -> list[str]:
        """What the parent supplies: the positional arguments."""
        args = self.signature
        return [arg.arg for arg in (*args.posonlyargs, *args.args) if arg.arg != "self"]

    def load(self) -> Callable[..., Any]:
        """Imports the part.

        Raises:
            UnknownName: when a library that its module needs is missing or does not fit.
        """
        try:
            module = importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            raise UnknownName(f"{self.name} cannot be used here: importing {self.module} failed ({error})") from error
        return getattr(module, self.attribute)


_loaded: dict[str, str] = {}


def register(name: str) -> Callable[[T], T]:
    """Gives a class or function the name `kind/name`. Registering adds a name and nothing else.

    Raises:
        ValueError: when another object has the name already.
    """

    def keep(part: T) -> T:
        place = f"{part.__module__}.{part.__qualname__}"
        if _loaded.setdefault(name, place) != place:
            raise ValueError(f"two parts are called {name!r}: {_loaded[name]} and {place}")
        return part

    return keep


@cache
def roots() -> list[tuple[str, Path]]:
    """Packages whose parts have short names: mmssl and every package of the entry-point group `mmssl`.

    A package that cannot be found is left out with a warning: the others go on working.
    """
    found = [("mmssl", Path(__file__).parent)]
    for point in importlib.metadata.entry_points(group="mmssl"):
        try:
            spec = importlib.util.find_spec(point.value)
        except ImportError:
            spec = None
        places = (spec.submodule_search_locations or []) if spec else []
        if not places:
            owner = point.dist.name if point.dist else point.name
            warnings.warn(
                f"the plug-in {owner} names the package {point.value!r}, which is not there; its parts and recipes are "
                f"missing. Install it again, or remove it: pip uninstall {owner}",
                stacklevel=2,
            )
        found += [(point.value, Path(place)) for place in places]
    return found


def plugins() -> dict[str, str]:
    """Installed distributions that bring parts or recipes, and their versions."""
    points = importlib.metadata.entry_points(group="mmssl")
    return {point.dist.name: point.dist.version for point in points if point.dist is not None}


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def entries() -> dict[str, Entry]:
    """Every registered part by name.

    Raises:
        ValueError: when two parts have the same name.
    """
    found: dict[str, Entry] = {}
    for package, folder in roots():
        for file in sorted(folder.rglob("*.py")):
            module = ".".join([package, *file.relative_to(folder).with_suffix("").parts])
            for name, attribute in _DECORATED.findall(file.read_text()):
                entry = Entry(name, module.removesuffix(".__init__"), attribute, file)
                if name in found:
                    raise ValueError(f"two parts are called {name!r}: {found[name].file} and {file}")
                found[name] = entry
    return found


def entry(name: str, where: str = "") -> Entry:
    """The entry of a name.

    Args:
        name: `kind/name`.
        where: the key of the configuration it stood at, for the message.

    Raises:
        UnknownName: naming the key and what was probably meant.
    """
    known = entries()
    if name in known:
        return known[name]
    kind = name.split("/")[0]
    same = [other for other in known if other.startswith(kind + "/")]
    place = f"{where}: " if where else ""
    raise UnknownName(f"{place}unknown part {name!r}{suggest(name, same or known)}")


def names(kind: str | None = None) -> list[str]:
    """All names, or those of one kind."""
    return sorted(name for name in entries() if kind is None or name.startswith(kind + "/"))
