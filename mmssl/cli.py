"""`mmssl VERB [RECIPE | RUN] [flags] [key=value ...]`. Verbs that talk import nothing heavy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from mmssl.registry import UnknownName, suggest

HELP = """usage: mmssl VERB [RECIPE | RUN] [--json] [-m] [key=value ...]

Train:     pretrain RECIPE [key=value ...]       such as mmssl pretrain image/mae data=sample
           pretrain -m RECIPE,RECIPE key=a,b     a sweep over recipes and values
Measure:   evaluate RUN | CKPT | timm:NAME [protocol=knn,linear] [data=...]
           embed RUN | CKPT out=FILE [what=features | imputed] [data=...]
           bench RECIPE                          step time, samples/s, data wait, memory
Look:      list [recipes | modalities | maskers | ...]     doc PART     show RECIPE     preview RECIPE [out=FILE]
Runs:      runs [DIR]                            report RUN ... [out=FILE.html]

--json prints exactly one object on standard output. Any argument of any part is a key: masker.ratio=0.6.
`mmssl list recipes` shows what can be trained, `mmssl doc PART` what a part takes."""


class Usage(ValueError):
    """A command line that makes no sense."""


def main(argv: list[str] | None = None) -> int:
    """The console command.

    Returns:
        0, or 1 for a run that diverged, or 2 for a command line or configuration that was refused.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] in ("--version", "version"):
        from mmssl import __version__

        print(__version__)
        return 0
    flags = [word for word in words if word.startswith("-")]
    try:
        verb, *rest = [word for word in words if not word.startswith("-")] or [""]
        if verb not in VERBS:
            raise Usage(f"there is no verb {verb!r}{suggest(verb, VERBS)}. `mmssl --help` lists them.")
        if {"-h", "--help"} & set(flags):
            print(HELP)
            return 0
        if unknown := [flag for flag in flags if flag not in ("--json", "-m", "--multirun", "--trust")]:
            raise Usage(f"there is no flag {unknown[0]!r}{suggest(unknown[0], ['--json', '-m', '--trust'])}")
        return VERBS[verb](rest, flags) or 0
    except (ValueError, UnknownName) as error:
        print(f"mmssl: {error}", file=sys.stderr)
        return 2


def emit(flags: list[str], content: dict[str, Any], text: Callable[[], str]) -> None:
    """One JSON object with --json, else text."""
    print(json.dumps(content, ensure_ascii=False) if "--json" in flags else text())


def split(rest: list[str], what: str) -> tuple[str | None, list[str]]:
    """The first bare word, and the overrides.

    Raises:
        Usage: when there are several bare words.
    """
    bare = [word for word in rest if "=" not in word]
    if len(bare) > 1:
        raise Usage(f"one {what} is wanted, got {' and '.join(bare)}; overrides are written key=value")
    return (bare[0] if bare else None), [word for word in rest if "=" in word]


def needed(word: str | None, what: str, verb: str) -> str:
    """The word, or an error that says what is missing."""
    if word is None:
        shows = "list recipes" if what == "recipe" else "runs"
        raise Usage(f"`mmssl {verb}` needs a {what}; `mmssl {shows}` shows what there is")
    return word


def take(overrides: list[str], key: str) -> str | None:
    """Removes `key=value` from the overrides and returns the value."""
    for override in overrides:
        if override.startswith(f"{key}="):
            overrides.remove(override)
            return override.partition("=")[2]
    return None


def pretrain(rest: list[str], flags: list[str]) -> int:
    """Trains a recipe, or several with -m."""
    recipe, overrides = split(rest, "recipe")
    if recipe is None and not any(o.startswith("recipe=") for o in overrides):
        needed(recipe, "recipe", "pretrain")
    if {"-m", "--multirun"} & set(flags):
        from mmssl.sweep import sweep

        result = sweep(recipe, overrides)
        emit(flags, result, lambda: f"sweep: {result['path']}")
        return 0 if all(job["status"] == "completed" for job in result["jobs"]) else 1
    from mmssl.api import pretrain as train

    run = train(recipe, overrides)
    emit(flags, run.summary, lambda: _told(run))
    return 0 if run.summary["status"] == "completed" else 1


