"""Fine-tuning: a run's encoder as a beginning, with data as it knew them, and what the end is compared with."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmssl.config import build
from mmssl.config.compose import ConfigError
from mmssl.evaluation import supervised
from mmssl.evaluation.score import say
from mmssl.registry import register
from mmssl.run import checkpoints, scoring
from mmssl.run.materials import held_out

_FORMAT = "encoder:"
# What facts say of the data alone; all others say how an encoder reads them.
_OWN = ("size", "classes", "samples", "splits", "fingerprint")


@register("format/encoder")
def encoder(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The encoder of a checkpoint of ours as the main network: of the branch that its recipe keeps, nothing else."""
    kept = checkpoints.kept_encoder(content, "init_from")
    return {f"networks.main.{name}": value for name, value in kept.items()}


def adopt(init_from: str | None, data: Any) -> None:
    """Shows data to an encoder that is loaded as the data it was made with were: columns, categories, statistics.

    Args:
        init_from: the run's key; only `encoder:FILE` brings facts with it.
        data: the data module.
    """
    if not init_from or not init_from.startswith(_FORMAT):
        return
    file = Path(init_from.removeprefix(_FORMAT))
    facts = checkpoints.ours(checkpoints.read(file, lazy=True), file)["facts"]
    own = data.facts()
    data.use(dict(facts) | {name: own[name] for name in _OWN})


def finetuned(tree: dict[str, Any], data: Any, module: Any) -> dict[str, Any]:
    """The `eval` block of a run with a term that names classes: its own score, and probes of what it began with.

    Args:
        tree: the run's configuration.
        data: its data.
        module: its module, trained.

    Returns:
        `finetune`, with `linear_probe` beside it where that is configured, and an entry of each protocol, of the
        encoder as it was loaded, frozen.
    """
    split = held_out(data)
    if split is None:
        return {}
    say(f"evaluate: the fine-tuned classifier on {split}")
    limit = tree["evaluation"]["limit"]
    found = supervised.score(module, data.eval_loader(split, limit))
    why = {"raw_input": "a classifier is fine-tuned from an encoder, not from raw input"}
    why["random_init"] = "not trained from scratch; `mmssl finetune RUN scratch=true` does both"
    entry: dict[str, Any] = {
        "metric": found.metric, "value": found.value, "ci95": list(found.ci95), "random_init": None,
        "random_init_ci95": None, "raw_input": None, "raw_input_ci95": None, "why": why,
        "n_train": int((data.splits["train"].labels >= 0).sum()), "n_test": found.n, "split": split,
        "chosen": found.chosen,
    }  # fmt: skip
    block = {"finetune": entry}
    if tree["init_from"] and any((tree["evaluation"]["protocols"] or {}).values()):
        try:
            block |= _probes(tree, data)
        except ConfigError as error:  # the encoder it began with may be gone by now
            print(f"mmssl: no probes of the encoder it began with: {error}", file=sys.stderr)
    if "linear" in block:
        entry["linear_probe"], entry["linear_probe_ci95"] = block["linear"]["value"], block["linear"]["ci95"]
    return block


def _probes(tree: dict[str, Any], data: Any) -> dict[str, Any]:
    """Every protocol of the configuration on the encoder as it was loaded."""
    fresh = build.module(tree, data.facts())
    checkpoints.init_from(fresh, tree["init_from"], tree["init_share"])
    random = partial(build.fresh_network, tree, data.facts())
    found = scoring.results(tree, data, fresh.kept.eval(), random, module=lambda: fresh)
    return {name: result.entry() for name, result in found.items()}
