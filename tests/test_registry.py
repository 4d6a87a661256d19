"""Names of parts are found by reading source, and say the same as the imported parts."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import subprocess
import sys

import pytest

from mmssl import registry
from mmssl.registry import UnknownName, register, suggest


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a part of its own, in place of mmssl."""
    folder = tmp_path / "extra_parts"
    folder.mkdir()
    monkeypatch.setattr(registry, "roots", lambda: [("extra_parts", folder)])
    registry.entries.cache_clear()
    yield folder
    registry.entries.cache_clear()


def test_unknown_name_is_answered_with_a_near_one():
    with pytest.raises(UnknownName, match=r"^masker: unknown part 'masker/randm'; did you mean 'masker/random'\?$"):
        registry.entry("masker/randm", "masker")
    with pytest.raises(UnknownName, match="did you mean 'encoder/vit'"):
        registry.entry("encodr/vit")
    assert issubclass(UnknownName, ValueError)


def test_suggest_names_at_most_twelve_choices():
    assert suggest("zzz", [f"part{i:02d}" for i in range(20)]).count(",") == 12
    assert suggest("zzz", [f"part{i:02d}" for i in range(20)]).endswith("part11, ...")
    assert suggest("zzz", []) == ""
    assert suggest("random", ["masker/random", "masker/units"]) == "; did you mean 'masker/random'?"


def test_two_objects_may_not_share_a_name():
    @register("test/once")
    def first() -> None: ...

    assert register("test/once")(first) is first
    with pytest.raises(ValueError, match=r"two parts are called 'test/once'.*first.*second"):

        @register("test/once")
        def second() -> None: ...


def test_two_files_may_not_share_a_name(package):
    for name in ("one", "two"):
        (package / f"{name}.py").write_text('@register("masker/same")\ndef part(): ...\n')
    with pytest.raises(ValueError, match=r"two parts are called 'masker/same'.*one\.py.*two\.py"):
        registry.entries()


def test_only_plain_decorators_at_top_level_count(package):
    (package / "__init__.py").write_text(
        '@register("kind/root")\ndef root(spec, /, width, *, depth: int = 3): "Doc."\n'
    )
    (package / "sub").mkdir()
    (package / "sub" / "part.py").write_text(
        '@register("kind/plain")\n@other\nclass Plain:\n    """Says."""\n'
        '@register("kind/made")\nclass Made:\n    def __init__(self, spec, *, size: int | None, step: float = 1e-3): ...\n'
        'if True:\n    @register("kind/indented")\n    def indented(): ...\n'
        'register("kind/called")(len)\n'
    )
    found = registry.entries()
    assert sorted(found) == ["kind/made", "kind/plain", "kind/root"]
    assert (found["kind/plain"].module, found["kind/root"].module) == ("extra_parts.sub.part", "extra_parts")
    assert found["kind/root"].kind == "kind"
    assert found["kind/plain"].arguments == {} and found["kind/plain"].doc == "Says."
    made, root = found["kind/made"], found["kind/root"]
    assert made.supplied == ["spec"] and root.supplied == ["spec", "width"]
    assert [(a.name, a.default, a.annotation) for a in made.arguments.values()] == [
        ("size", None, "int | None"), ("step", "0.001", "float"),
    ]  # fmt: skip
    assert root.arguments["depth"].default == "3" and root.line == 2
    assert registry.names("kind") == ["kind/made", "kind/plain", "kind/root"] and registry.names("other") == []


def test_entry_points_add_packages(tmp_path, monkeypatch):
    folder = tmp_path / "mmssl_test_plugin"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "parts.py").write_text(
        'from mmssl.registry import register\n@register("loss/test_plugin")\ndef loss(a, b):\n    return a - b\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    point = importlib.metadata.EntryPoint("plugin", "mmssl_test_plugin", "mmssl")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == "mmssl" else [])
    registry.roots.cache_clear()
    registry.entries.cache_clear()
    try:
        assert "mmssl_test_plugin" not in sys.modules
        found = registry.entry("loss/test_plugin")
        assert found.module == "mmssl_test_plugin.parts"
        assert found.load()(5, 3) == 2
        assert "loss/mse" in registry.names("loss")
    finally:
        registry.roots.cache_clear()
        registry.entries.cache_clear()


def test_a_part_that_cannot_be_imported_says_why(package, monkeypatch):
    (package / "broken.py").write_text('import no_such_library\n@register("kind/broken")\ndef part(): ...\n')
    monkeypatch.syspath_prepend(str(package.parent))
    (package / "__init__.py").write_text("")
    with pytest.raises(UnknownName, match=r"kind/broken cannot be used here.*no_such_library"):
        registry.entry("kind/broken").load()


def test_reading_signatures_imports_nothing_heavy():
    code = (
        "import sys\nfrom mmssl import registry\n"
        "for e in registry.entries().values():\n    e.arguments, e.supplied, e.doc, e.line\n"
        "assert len(registry.names()) > 30\n"
        "heavy = {'torch', 'numpy', 'hydra', 'omegaconf', 'lightning', 'timm', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", registry.names())
def test_the_static_signature_is_the_real_one(name):
    entry = registry.entry(name)
    part = entry.load()
    module = importlib.import_module(entry.module)
    has_init = not inspect.isclass(part) or "__init__" in vars(part)
    parameters = list(inspect.signature(part).parameters.values()) if has_init else []
    supplied = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    assert entry.supplied == supplied
    said = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert list(entry.arguments) == list(said)
    for key, argument in entry.arguments.items():
        real = said[key]
        assert (argument.default is None) == (real.default is inspect.Parameter.empty), key
        if argument.default is not None:
            assert eval(argument.default, dict(vars(module))) == real.default, key
        assert argument.annotation == ast.unparse(ast.parse(str(real.annotation), mode="eval")), key


@pytest.mark.parametrize("name", registry.names())
def test_every_part_keeps_the_two_rules(name):
    """Positional arguments have no default (the parent supplies them), and nothing swallows keywords."""
    args = registry.entry(name).signature
    assert args.kwarg is None and args.vararg is None
    assert not args.defaults
    assert all(argument.annotation for argument in registry.entry(name).arguments.values())
