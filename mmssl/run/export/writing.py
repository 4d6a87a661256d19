"""`export`: an encoder in a format of another library, checked, with its card; whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mmssl import __version__
from mmssl.config.compose import ConfigError
from mmssl.evaluation.features import untouched
from mmssl.registry import suggest
from mmssl.run import checkpoints
from mmssl.run.directory import is_run, write, write_json
from mmssl.run.export.card import card
from mmssl.run.export.checking import check
from mmssl.run.export.formats import FORMATS, Source, Written, fitting
from mmssl.run.export.pixels import preprocessing
from mmssl.run.export.twins import Unfit
from mmssl.run.loading import Loaded
from mmssl.run.materials import pool_of

# Samples that are compared.
_ROWS = 8


def known(kind: str) -> None:
    """Refuses an unknown format.

    Raises:
        ConfigError: with the formats there are.
    """
    if kind not in FORMATS:
        raise ConfigError(f"format={kind}: there is no such format{suggest(kind, FORMATS)}")


def export(
    loaded: Loaded, data: Any, kind: str, out: Path, licence: str = "unknown", trust: bool = False
) -> dict[str, Any]:
    """Writes an encoder, loads it back in a clean process, compares, and writes the card.

    Args:
        loaded: the encoder.
        data: data of its modality, for the batch that is compared.
        kind: one of `FORMATS`.
        out: the directory; made here. One that holds an export of the same format is replaced.
        licence: the card's licence field, a word such as `mit`.
        trust: whether the configuration may name import paths.

    Returns:
        What `export.json` says.

    Raises:
        ConfigError: for a format that cannot hold the encoder, features that differ, or a directory with other things.
    """
    known(kind)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", licence):
        raise ConfigError(f"license={licence}: one word is wanted, as Hugging Face writes it: mit, apache-2.0, other")
    out = out.expanduser().absolute()
    _free(out, kind)
    split, view = _batch(data)
    source = Source(loaded.network, loaded.tree, loaded.facts, loaded.branch, pool_of(loaded.tree, data), view, trust)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder = scratch / out.name
        folder.mkdir()
        with untouched():
            written = _write(kind, source, folder)
        told = _origin(loaded, kind, licence) | {
            "takes": written.takes, "gives": written.gives, "pool": source.pool, **written.more,
            "preprocessing": preprocessing(loaded.network, loaded.tree),
            "usage": written.usage.replace("DIR", out.name),
            "files": {file.name: _digest(file) for file in sorted(folder.iterdir())},
        }  # fmt: skip
        found = check(kind, folder, source, written, scratch)
        if found["checked"] is not None:
            found["checked"]["split"] = split
        told |= {"why": None} | found
        write(folder / "README.md", card(told, source, written, run_of(loaded), out.name))
        write_json(folder / "export.json", told)
        if out.exists():
            out.rename(scratch / "old")
        folder.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return told | {"dir": str(out)}


def _write(kind: str, source: Source, folder: Path) -> Written:
    try:
        return FORMATS[kind](source, folder)
    except Unfit as error:
        others = [name for name in fitting(source) if name != kind and not (name == "onnx" and kind == "torch")]
        raise ConfigError(
            f"format={kind} cannot hold this encoder: {error}. Formats that can: {', '.join(others)}."
        ) from error


def run_of(loaded: Loaded) -> Path | None:
    """The directory of the run that a checkpoint lies in."""
    if loaded.file is None or loaded.file.parent.name != "checkpoints":
        return None
    run = loaded.file.absolute().parent.parent
    return run if is_run(run) else None


def _origin(loaded: Loaded, kind: str, licence: str) -> dict[str, Any]:
    run, step = run_of(loaded), None
    if loaded.file is not None and loaded.file.suffix == ".ckpt":
        step = checkpoints.read(loaded.file, lazy=True).get("global_step")
    recipe = loaded.tree.get("recipe")
    return {
        "schema": 1, "format": kind, "mmssl": __version__, "licence": licence,
        "recipe": recipe, "run": "/".join(run.parts[-3:]) if run else None,
        "checkpoint": None if loaded.file is None else loaded.file.name, "step": step, "branch": loaded.branch,
        "fingerprint": loaded.facts.get("fingerprint"),
    }  # fmt: skip


def _batch(data: Any) -> tuple[str, Any]:
    """The first readable samples of what scores are taken on: always the same."""
    data.workers = 0
    split = next(name for name in ("test", "val", "train") if name in data.splits)
    with untouched():
        for batch in data.eval_loader(split, _ROWS):
            return split, batch["x"]
    raise ConfigError(f"export compares features of real samples, and the {split} split has no readable one")


def _free(out: Path, kind: str) -> None:
    """Refuses a place that holds anything but an earlier export of this format."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        earlier = json.loads((out / "export.json").read_text())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"out={out} holds other things than an export; give a new directory") from None
    if earlier != kind:
        raise ConfigError(f"out={out} holds an export with format={earlier}; give another directory for format={kind}")


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return "sha256:" + hashlib.file_digest(content, "sha256").hexdigest()
