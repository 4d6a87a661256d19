"""Checkpoints: plain tensors and containers, written whole, read without running code; and foreign files."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.config.compose import ConfigError
from mmssl.registry import entry, names, suggest
from mmssl.run.directory import is_run

SCHEMA = 1


def checkpoint_of(path: str | Path) -> Path:
    """The checkpoint that verbs take: `best.ckpt` of a run where there is one, else `last.ckpt`; or the file itself.

    Of what `mmssl export` wrote it is the file of tensors.

    Raises:
        ConfigError: when there is none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if is_run(path):
        for name in ("best.ckpt", "last.ckpt"):
            if (path / "checkpoints" / name).is_file():
                return path / "checkpoints" / name
        raise ConfigError(f"{path} has no checkpoint yet: the run was stopped before its first one")
    if (path / "export.json").is_file() and (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    raise ConfigError(
        f"{path} is neither a run's directory (with config.yaml and summary.json), nor a checkpoint file. "
        "`mmssl runs` lists the runs there are."
    )


def read(path: str | Path, allow: list[Any] | None = None, lazy: bool = False) -> dict[str, Any]:
    """Reads a checkpoint file with `weights_only=True`.

    Args:
        path: the file, or the directory of a run.
        allow: classes that an official file needs, and nothing else.
        lazy: whether tensors are left on disk until they are looked at.

    Raises:
        ConfigError: for a missing, truncated or unsafe file, with the remedy.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = checkpoint_of(file)
    if not file.is_file():
        near = [p.name for p in file.parent.glob("*")] if file.parent.is_dir() else []
        raise ConfigError(f"there is no checkpoint {file}{suggest(file.name, near)}")
    try:
        if file.suffix == ".safetensors":
            return _safetensors(file)
        with torch.serialization.safe_globals(allow or []):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=lazy or None)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{file} holds more than tensors and plain containers and could run code when it is loaded, so it is not "
            f"({str(error).splitlines()[0]}). Convert it to plain tensors where you trust it."
        ) from error
    except Exception as error:  # bytes that are no checkpoint break the readers in any way, KeyError among them
        raise ConfigError(
            f"{file} ({file.stat().st_size} bytes) is truncated or no checkpoint ({error}). Copy it again, or take "
            "another checkpoint of the run."
        ) from error


def _safetensors(file: Path) -> dict[str, Any]:
    """Tensors by name; of a file that `export` wrote, as in a checkpoint: `state_dict`, and `mmssl` beside it."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(file, "pt") as opened:
        said = opened.metadata() or {}
    tensors = load_file(file)
    return {"mmssl": json.loads(said["mmssl"]), "state_dict": tensors} if "mmssl" in said else tensors


def save(content: Mapping[str, Any], path: Path, keep: Path | None = None) -> None:
    """Writes a checkpoint whole: a kill or a full disk leaves the old file or the new.

    Args:
        content: plain tensors and containers.
        path: the file.
        keep: what the file that was there is called from now on; None for nothing.

    Raises:
        ConfigError: when it cannot be written; the file that was there is as it was.
    """
    for left in path.parent.glob(f".{path.name}.*"):  # of a process that was killed while it wrote
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(dict(content), temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            link = path.with_name(f".{path.name}.link")
            with contextlib.suppress(OSError):  # file systems without hard links keep one checkpoint only
                os.link(path, link)
                os.replace(link, keep)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError for a full disk
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free // 2**20
        raise ConfigError(
            f"the checkpoint {path} cannot be written ({error}), {free} MiB are free there. The one before is intact: "
            "make room, or write rights, and go on with `mmssl resume`."
        ) from error
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def ours(content: Mapping[str, Any], path: str | Path = "") -> dict[str, Any]:
    """What mmssl wrote into a checkpoint beside the weights: config, facts, versions, fingerprint.

    Raises:
        ConfigError: for a file of another origin, or of a newer layout.
    """
    if "mmssl" not in content:
        formats = ", ".join(name.removeprefix("format/") for name in names("format"))
        raise ConfigError(
            f"{path} was not written by mmssl. Name its format, for instance official/mae:FILE (there is: {formats}), "
            "or use timm:NAME."
        )
    own = content["mmssl"]
    if own.get("schema", SCHEMA) > SCHEMA:
        raise ConfigError(
            f"{path} was written by a newer mmssl (layout {own['schema']}, this reads up to {SCHEMA}): update mmssl "
            f"to {own.get('versions', {}).get('mmssl', 'that version')} or newer."
        )
    return own


def kept_encoder(content: Mapping[str, Any], path: str | Path = "") -> dict[str, Tensor]:
    """The main network of a checkpoint of ours by its own names, of the branch that its recipe keeps."""
    student = ours(content, path)["config"]["keep"] == "student"
    prefix = "networks.main." if student else "teacher.twins.main."
    state = content["state_dict"]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def fill(module: nn.Module, state: Mapping[str, Tensor], share: float, source: str) -> str:
    """Loads what fits by name and shape, and says how much that was.

    Args:
        module: what to fill.
        state: tensors by the module's own names.
        share: smallest share of the parameters of the module's networks that has to be loaded; predictors, heads and
            twins may start anew, as published encoders come without them.
        source: where the tensors come from, for messages.

    Returns:
        The report, one line.

    Raises:
        ConfigError: when less than `share` was loaded.
    """
    own = module.state_dict()
    fits = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    sizes = {name: p.numel() for name, p in module.named_parameters() if not name.startswith("teacher.")}
    core = [name for name in sizes if name.startswith("networks.")] or list(sizes)
    total, encoder = sum(sizes.values()), sum(sizes[name] for name in core)
    loaded, kept = (sum(sizes[name] for name in chosen if name in fits) for chosen in (sizes, core))
    shapes = [f"{n} {tuple(v.shape)} for {tuple(own[n].shape)}" for n, v in state.items() if n in own and n not in fits]
    report = (
        f"{source}: {len(fits)} of {len(state)} tensors loaded, {loaded / max(total, 1):.1%} of {total:,} parameters, "
        f"{kept / max(encoder, 1):.1%} of the encoder's {encoder:,}"
        + (f"; not in the file: {', '.join([n for n in sizes if n not in fits][:4])}" if loaded < total else "")
    )
    if kept < share * encoder:
        wrong = f" Shapes that differ: {'; '.join(shapes[:3])}." if shapes else ""
        raise ConfigError(
            f"init_from: {report}. That is below init_share={share:g}, so the file is probably of another architecture."
            f"{wrong} Choose the encoder the file was made with, or lower init_share if this is what you want."
        )
    module.load_state_dict(fits, strict=False)
    return report


def init_from(module: nn.Module, source: str, share: float) -> str:
    """Fills a module from `FILE` or `RUN` of ours, or `FORMAT:FILE` such as `official/mae:FILE`, and reports it."""
    kind, colon, file = source.partition(":")
    if not colon or len(kind) == 1:
        content = read(source)
        ours(content, source)
        state = content["state_dict"]
    else:
        known = entry(f"format/{kind}", "init_from").load()
        # official training scripts save their command line beside the weights; nothing else is let in
        state = known(read(file, allow=[argparse.Namespace] if kind.startswith("official/") else None), module)
    report = fill(module, state, share, source)
    teacher = getattr(module, "teacher", None)
    if teacher is not None and not any(name.startswith("teacher.") for name in state):
        teacher.copy()
    print(report, file=sys.stderr)
    return report
