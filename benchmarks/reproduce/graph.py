"""Published scores of graph methods, repeated: GraphMAE on nodes (linear probe) and on graphs (SVM, 10 folds)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mmssl
from mmssl.types import Tokens, View

Job = Callable[[Path, Path], dict[str, Any]]

# data set: (seeds, published accuracy, its deviation, where the files lie below the data root, probe)
_NODES = {
    "cora": (10, 84.2, 0.4, "graph/planetoid", {"lr": 0.01, "weight_decay": 1e-4, "epochs": 300}),
    "pubmed": (1, 81.1, 0.4, "graph/planetoid", {"lr": 0.01, "weight_decay": 1e-4, "epochs": 300}),
}
_GRAPHS = {
    "mutag": (5, 88.19, 1.26, "graph/tu", "sum"),
    "imdb_binary": (5, 75.52, 0.66, "graph/tu", "mean"),
    "nci1": (2, 80.40, 0.30, "graph/tu", "mean"),
}


def jobs() -> dict[str, Job]:
    """Every reproduction by name: a function of (folder of the data, folder of the runs) to a plain record."""
    found: dict[str, Job] = {}
    for name, (seeds, value, deviation, folder, probe) in _NODES.items():
        for seed in range(seeds):
            score = partial(linear_probe, seed=seed, **probe)
            found[f"graph-graphmae/{name}/seed{seed}"] = partial(_job, name, seed, folder, (value, deviation), score)
    for name, (seeds, value, deviation, folder, pooling) in _GRAPHS.items():
        for seed in range(seeds):
            score = partial(support_vectors, pooling=pooling)
            found[f"graph-graphmae/{name}/seed{seed}"] = partial(_job, name, seed, folder, (value, deviation), score)
    return found


def _job(
    name: str,
    seed: int,
    folder: str,
    published: tuple[float, float],
    score: Callable[..., dict[str, Any]],
    data_root: Path,
    run_root: Path,
) -> dict[str, Any]:
    """Trains and scores; a run that is complete already is only scored, one that was killed is begun anew."""
    overrides = [f"data={name}", f"data.root={data_root.resolve() / folder}", f"seed={seed}"]
    run = _complete(run_root)
    if run is None:
        run = mmssl.pretrain("graph/graphmae", [*overrides, f"run.root={run_root}"]).path
    scoring = time.perf_counter()
    _, data = mmssl.build("graph/graphmae", overrides)
    found = score(mmssl.load(run), data)
    summary = json.loads((run / "summary.json").read_text())
    shown = [override.replace(str(data_root.resolve()), "DATA") for override in overrides]
    return {
        "recipe": "graph/graphmae", "set": name, "seed": seed, "published": f"{published[0]} ± {published[1]}",
        "wall_s": summary["wall_s"], "probe_s": round(time.perf_counter() - scoring, 1), "steps": summary["steps"],
        "train": summary["train"], "health": summary["health"], "eval": summary["eval"],
        "command": " ".join(["mmssl pretrain graph/graphmae", *shown]), **found,
    }  # fmt: skip


def _complete(home: Path) -> Path | None:
    """The newest complete run below a folder."""
    for summary in sorted(home.glob("**/summary.json"), reverse=True):
        if json.loads(summary.read_text()).get("status") == "completed":
            return summary.parent
    return None


def linear_probe(
    encoder: nn.Module, data: Any, *, seed: int, lr: float, weight_decay: float, epochs: int
) -> dict[str, Any]:
    """One linear layer on frozen features of all nodes, trained by Adam; test accuracy at the best validation epoch.

    GraphMAE's protocol: of equally good epochs the last counts.
    """
    sample = data.dataset("train").read(0)
    with torch.no_grad():
        x = encoder(View(data.adapter.collate([sample]), "graph")).x.clone()
    y = {split: data.dataset(split).labels[0] for split in ("train", "val", "test")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = nn.Linear(x.shape[1], int(y["train"].max()) + 1)
    optimizer = torch.optim.Adam(probe.parameters(), lr=lr, weight_decay=weight_decay)
    best = {"val": -1.0, "test": 0.0, "epoch": 0}
    last = 0.0
    for epoch in range(epochs):
        loss = nn.functional.cross_entropy(probe(x[y["train"] >= 0]), y["train"][y["train"] >= 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            right = probe(x).argmax(1)
        val, last = (float((right == y[split])[y[split] >= 0].double().mean()) for split in ("val", "test"))
        if val >= best["val"]:
            best = {"val": val, "test": last, "epoch": epoch}
    chosen = {"lr": lr, "weight_decay": weight_decay, "epochs": epochs, "best_epoch": best["epoch"]}
    return {
        "metric": "linear", "value": 100 * best["test"], "val": 100 * best["val"],
        "last_epoch": 100 * last, "chosen": chosen,
    }  # fmt: skip


def support_vectors(encoder: nn.Module, data: Any, *, pooling: str) -> dict[str, Any]:
    """Micro-F1 of an RBF SVM on pooled features, in ten folds of all graphs; C by a grid search inside each fold."""
    import numpy as np
    from sklearn.metrics import f1_score
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.svm import SVC

    dataset = data.dataset("train")
    samples = [dataset.read(i) for i in range(len(dataset))]
    with torch.no_grad():
        parts = [
            pool(encoder(View(data.adapter.collate(samples[i : i + 64]), "graph")), pooling)
            for i in range(0, len(samples), 64)
        ]
    x, y = torch.cat(parts).numpy(), torch.cat([sample.y for sample in samples]).numpy()
    grid = {"C": [1e-3, 1e-2, 1e-1, 1, 10]}
    scores, chosen = [], []
    for train, test in StratifiedKFold(10, shuffle=True, random_state=0).split(x, y):
        search = GridSearchCV(SVC(random_state=42), grid).fit(x[train], y[train])
        scores.append(f1_score(y[test], search.predict(x[test]), average="micro"))
        chosen.append(search.best_params_["C"])
    return {
        "metric": "svm-f1", "value": 100 * float(np.mean(scores)),
        "fold_std": 100 * float(np.std(scores)), "chosen": {"pooling": pooling, "C": chosen},
    }  # fmt: skip


def pool(tokens: Tokens, how: str) -> Tensor:
    """One vector per graph, (graphs, d): the mean or the sum over its nodes."""
    if how == "mean":
        return tokens.pool("mean")
    assert tokens.x is not None and tokens.sample is not None and tokens.samples is not None
    return tokens.x.new_zeros(tokens.samples, tokens.x.shape[1]).index_add_(0, tokens.sample, tokens.x)
