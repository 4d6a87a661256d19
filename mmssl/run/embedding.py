"""`embed`: features of a data set in a file, or the data with their missing values filled in."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmssl.config.compose import ConfigError
from mmssl.evaluation.features import counted, device_of, evaluating, rows, untouched
from mmssl.registry import suggest
from mmssl.report.markup import replace_file
from mmssl.run.scoring import pool_of

FORMATS = (".npz", ".parquet", ".safetensors")


def table(network: Any, data: Any, pool: str) -> dict[str, np.ndarray]:
    """Features of every split, in the order of the data.

    Returns:
        `x` (n, d) float32; `split`, names (n,); `id` (n,), the sample's place in its split; `label` (n,), -1 where
        there is none; for tokens also `place` (n,), the token's place in its sample.
    """
    found: dict[str, list[np.ndarray]] = {}
    with untouched(), evaluating(network), torch.inference_mode():
        for split in data.splits:
            for batch in data.eval_loader(split):
                for name, values in _rows(network, batch, pool).items():
                    found.setdefault(name, []).append(values)
                found.setdefault("split", []).append(np.full(len(found["x"][-1]), split))
            print(f"embed: {split}, {sum(len(x) for x in found.get('x', []))} rows so far", file=sys.stderr)
    if not found:
        raise ConfigError("embed: there is nothing to embed; the data hold no readable sample. Check data.root")
    return {name: np.concatenate(parts) for name, parts in found.items()}


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


def write(found: dict[str, np.ndarray], out: Path) -> None:
    """Writes a table of features as `.npz`, `.parquet` (one list column `x`) or `.safetensors`, atomically."""
    content = io.BytesIO()
    if out.suffix == ".npz":
        np.savez_compressed(content, **found)  # pyright: ignore[reportArgumentType]
    elif out.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        width = found["x"].shape[1]
        flat = pa.array(np.ascontiguousarray(found["x"]).reshape(-1))
        columns = {"x": pa.FixedSizeListArray.from_arrays(flat, width)}
        columns |= {name: pa.array(values) for name, values in found.items() if name != "x"}
        pq.write_table(pa.table(columns), content)
    else:
        from safetensors.numpy import save

        names, codes = np.unique(found["split"], return_inverse=True)
        tensors = {name: np.ascontiguousarray(values) for name, values in found.items() if name != "split"}
        content.write(save(tensors | {"split": codes.astype(np.int64)}, {"splits": ",".join(names)}))
    replace_file(out, content.getvalue())


def embed(loaded: Any, data: Any, tree: dict[str, Any], out: Path) -> dict[str, Any]:
    """Features of all splits of some data by a loaded encoder, written to a file.

    Raises:
        ConfigError: for an unknown kind of file.
    """
    if out.suffix not in FORMATS:
        raise ConfigError(f"out={out}: features are written as {', '.join(FORMATS)}{suggest(out.suffix, FORMATS)}")
    found = table(loaded.network, data, pool_of(tree, data))
    write(found, out)
    return {"file": str(out), "rows": len(found["x"]), "dim": int(found["x"].shape[1])}


def impute(module: Any, data: Any, out: Path) -> dict[str, Any]:
    """The data with their missing values filled by the model, written by the modality.

    Raises:
        ConfigError: where the modality knows no missing values, or no term of the run predicts raw values.
    """
    if not hasattr(data.adapter, "impute"):
        raise ConfigError(f"what=imputed: the modality {data.adapter.name} has no missing values to fill in")
    with untouched(), evaluating(module), torch.inference_mode():
        return {"file": str(out)} | data.adapter.impute(module, data, out)
