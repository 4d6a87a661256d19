"""Limits of the code that no other tool holds. Each message names file and line."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmssl import registry

# Left to right in the order of DESIGN: a module imports from its own row and the rows above, never from below.
LAYERS = [
    ("compat", "draws", "joining", "masks", "ranks", "registry", "types"),
    ("data", "plan", "step"),
    ("nn",),
    ("parts",),
    ("modalities",),
    ("evaluation", "report"),
    ("module",),
    ("config",),
    ("run", "runs"),
    ("api",),
    ("listing", "sweep"),
    ("verbs",),
    ("cli",),
]
HYDRA = {"config", "cli", "sweep"}  # the modules that may import hydra and omegaconf
FILE_LINES = 300
FUNCTION_LINES = 60
LINES_OF = {"module.py": 200}  # files with a limit of their own

PACKAGE = Path(registry.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def place(file: Path, line: int) -> str:
    return f"{file.relative_to(PACKAGE.parent)}:{line}"


def dotted(file: Path) -> list[str]:
    """The module's name below mmssl; a package's own file is called `__init__`."""
    return list(file.relative_to(PACKAGE).with_suffix("").parts)


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, at any depth: `from a.b import c` gives `a.b.c`."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = ["mmssl", *dotted(file)][: -node.level] if node.level else []
            source = ".".join([*parents, *filter(None, [node.module])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def inner(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Imports from mmssl itself, as parts of the name below it."""
    for line, name in imports(file):
        if name.split(".")[0] == "mmssl":
            yield line, name.split(".")[1:]


def definitions(file: Path) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Functions and classes at the top level and in public classes, with their qualified names."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.If, ast.Try)):
                yield from walk(node.body + node.orelse, prefix)

    yield from walk(tree(file).body, "")


def public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def report(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def test_every_module_has_a_layer():
    """A new module at the top has to be given its place; the package's own file re-exports lazily and has none."""
    names = {dotted(file)[0] for file in FILES} - {"__init__", "__main__"}
    unknown = sorted(names - LEVEL.keys())
    report([f"mmssl/{name}: not in LAYERS; give it a row in {Path(__file__).name}" for name in unknown])


def test_imports_point_left():
    found = []
    for file in FILES:
        own = dotted(file)[0]
        if own not in LEVEL:
            continue
        for line, target in inner(file):
            if target == ["__version__"]:
                continue
            if not target or target[0] not in LEVEL:
                what = ".".join(["mmssl", *target])
                found.append(f"{place(file, line)}: imports {what}; import from the module that defines it")
            elif LEVEL[target[0]] > LEVEL[own]:
                found.append(f"{place(file, line)}: {own} imports {target[0]}, which comes after it")
    report(found)


def test_modalities_do_not_import_each_other():
    found = []
    for file in FILES:
        own = dotted(file)
        if own[0] != "modalities" or len(own) < 3:
            continue
        for line, target in inner(file):
            other = target[1] if target[:1] == ["modalities"] and len(target) > 1 else own[1]
            if other != own[1] and (PACKAGE / "modalities" / other).is_dir():
                found.append(f"{place(file, line)}: modality {own[1]} imports modality {other}")
    report(found)


def test_hydra_stays_outside():
    found = [
        f"{place(file, line)}: imports {name}; only {' and '.join(sorted(HYDRA))} know Hydra, parts take arguments"
        for file in FILES
        if dotted(file)[0] not in HYDRA
        for line, name in imports(file)
        if name.split(".")[0] in ("hydra", "omegaconf")
    ]
    report(found)


def test_files_are_short():
    found = []
    for file in FILES:
        count = len(file.read_text().splitlines())
        limit = LINES_OF.get(str(file.relative_to(PACKAGE)), FILE_LINES)
        if count > limit:
            found.append(f"{place(file, limit)}: {count} lines, at most {limit}")
    report(found)


def test_functions_are_short():
    found = []
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, Function):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > FUNCTION_LINES:
                    found.append(f"{place(file, node.lineno)}: {node.name} has {count} lines, at most {FUNCTION_LINES}")
    report(found)


def test_parts_are_documented():
    found = []
    for entry in registry.entries().values():
        first, _, rest = entry.doc.partition("\n")
        if not first.endswith((".", "?", "!")) or (rest and not rest.startswith("\n")):
            where = f"{entry.file}:{entry.line}"
            found.append(f"{where}: {entry.name} needs a docstring whose first line is one sentence that stands alone")
    report(found)


def test_public_names_are_documented():
    found = [
        f"{place(file, node.lineno)}: {name} has no docstring"
        for file in FILES
        for name, node in definitions(file)
        if public(name) and not ast.get_docstring(node) and not overload_or_setter(node)
    ]
    bare = [file for file in FILES if tree(file).body and not ast.get_docstring(tree(file))]
    found += [f"{place(file, 1)}: the module has no docstring" for file in bare]
    report(found)


def overload_or_setter(node: Function | ast.ClassDef) -> bool:
    return any(ast.unparse(item).endswith(("overload", ".setter")) for item in node.decorator_list)


def test_everything_is_annotated():
    found = []
    for file in FILES:
        for name, node in definitions(file):
            if isinstance(node, ast.ClassDef):
                continue
            if lacking := unannotated(node, method="." in name):
                found.append(f"{place(file, node.lineno)}: {name} lacks the annotation of {', '.join(lacking)}")
    report(found)


def unannotated(node: Function, method: bool) -> list[str]:
    args = node.args
    given = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
    static = any(ast.unparse(item) == "staticmethod" for item in node.decorator_list)
    skip = {given[0].arg} if method and not static and given else set()
    lacking = [arg.arg for arg in given if arg.annotation is None and arg.arg not in skip]
    return lacking + (["what it returns"] if node.returns is None else [])


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(a, *, b: int): ...", ["a", "what it returns"]),
        ("def f(a: int, *args, **rest: int) -> int: ...", ["args"]),
        ("class C:\n  def f(self, a: int) -> int: ...\n  @staticmethod\n  def g(a) -> int: ...", ["a"]),
    ],
)
def test_of_the_annotation_check(code, expected, tmp_path):
    file = tmp_path / "case.py"
    file.write_text(code)
    functions = [(name, node) for name, node in definitions(file) if isinstance(node, Function)]
    assert [word for name, node in functions for word in unannotated(node, "." in name)] == expected


def test_of_the_import_reader(tmp_path, monkeypatch):
    """Imports inside functions, relative ones and `from mmssl import x` are all seen."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "parts").mkdir()
    file = tmp_path / "parts" / "losses.py"
    file.write_text("from mmssl import cli\nfrom .. import step\ndef f():\n  import mmssl.nn\n  from .heads import g\n")
    assert sorted(inner(file)) == [(1, ["cli"]), (2, ["step"]), (4, ["nn"]), (5, ["parts", "heads", "g"])]
