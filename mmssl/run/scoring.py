"""Scores, monitors and pictures of a run, put together from the evaluation layer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmssl.config import build
from mmssl.data.derived import Of
from mmssl.evaluation import supervised
from mmssl.evaluation.features import embed, untouched
from mmssl.run.materials import Materials, fitting, pool_of

MONITORS = ("rankme", "feature_std", "uniformity", "alpha_req", "lidar", "alignment")


def final(tree: dict[str, Any], data: Any, module: Any) -> dict[str, Any]:
    """The `eval` block of summary.json for the run's own data; empty where no protocol fits them."""
    if supervised.classifier(module) is not None:
        from mmssl.run.finetuning import finetuned

        return finetuned(tree, data, module)
    fresh = partial(build.fresh_network, tree, data.facts())
    found = results(tree, data, module.kept, fresh, module=lambda: module)
    return {name: result.entry() for name, result in found.items()}


def results(
    tree: dict[str, Any],
    data: Any,
    network: Any,
    fresh: Callable[[int], Any] | str,
    *,
    module: Callable[[], Any] | None = None,
    strict: bool = False,
    raw: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What every protocol of a configuration finds of an encoder, beside random weights and the raw input.

    Args:
        tree: the configuration.
        data: what it is scored on.
        network: the encoder.
        fresh: the same architecture with the weights of a seed, or why there is none.
        module: gives the whole trained module, predictors included; None for a foreign encoder.
        strict: whether a protocol that does not fit the data is an error, or is told and left out.
        raw: scores of the raw input, as in `mmssl.evaluation.score.evaluate`.

    Returns:
        `mmssl.evaluation.score.Result` by protocol; empty where none fits the data.
    """
    from mmssl.evaluation.score import evaluate, say

    materials = Materials(tree, data, module)
    made = build.make(tree["evaluation"]["protocols"] or {}, "evaluation.protocols")
    said = {name: protocol for name, protocol in made.items() if protocol is not None}
    protocols = fitting(said, materials, strict, say)
    if not protocols:
        why = "no protocol fits the data" if said else "no protocol is asked for"
        print(f"{why}, so no scores: label-free monitors stand in metrics.csv", file=sys.stderr)
        return {}
    needs = [getattr(protocol, "needs", "pooled") for protocol in protocols.values()]
    return evaluate(network, fresh, materials.of(needs), protocols, raw=raw)


def online(tree: dict[str, Any], data: Any, module: Any) -> Any:
    """The callback that looks at features during training, about ten times in a run unless told otherwise."""
    from mmssl.evaluation.online import Online

    said = tree["evaluation"]
    every = said["every_epochs"]
    more: dict[str, Any] = {"limit": min(said["limit"] or 1000, 1000), "pool": pool_of(tree, data)}
    if supervised.classifier(module) is not None:  # it answers itself, and no probe has to
        more |= {"protocols": {}}
    else:
        more |= {"view": drawn_view(data, module)}
    if not said.get("online", True):
        return Online(every_epochs=None, at_start=False, at_end=False, **more)
    if every:
        return Online(every_epochs=every, **more)
    return Online(every_epochs=None, every_steps=max(module.steps // 10, 1), **more)


def drawn_view(data: Any, module: Any) -> str | None:
    """The training view whose draws LiDAR compares: the first that the main network reads alone; None for none."""
    if data.unit == "token":  # a row is a token, and views may leave tokens out
        return None
    for look in module.looks.values():
        ops = data.views[look.views[0]]
        if look.network == "main" and len(look.views) == 1 and ops and not isinstance(ops[0], Of):
            return look.views[0]
    return None


def rows_seen(watcher: Any) -> float:
    """Number of samples the newest monitors were computed on; 0 before the first."""
    return watcher.history[-1]["n"] if watcher is not None and watcher.history else 0


def health(
    history: list[tuple[int, float]], watcher: Any, module: Any, status: str, signals: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The `health` block of summary.json: verdict, causes, remedies and the newest monitors."""
    from mmssl.evaluation.health import verdict

    rows: list[dict[str, float]] = [{"step": step, "loss": loss} for step, loss in history]
    latest: dict[str, float] = {}
    if watcher is not None:
        rows += watcher.history
        latest = watcher.latest
    rows.sort(key=lambda row: row["step"])
    said = dict(signals or {})
    found = verdict(
        rows, latest, module.kept.dim, n=int(rows_seen(watcher)) or None, moving_target=module.teacher is not None,
        signals=said,
    )  # fmt: skip
    word = "diverged" if status == "diverged" else found.verdict
    monitors = {key: latest[key] for key in MONITORS if key in latest}
    return {"verdict": word, "causes": found.causes, "remedies": found.remedies} | monitors | {"signals": said}


def draw(run: Path, tree: dict[str, Any], data: Any, module: Any) -> None:
    """The run's pictures: masks and reconstructions, nearest neighbours, a map of the features."""
    from mmssl.run.pictures import feature_map, neighbours, reconstructions

    folder = run / "pictures"
    folder.mkdir(exist_ok=True)
    split = "test" if "test" in data.splits else "train"
    ids: list[torch.Tensor] = []

    def noted() -> Iterable[Mapping[str, Any]]:
        for batch in data.eval_loader(split, 1000):
            ids.append(batch["id"])  # unreadable samples are left out, so places are not indices
            yield batch

    with untouched(), torch.inference_mode():
        reconstructions(folder, data, module)
        features = embed(module.kept.eval(), noted(), pool_of(tree, data))
        x, y = np.asarray(features.x), np.asarray(features.y)
        feature_map(folder, data, split, x, y)
        if data.unit == "sample":  # a token alone makes no picture
            neighbours(folder, data, split, x, y, torch.cat(ids))
