"""Scores, monitors and pictures of a run, put together from the evaluation layer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmssl.config import build
from mmssl.data.source import BadSample
from mmssl.evaluation.features import Features, embed, untouched


def held_out(data: Any) -> str | None:
    """The split that final scores are taken on: test, else val; None without labels."""
    for name in ("test", "val"):
        if name in data.splits and data.splits[name].labels is not None:
            return name
    return None


def raw_features(data: Any, split: str, limit: int | None) -> Features:
    """The modality's raw-input baseline on a split, no encoder: one vector per sample, or per token of it."""
    labels, found = data.splits[split].labels, []
    for i, sample in data.plain(split, data.chosen(split, limit).tolist()):
        with contextlib.suppress(BadSample):  # opens, but cannot be decoded: the loader has counted it
            found.append((i, data.adapter.baseline(sample).float()))
    vectors = [vector for _, vector in found]
    if data.unit == "token":
        return Features(torch.cat(vectors), torch.cat([labels[i, : len(vector)] for i, vector in found]))
    return Features(torch.stack(vectors), labels[torch.tensor([i for i, _ in found])])


def pool_of(tree: Mapping[str, Any], data: Any) -> str:
    """How tokens become rows: one per token where labels belong to tokens, else as the configuration says."""
    return "token" if data.unit == "token" else tree["evaluation"]["pool"]


def final(tree: dict[str, Any], data: Any, module: Any) -> dict[str, Any]:
    """The `eval` block of summary.json for the run's own data; empty where there are no labels."""
    return score(tree, data, module.kept, partial(build.fresh_network, tree, data.facts()))


def score(tree: dict[str, Any], data: Any, network: Any, fresh: Callable[[int], Any] | str) -> dict[str, Any]:
    """Every protocol of a configuration on an encoder, beside random weights and the raw input."""
    from mmssl.evaluation.score import evaluate

    split = held_out(data)
    if split is None or data.splits["train"].labels is None:
        print("no labels, so no probes: label-free monitors stand in metrics.csv", file=sys.stderr)
        return {}
    said = tree["evaluation"]
    limit = said["limit"]

    def batches(name: str) -> Iterable[Mapping[str, Any]]:
        return data.eval_loader(name, limit)

    return evaluate(
        network,
        fresh,
        partial(batches, "train"),
        partial(batches, split),
        lambda: (raw_features(data, "train", limit), raw_features(data, split, limit)),
        {name: p for name, p in build.make(said["protocols"] or {}, "evaluation.protocols").items() if p is not None},
        pool_of(tree, data),
    )


def online(tree: dict[str, Any], data: Any, steps: int) -> Any:
    """The callback that looks at features during training, about ten times in a run unless told otherwise."""
    from mmssl.evaluation.online import Online

    said = tree["evaluation"]
    every = said["every_epochs"]
    limit = min(said["limit"] or 1000, 1000)
    pool = pool_of(tree, data)
    if every:
        return Online(every_epochs=every, limit=limit, pool=pool)
    return Online(every_epochs=None, every_steps=max(steps // 10, 1), limit=limit, pool=pool)


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
    if module.teacher is not None:
        said["teacher/ema_distance"] = float(module.teacher.distance())
    found = verdict(
        rows, latest, module.kept.dim, n=int(rows_seen(watcher)) or None, moving_target=module.teacher is not None,
        signals=said,
    )  # fmt: skip
    word = "diverged" if status == "diverged" else found.verdict
    monitors = {key: latest[key] for key in ("rankme", "feature_std", "uniformity") if key in latest}
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
