"""A run that fits codes and trains nothing: one pass over the training data, and `codes.safetensors` at its end.

It has no state to go on from: where it was killed it begins again.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mmssl.config import build
from mmssl.run import checkpoints, directory, finetuning, launch
from mmssl.run.resume import alone, remember, remembered
from mmssl.run.trainer import Settings
from mmssl.run.training import Run, home

CODES = "codes.safetensors"


def fit(tree: dict[str, Any], command: list[str], resume: Path | None = None) -> Run:
    """Fits the codes that a configuration's `fit` says, on the first rank; the others wait for it.

    Args:
        tree: the configuration.
        command: what the user said.
        resume: the directory of the run to begin again; None for a new run.

    Returns:
        The run, which is `completed`.

    Raises:
        ConfigError: for a configuration that does not fit the data or itself.
    """
    settings = launch.fitted(build.make(tree["trainer"], "trainer"))
    # before ranks know of one another: nothing here is theirs to share
    found = _fit(tree, command, resume, settings) if launch.rank() == 0 else None
    with launch.Group(settings) as group:
        return group.share(found)


def _fit(tree: dict[str, Any], command: list[str], resume: Path | None, settings: Settings) -> Run:
    """The whole run, in this process."""
    started = time.perf_counter()
    data = build.data(tree)
    finetuning.adopt(tree["init_from"], data)
    module = module_of(tree, data.facts())
    if tree["init_from"]:
        checkpoints.init_from(module, tree["init_from"], tree["init_share"])
    run = resume or remembered(tree) or directory.create(home(tree))
    with alone(run):
        directory.opened(run, tree, command)
        directory.write_json(run / "data.json", data.facts())
        remember(tree, run)
        launch.tell("run", str(run.resolve()))
        part: Any = module.objective["fit"]
        tensors, told = part.fit(_sampled(module, data, part.tokens, "cuda" if settings.gpus else "cpu"))
        directory.replace_file(run / CODES, save(tensors))
        skipped = {"count": len(data.skipped), "files": list(data.skipped)[:1000]}
        wall = round(time.perf_counter() - started, 1)
        summary = directory.summary(run, tree, status="completed", fit=told, skipped=skipped, wall_s=wall)
        directory.write_json(run / "summary.json", summary)
        from mmssl.report.html import write as report

        report(run)
    return Run(run, summary)


def module_of(tree: dict[str, Any], facts: dict[str, Any]) -> Any:
    """The module of a run that fits, whose one term is the fit."""
    return build.module(tree | {"objective": {"fit": tree["fit"]}}, facts).eval()


@torch.no_grad()
def _sampled(module: Any, data: Any, count: int, device: str) -> Tensor:
    """So many rows (n, d) of what the fit reads of all training samples, drawn without replacement.

    Each row has a random key of its own, and those with the smallest keys are taken: so they do not depend on batches.
    """
    module.to(device)
    keys, rows = torch.empty(0, dtype=torch.int64), torch.empty(0, 0)
    loader = data.eval_loader("train")
    for i, batch in enumerate(loader):
        names = {name for look in module.looks.values() for name in look.views}
        seen = batch["x"].to(device)
        step = module.begin(batch | dict.fromkeys(names, seen))
        new_keys, new_rows = (x.cpu() for x in module.objective["fit"](step))
        keys, rows = torch.cat([keys, new_keys]), new_rows if i == 0 else torch.cat([rows, new_rows])
        if len(keys) > count:
            chosen = torch.argsort(keys)[:count]
            keys, rows = keys[chosen], rows[chosen]
    return rows[torch.argsort(keys)]
