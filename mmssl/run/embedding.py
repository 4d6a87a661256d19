"""`embed`: features of a data set in a file, or the data with their missing values filled in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmssl.config.compose import ConfigError
from mmssl.evaluation.features import device_of, evaluating, rows, untouched
from mmssl.nn.labels import counted
from mmssl.registry import suggest
from mmssl.run.scoring import pool_of
from mmssl.run.tables import FORMATS, Rows, write


def pieces(network: Any, data: Any, pool: str) -> Iterator[Rows]:
    """Features of every split, batch by batch in the order of the data.

    Yields:
        `x` (r, d) float32; `split`, names (r,); `id` (r,), the sample's place in its split; `label` (r,), -1 where
        there is none; for tokens also `place` (r,), the token's place in its sample.

    Raises:
        ConfigError: where no sample can be read.
    """
    count = 0
    with untouched(), evaluating(network):
        for split in data.splits:
            for batch in data.eval_loader(split):
                with torch.inference_mode():  # not around the yield: a generator would leave it on for its caller
                    found = _rows(network, batch, pool)
                count += len(found["x"])
                yield found | {"split": np.full(len(found["x"]), split)}
            print(f"embed: {split}, {count} rows so far", file=sys.stderr)
    if not count:
        raise ConfigError("embed: there is nothing to embed; the data hold no readable sample. Check data.root")


def table(network: Any, data: Any, pool: str) -> Rows:
    """All of `pieces` in memory, for small data."""
    parts = list(pieces(network, data, pool))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rows(network: Any, batch: dict[str, Any], pool: str) -> dict[str, np.ndarray]:
    tokens = network(batch["x"].to(device_of(network)))
    x, y = rows(tokens, batch.get("label"), pool)
    made = {"x": x.float().cpu().numpy(), "label": y.cpu().numpy()}
    if pool != "token":
        return made | {"id": batch["id"].numpy()}
    owner = tokens.sample
    if owner is None:
        owner = torch.arange(len(tokens.index), device=tokens.index.device).unsqueeze(1).expand_as(tokens.index)
    keep = counted(tokens, batch.get("label"))
    return made | {
        "id": batch["id"].numpy()[owner[keep].cpu().numpy()], "place": tokens.index[keep].cpu().numpy(),
    }  # fmt: skip


def embed(loaded: Any, data: Any, tree: dict[str, Any], out: Path) -> dict[str, Any]:
    """Features of all splits of some data by a loaded encoder, written to a file batch by batch.

    Raises:
        ConfigError: for an unknown kind of file.
    """
    if out.suffix not in FORMATS:
        raise ConfigError(f"out={out}: features are written as {', '.join(FORMATS)}{suggest(out.suffix, FORMATS)}")
    count, dim = write(pieces(loaded.network, data, pool_of(tree, data)), out, data.splits)
    return {"file": str(out), "rows": count, "dim": dim}


def impute(module: Any, data: Any, out: Path) -> dict[str, Any]:
    """The data with their missing values filled by the model, written by the modality.

    Raises:
        ConfigError: where the modality knows no missing values, or no term of the run predicts raw values.
    """
    if not hasattr(data.adapter, "impute"):
        raise ConfigError(f"what=imputed: the modality {data.adapter.name} has no missing values to fill in")
    with untouched(), evaluating(module), torch.inference_mode():
        return {"file": str(out)} | data.adapter.impute(module, data, out)
