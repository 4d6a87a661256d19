"""What is done with a trained encoder from Python: `load`, `embed`, `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.api.sources import foreign, other_data
from mmssl.compat import check_trio
from mmssl.config.compose import ConfigError


def load(path: str | Path, trust: bool = False) -> Any:
    """The encoder of a run or checkpoint: raw batch of the modality in, `Tokens` out; `.pool()` gives (b, d).

    Args:
        path: a run's directory, a checkpoint of ours, or what `export` wrote with `format=safetensors`.
        trust: whether the checkpoint may name import paths, which can run any code.
    """
    if message := check_trio():
        raise ConfigError(message)
    from mmssl.run.loading import load as read

    return read(path, trust).network


def embed(
    source: str, out: str | Path, overrides: list[str] | None = None, what: str = "features", trust: bool = False
) -> dict[str, Any]:
    """Features of all splits of the data by a trained encoder, or the data with missing values filled in, in a file.

    Args:
        source: a run's directory, a checkpoint of ours, or `timm:NAME`, with `data=...`.
        out: the file: `.npz`, `.parquet` or `.safetensors` for features; what the modality writes for imputed data.
        overrides: `data=...` and `data.*` for other data than the run's own.
        what: `features` or `imputed`.
        trust: whether the checkpoint may name import paths.

    Returns:
        `file`, and how much was written.
    """
    if message := check_trio():
        raise ConfigError(message)
    from mmssl.config import build as parts
    from mmssl.registry import suggest
    from mmssl.run import embedding
    from mmssl.run.loading import load as read
    from mmssl.run.loading import load_module

    if what not in ("features", "imputed"):
        raise ConfigError(f"what={what}: `embed` writes features or imputed{suggest(what, ['features', 'imputed'])}")
    if source.startswith("timm:"):
        if what == "imputed":
            raise ConfigError(f"what=imputed: {source} predicts no values; give a run whose terms do")
        loaded, data = _foreign(source.removeprefix("timm:"), list(overrides or []))
        return embedding.embed(loaded, data, loaded.tree, Path(out))
    loaded = read(source, trust)
    tree = other_data(loaded.tree, list(overrides or []))
    data = parts.data(tree)
    data.use(loaded.facts)
    if what == "imputed":
        return embedding.impute(load_module(source, trust), data, Path(out))
    return embedding.embed(loaded, data, tree, Path(out))


def _foreign(name: str, overrides: list[str]) -> tuple[Any, Any]:
    """A timm model as if it were a run's encoder, and the data it is to look at."""
    from mmssl.config import build as parts
    from mmssl.run.loading import Loaded

    tree = foreign(name, overrides)
    data = parts.data(tree)
    return Loaded(parts.network(tree, data.facts()).eval(), tree, data.facts(), None, "student"), data


def export(
    source: str,
    format: str,
    out: str | Path,
    overrides: list[str] | None = None,
    license: str = "unknown",
    trust: bool = False,
) -> dict[str, Any]:
    """The encoder of a run in the format of another library, loaded back by it in a clean process and compared.

    Args:
        source: a run's directory or a checkpoint of ours; the branch is the recipe's `keep`.
        format: `timm`, `hf` (transformers), `onnx`, `torch` (torch.export) or `safetensors` (for `load`).
        out: the directory: weights, configuration, `README.md` (the model card) and `export.json`.
        overrides: `data=...` and `data.*`, where the run's own data are out of reach.
        license: the word in the card's licence field.
        trust: whether the checkpoint may name import paths.

    Returns:
        What `export.json` says: among others `checked`, the largest differences, None where the library is missing.

    Raises:
        ConfigError: for a format that cannot hold the encoder, or features that differ; nothing is left behind.
    """
    if message := check_trio():
        raise ConfigError(message)
    from mmssl.config import build as parts
    from mmssl.run.export.writing import export as write
    from mmssl.run.export.writing import known
    from mmssl.run.loading import load as read

    known(format)
    loaded = read(source, trust)
    tree = other_data(loaded.tree, list(overrides or []))
    try:
        data = parts.data(tree)
        data.use(loaded.facts)
        return write(loaded, data, format, Path(out), license, trust)
    except OSError as error:
        raise ConfigError(f"export: {error}") from error
