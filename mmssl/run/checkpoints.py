"""Checkpoints: plain tensors and containers, written whole, read without running code; and foreign files."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.config.compose import ConfigError
from mmssl.registry import entry, names, suggest

SCHEMA = 1


def read(path: str | Path, allow: list[Any] | None = None) -> dict[str, Any]:
    """Reads a checkpoint file with `weights_only=True`.

    Args:
        path: the file.
        allow: classes that an official file needs, and nothing else.

    Raises:
        ConfigError: for a missing, truncated or unsafe file, with the remedy.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        near = [p.name for p in file.parent.glob("*")] if file.parent.is_dir() else []
        raise ConfigError(f"there is no checkpoint {file}{suggest(file.name, near)}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        with torch.serialization.safe_globals(allow or []):
            return torch.load(file, map_location="cpu", weights_only=True)
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


def save(content: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint whole: a kill leaves the old file or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(dict(content), temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def ours(content: Mapping[str, Any], path: str | Path = "") -> dict[str, Any]:
    """What mmssl wrote into a checkpoint beside the weights: config, facts, versions, fingerprint.

    Raises:
        ConfigError: for a file of another origin.
    """
    if "mmssl" not in content:
        formats = ", ".join(name.removeprefix("format/") for name in names("format"))
        raise ConfigError(
            f"{path} was not written by mmssl. Name its format, for instance official/mae:FILE (there is: {formats}), "
            "or use timm:NAME."
        )
    return content["mmssl"]


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
    """Fills a module before training from `FILE` of ours, or `FORMAT:FILE` such as `official/mae:FILE`; reports it."""
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
