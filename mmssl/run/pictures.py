"""Pictures of a run: what was hidden, what was made of it, what lies near what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmssl.config import build
from mmssl.report import pictures
from mmssl.report.embedding import embedding_map, project
from mmssl.types import Tokens


def some_batch(data: Any, count: int) -> dict[str, Any]:
    """The first training samples, as augmented in epoch 0."""
    return data.batch([(0, i) for i in range(min(count, len(data.splits["train"])))])


def filled(tokens: Tokens, query: Tokens, values: torch.Tensor) -> torch.Tensor:
    """Raw values of all tokens with those of a query replaced, (b, n, v)."""
    return tokens.raw.scatter(1, query.index.unsqueeze(-1).expand_as(values), values.to(tokens.raw.dtype))


def reconstructions(folder: Path, tree: Mapping[str, Any], data: Any, module: Any, count: int = 8) -> None:
    """Original, what the encoder saw and what was predicted, for every term that predicts raw values."""
    restore = getattr(module.networks["main"].tokenizer, "restore", None)
    adapter = build.adapter(tree)
    if restore is None:
        return
    module.eval()
    step = module.begin(some_batch(data, count))
    for name, term in module.objective.items():
        if not hasattr(getattr(term, "target", None), "restore") or getattr(term, "at", "") != "hidden":
            continue
        look = step[term.look]
        query, prediction = term.predict(step)
        if query.index.shape[0] != look.tokens.index.shape[0]:
            continue
        grid = look.tokens.grid
        shown = restore(look.tokens.raw * look.mask.visible.unsqueeze(-1), grid)
        made = restore(filled(look.tokens, query, term.target.restore(query, prediction.float())), grid)
        rows = [
            [adapter.picture(image) for image in images] for images in (restore(look.tokens.raw, grid), shown, made)
        ]
        sheet = pictures.reconstruction_sheet(*rows)
        hidden = float(look.mask.hidden.float().mean())
        pictures.save(
            folder,
            "reconstructions",
            sheet,
            title="Masks and reconstructions",
            caption=f"Training samples: as augmented; as the encoder saw them ({hidden:.0%} hidden); with the "
            f"prediction of term “{name}” in the hidden places. Standardised predictions are shown with each token's "
            "own mean and deviation.",
            alt=f"{count} rows of three pictures: original, masked, reconstructed",
        )
        return


def neighbours(
    folder: Path,
    tree: Mapping[str, Any],
    data: Any,
    split: str,
    x: np.ndarray,
    y: np.ndarray,
    ids: torch.Tensor,
    count: int = 8,
) -> None:
    """Nearest neighbours of some samples, and a map of the features along their first two principal axes."""
    adapter, classes = build.adapter(tree), data.splits[split].classes
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    queries = np.linspace(0, len(x) - 1, count).astype(int)
    near = np.argsort(-(unit[queries] @ unit.T), axis=1)[:, 1:7]

    def drawn(rows: np.ndarray) -> list[np.ndarray]:
        return [adapter.picture(sample) for _, sample in data.plain(split, ids[torch.from_numpy(rows)].tolist())]

    labels = None
    if classes and (y >= 0).all():
        labels = [[classes[y[q]], *(classes[y[i]] for i in row)] for q, row in zip(queries, near, strict=True)]
    pictures.save(
        folder,
        "neighbours",
        pictures.neighbour_sheet(drawn(queries), [drawn(row) for row in near], labels),
        title="Nearest neighbours",
        caption=f"Samples of the {split} split (left) and the six whose features point most nearly the same way.",
        alt=f"{count} rows: a sample and its six nearest neighbours in feature space",
    )
    pictures.save(
        folder,
        "embedding",
        embedding_map(project(x), y.tolist() if classes else None, classes),
        title="Map of the features",
        caption=f"{len(x)} samples of the {split} split along the first two principal axes of their features.",
        alt="Scatter plot of features, coloured by class where there are labels",
    )


def preview(tree: Mapping[str, Any], data: Any, module: Any, out: Path, count: int = 6) -> Path:
    """One PNG: samples, each view, and what the masker leaves of it.

    Returns:
        The file.
    """
    adapter = build.adapter(tree)
    batch = some_batch(data, count)
    restore = getattr(module.networks["main"].tokenizer, "restore", None)
    step = module.begin(batch)
    columns = [[adapter.picture(sample) for _, sample in data.plain("train", batch["id"].tolist())]]
    titles = ["sample"]
    for name, view in batch.items():
        if hasattr(view, "modality"):
            columns.append([adapter.picture(sample) for sample in view.data])
            titles.append(f"view {name}")
    for name, spec in module.looks.items():
        if restore is not None and (spec.masker is not None or spec.mask):
            look = step[name]
            shown = restore(look.tokens.raw * look.mask.visible.unsqueeze(-1), look.tokens.grid)
            columns.append([adapter.picture(image) for image in shown])
            titles.append(f"look {name}: {float(look.mask.hidden.float().mean()):.0%} hidden")
    images = [column[row] for row in range(len(columns[0])) for column in columns]
    sheet = pictures.grid(images, len(columns), [titles[i] if i < len(titles) else "" for i in range(len(images))])
    pictures.save_png(sheet, out)
    return out
