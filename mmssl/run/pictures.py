"""Pictures of a run: what was hidden, what was made of it, what lies near what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmssl.data.source import BadSample
from mmssl.report import pictures
from mmssl.report.embedding import embedding_map, project
from mmssl.types import Tokens


def some_batch(data: Any, count: int) -> dict[str, Any]:
    """The first training samples, as augmented in epoch 0."""
    return data.batch([(0, i) for i in range(min(count, len(data.splits["train"])))])


def drawn(adapter: Any, samples: Sequence[tuple[int, Any]]) -> list[np.ndarray]:
    """Pictures of samples; a grey square for one that opens but cannot be decoded."""
    made = []
    for _, sample in samples:
        try:
            made.append(adapter.picture(sample))
        except BadSample:
            made.append(np.full((32, 32, 3), 128, np.uint8))
    return made


def filled(tokens: Tokens, query: Tokens, values: torch.Tensor) -> Tokens:
    """Tokens whose raw values are replaced at the places of a query."""
    values = values.to(tokens.raw.dtype)
    if not tokens.packed:
        places = query.index.unsqueeze(-1).expand_as(values)
        if query.valid is not None:  # padded rows name places that were not asked for: those keep what they have
            values = torch.where(query.valid.unsqueeze(-1), values, tokens.raw.gather(1, places))
        return tokens.but(raw=tokens.raw.scatter(1, places, values))
    places = torch.arange(len(tokens.index), device=values.device).unsqueeze(-1)
    raw = tokens.raw.clone()
    raw[tokens.at(query, places).squeeze(-1)] = values
    return tokens.but(raw=raw)


def first_mask(look: Any) -> torch.Tensor:
    """What the encoder may see of each sample, (b, n); of several masks the first; (n,) of a packed batch."""
    if look.tokens.packed:
        return look.mask.visible[0]
    samples = torch.arange(len(look.tokens.index), device=look.mask.visible.device)
    if look.row is None:
        return look.mask.visible
    return look.mask.visible[(look.row == samples[:, None]).int().argmax(1)]


def reconstructions(folder: Path, data: Any, module: Any, count: int = 8) -> None:
    """Original, what the encoder saw and what was predicted, for the first term that predicts raw values."""
    restore = getattr(module.networks["main"].tokenizer, "restore", None)
    if restore is None:
        return
    module.eval()
    step = module.begin(some_batch(data, count))
    for name, term in module.objective.items():
        if not hasattr(getattr(term, "target", None), "restore") or "hidden" not in getattr(term, "at", ()):
            continue
        look = step[term.look]
        query, prediction = term.predict(step)[term.at.index("hidden")]
        rows = 1 if look.tokens.packed else look.tokens.index.shape[0]
        if not look.tokens.packed and query.index.shape[0] != rows:
            continue
        visible = first_mask(look)
        made = filled(look.tokens, query, term.target.restore(query, prediction.float()))
        columns = [restore(look.tokens, None), restore(look.tokens, visible), restore(made, None)]
        drawn = [[data.adapter.picture(sample) for sample in column[:count]] for column in columns]
        hidden = float(look.mask.hidden.float().mean())
        pictures.save(
            folder,
            "reconstructions",
            pictures.reconstruction_sheet(*drawn),
            title="Masks and reconstructions",
            caption=f"Training samples: as augmented; as the encoder saw them ({hidden:.0%} hidden); with the "
            f"prediction of term “{name}” in the hidden places. Standardised predictions are shown with each token's "
            "own mean and deviation.",
            alt=f"{len(drawn[0])} rows of three pictures: original, masked, reconstructed",
        )
        return


def neighbours(
    folder: Path, data: Any, split: str, x: np.ndarray, y: np.ndarray, ids: torch.Tensor, count: int = 8
) -> None:
    """Nearest neighbours of some samples, as a sheet of pictures."""
    classes = data.splits[split].classes
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    queries = np.linspace(0, len(x) - 1, count).astype(int)
    near = np.argsort(-(unit[queries] @ unit.T), axis=1)[:, 1:7]

    def shown(rows: np.ndarray) -> list[np.ndarray]:
        return drawn(data.adapter, data.plain(split, ids[torch.from_numpy(rows)].tolist()))

    labels = None
    if classes and (y >= 0).all():
        labels = [[classes[y[q]], *(classes[y[i]] for i in row)] for q, row in zip(queries, near, strict=True)]
    pictures.save(
        folder,
        "neighbours",
        pictures.neighbour_sheet(shown(queries), [shown(row) for row in near], labels),
        title="Nearest neighbours",
        caption=f"Samples of the {split} split (left) and the six whose features point most nearly the same way.",
        alt=f"{count} rows: a sample and its six nearest neighbours in feature space",
    )


def feature_map(folder: Path, data: Any, split: str, x: np.ndarray, y: np.ndarray) -> None:
    """The features along their first two principal axes."""
    classes = data.splits[split].classes
    if classes and (y >= 0).any():
        x, y = x[y >= 0], y[y >= 0]
    pictures.save(
        folder,
        "embedding",
        embedding_map(project(x), y.tolist() if classes else None, classes),
        title="Map of the features",
        caption=f"{len(x)} {data.unit}s of the {split} split along the first two principal axes of their features.",
        alt="Scatter plot of features, coloured by class where there are labels",
    )


def preview(data: Any, module: Any, out: Path, count: int = 6) -> Path:
    """One PNG: samples, each view, and what the masker leaves of it.

    Returns:
        The file.
    """
    adapter = data.adapter
    batch = some_batch(data, count)
    step = module.begin(batch)
    columns = [drawn(adapter, data.plain("train", batch["id"].tolist()))]
    titles = ["sample"]
    for name, spec in module.looks.items():
        look = step[name]
        restore = getattr(look.network.tokenizer, "restore", None)
        if restore is None:
            continue
        shown = getattr(data, "others", {}).get(spec.views[0], adapter)
        columns.append([shown.picture(sample) for sample in restore(look.tokens, None)])
        titles.append(f"view {'+'.join(spec.views)}")
        if spec.masker is not None or spec.mask:
            visible = first_mask(look)
            columns.append([shown.picture(sample) for sample in restore(look.tokens, visible)])
            titles.append(f"look {name}: {float(look.mask.hidden.float().mean()):.0%} hidden")
    rows = min(map(len, columns))
    sheet = pictures.grid([column[row] for row in range(rows) for column in columns], len(columns))
    pictures.save_png(pictures.titled(sheet, titles), out)
    return out