def _told(run: Any) -> str:
    from mmssl.evaluation.score import table

    summary = run.summary
    health = summary["health"]
    lines = [f"\n{summary['recipe']}: {summary['status']} after {summary['steps']} steps in {summary['wall_s']:.0f} s"]
    if summary["train"]["loss"] is not None:
        lines.append(
            f"loss {summary['train']['first_loss']:.4f} -> {summary['train']['loss']:.4f}, health: {health['verdict']}"
        )
    lines += [f"  {cause} {remedy}" for cause, remedy in zip(health["causes"], health["remedies"], strict=True)]
    if summary["eval"]:
        lines += ["", table(summary["eval"])]
    return "\n".join([*lines, "", f"report: {run.path / 'report.html'}"])


def evaluate(rest: list[str], flags: list[str]) -> int:
    """Scores an encoder."""
    source, overrides = split(rest, "run, checkpoint or timm:NAME")
    protocols = take(overrides, "protocol")
    from mmssl.api import evaluate as score

    summary = score(
        needed(source, "run", "evaluate"), overrides, protocols.split(",") if protocols else None, "--trust" in flags
    )
    from mmssl.evaluation.score import table

    emit(flags, summary, lambda: table(summary["eval"]) + f"\n\nwritten to {summary['run']}")
    return 0


def embed(rest: list[str], flags: list[str]) -> int:
    """Features of a data set in a file, or the data with missing values filled in."""
    source, overrides = split(rest, "run or checkpoint")
    out, what = take(overrides, "out"), take(overrides, "what") or "features"
    if out is None:
        raise Usage("`mmssl embed RUN` needs out=FILE.npz (or .parquet, .safetensors)")
    from mmssl.api import embed as write

    content = write(needed(source, "run", "embed"), out, overrides, what, "--trust" in flags)
    emit(flags, {"verb": "embed", "schema": 1} | content, lambda: f"wrote {content['file']}")
    return 0


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
    from mmssl.api import resolve

    tree = resolve(needed(recipe, "recipe", "preview"), overrides)
    from mmssl.config import build
    from mmssl.run.pictures import preview as draw

    data = build.data(tree)
    draw(data, build.module(tree, data.facts()), out)
    emit(flags, {"verb": "preview", "schema": 1, "file": str(out)}, lambda: f"wrote {out}")
    return 0


def bench(rest: list[str], flags: list[str]) -> int:
    """Step time, samples/s, data wait and memory, as JSON."""
    recipe, overrides = split(rest, "recipe")
    steps = int(take(overrides, "steps") or 20)
    from mmssl.api import resolve

    tree = resolve(needed(recipe, "recipe", "bench"), overrides)
    from mmssl.run.bench import bench as measure

    content = {"verb": "bench", "schema": 1} | measure(tree, steps)
    emit(flags, content, lambda: json.dumps(content, indent=1))
    return 0


def runs(rest: list[str], flags: list[str]) -> int:
    """A table of the runs under a folder."""
    from mmssl.runs import find, text

    found = find(rest[0] if rest else None)
    emit(flags, {"verb": "runs", "schema": 1, "runs": found}, lambda: text(found))
    return 0


def report(rest: list[str], flags: list[str]) -> int:
    """Writes report.html of one run, or one page of several."""
    from pathlib import Path

    overrides = [word for word in rest if "=" in word]
    out = take(overrides, "out")
    paths = [Path(word) for word in rest if "=" not in word]
    if not paths:
        needed(None, "run", "report")
    from mmssl.report.html import write

    file = write(paths[0] if len(paths) == 1 else paths, Path(out) if out else None)
    emit(flags, {"verb": "report", "schema": 1, "file": str(file)}, lambda: f"wrote {file}")
    return 0


VERBS: dict[str, Callable[[list[str], list[str]], int]] = {
    "pretrain": pretrain,
    "evaluate": evaluate,
    "embed": embed,
    "list": list_,
    "doc": doc,
    "show": show,
    "preview": preview,
    "bench": bench,
    "runs": runs,
    "report": report,
}

if __name__ == "__main__":
    sys.exit(main())
