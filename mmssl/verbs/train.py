"""`pretrain`, `resume` and `finetune`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from mmssl.verbs.words import Usage, emit, needed, split, take


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

    return _done(lambda: train(recipe, overrides), flags)


def resume(rest: list[str], flags: list[str]) -> int:
    """Goes on with a stopped run."""
    path, overrides = split(rest, "run")
    from mmssl.api import resume as go_on

    return _done(lambda: go_on(needed(path, "run", "resume"), overrides), flags)


def finetune(rest: list[str], flags: list[str]) -> int:
    """Fine-tunes an encoder on labelled data."""
    source, overrides = split(rest, "run, checkpoint or timm:NAME")
    source = needed(source, "run", "finetune")
    scratch = take(overrides, "scratch") == "true"
    numbers = {key: _number(overrides, key) for key in ("mixup", "cutmix", "val_share")}
    given = {key: value for key, value in numbers.items() if value is not None}
    from mmssl.api import finetune as train

    return _done(lambda: train(source, overrides, scratch, trust="--trust" in flags, **given), flags, "finetune")


def _number(overrides: list[str], key: str) -> float | None:
    word = take(overrides, key)
    try:
        return None if word is None else float(word)
    except ValueError as error:
        raise Usage(f"{key}={word}: a number is wanted, for instance {key}=0.5") from error


def _done(train: Callable[[], Any], flags: list[str], verb: str | None = None) -> int:
    """Trains, and the first rank tells; a run whose processes were lost has told already."""
    from mmssl.run.launch import rank
    from mmssl.run.spawning import RunFailed

    try:
        run = train()
    except RunFailed as error:
        print(f"mmssl: {error}", file=sys.stderr)
        return 1
    if rank() == 0:  # of processes that srun or torchrun have started
        emit(flags, run.summary | ({"verb": verb} if verb else {}), lambda: _told(run))
    return 0 if run.summary["status"] == "completed" else 1


def _told(run: Any) -> str:
    from mmssl.evaluation.telling import table

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
    if summary["status"] == "stopped":
        lines += ["", f"mmssl resume {run.path} goes on from here"]
    return "\n".join([*lines, "", f"report: {run.path / 'report.html'}"])
