"""Encoders from runs, checkpoints and timm, with the configuration and facts they were made with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import ConfigError
from mmssl.nn.network import Network
from mmssl.registry import plugins, register
from mmssl.run import checkpoints
from mmssl.run.checkpoints import checkpoint_of
from mmssl.types import TokenSpec


@dataclass(frozen=True)
class Loaded:
    """An encoder and where it comes from.

    Args:
        network: raw views in, tokens out, in evaluation mode.
        tree: the configuration it was made with.
        facts: the data's facts it was made with.
        file: the checkpoint it was read from, None for a foreign one.
        branch: student or teacher.
    """

    network: Network
    tree: dict[str, Any]
    facts: dict[str, Any]
    file: Path | None
    branch: str


def load(path: str | Path, trust: bool = False) -> Loaded:
    """The encoder of a run or checkpoint of ours, with the branch its recipe keeps.

    Args:
        path: a run's directory or a `.ckpt` file.
        trust: whether the checkpoint's configuration may name import paths, which can run any code.

    Raises:
        ConfigError: for a file that is truncated, unsafe, or of another architecture than it says.
    """
    file = checkpoint_of(path)
    content = checkpoints.read(file)
    own = checkpoints.ours(content, file)
    tree, facts = own["config"], own["facts"]
    _check(own, file, trust)
    network = build.fresh_network(tree, facts, tree["seed"])
    try:
        network.load_state_dict(checkpoints.kept_encoder(content, file))
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ConfigError(
            f"{file} does not hold the encoder its configuration describes: {' '.join(lines[1:4])}"
        ) from error
    return Loaded(network.eval(), tree, facts, file, tree["keep"])


def _check(own: dict[str, Any], file: Path, trust: bool) -> None:
    """Checks a checkpoint's configuration; where parts are unknown, names the plug-ins it was made with."""
    try:
        check(own["config"], trust=trust)
    except ConfigError as error:
        absent = sorted(own.get("plugins", {}).keys() - plugins().keys())
        if not absent:
            raise
        made = " and ".join(f"{name} {own['plugins'][name]}" for name in absent)
        raise ConfigError(
            f"{error}. {file} was made with {made}; install it: pip install {' '.join(absent)}"
        ) from error


def load_module(path: str | Path, trust: bool = False) -> Any:
    """The whole module of a run or checkpoint, predictors included, in evaluation mode.

    Raises:
        ConfigError: for a file that is truncated, unsafe, or of another architecture than it says.
    """
    file = checkpoint_of(path)
    content = checkpoints.read(file)
    own = checkpoints.ours(content, file)
    _check(own, file, trust)
    bare = own["config"] | {"encoder": build.without_weights(own["config"]["encoder"])}
    module = build.module(bare, own["facts"])
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ConfigError(
            f"{file} does not hold the module its configuration describes: {' '.join(lines[1:4])}"
        ) from error
    return module.eval()


@register("network/run")
def run_network(spec: TokenSpec, *, path: str) -> nn.Module:
    """A frozen encoder from a run or checkpoint of ours, for `target/frozen`.

    Args:
        spec: sizes of the student's tokens, for the check that both see the same grid.
        path: the run's directory or the checkpoint.

    Raises:
        ConfigError: when the grids differ.
    """
    loaded = load(path)
    if loaded.network.spec.grid != spec.grid:
        raise ConfigError(
            f"network/run: the frozen encoder cuts its input into {loaded.network.spec.grid} tokens, the student into "
            f"{spec.grid}; pre-train the teacher with the same data.size and tokenizer.patch"
        )
    return loaded.network


@register("codes/run")
def run_codes(width: int, *, path: str, term: str) -> nn.Module:
    """The codes that a run of ours has learned, by a term whose predictor quantises (BEiT v2, BEATs).

    Args:
        width: width of the features: those of the run's encoder, as `target/frozen` with `network/run` has them.
        path: the run's directory or the checkpoint, for instance a stage's `${stage:NAME}`.
        term: name of the term.

    Raises:
        ConfigError: for a run without such a term, or an encoder of another width.
    """
    from mmssl.parts.vq import Assigned, Quantized

    module = load_module(path)
    found = {name: getattr(one, "predictor", None) for name, one in module.objective.items()}
    part = found.get(term)
    if not isinstance(part, Quantized):
        known = ", ".join(name for name, one in found.items() if isinstance(one, Quantized)) or "none"
        raise ConfigError(f"codes/run: {path} has no term {term!r} with predictor/quantized, it has {known}")
    if module.kept.dim != width:
        raise ConfigError(
            f"codes/run: the codes of {path} are of features {module.kept.dim} wide, and they are asked of {width}; "
            "give them those of the same run"
        )
    return Assigned(part)


@register("network/timm")
def timm_network(spec: TokenSpec, *, name: str, pretrained: bool = True, weights: str | None = None) -> nn.Module:
    """A frozen timm vision transformer, for `target/frozen`: its own normalisation, the student's grid.

    Args:
        spec: sizes of the student's tokens.
        name: timm's name, for instance `vit_base_patch16_clip_224`.
        pretrained: whether to fetch timm's weights. Without them the target is a random network, and a warning says so.
        weights: a local file in timm's layout.
    """
    import warnings

    import timm

    from mmssl.parts.encoders.timm import build as encoder

    if not pretrained and weights is None:
        warnings.warn(
            f"network/timm: {name} has random weights, so it teaches nothing; give weights=FILE", stacklevel=2
        )
    assert spec.grid is not None and spec.cell is not None
    known = timm.get_pretrained_cfg(name)
    size = [side * cell for side, cell in zip(spec.grid, spec.cell, strict=True)]
    mean, std = (list(known.mean), list(known.std)) if known else ([0.5] * 3, [0.5] * 3)
    channels = spec.channels or 3
    if channels != 3:
        mean, std = [sum(mean) / 3] * channels, [sum(std) / 3] * channels
    facts = {"channels": channels, "mean": mean, "std": std}
    tokenizer = build.make({"_target_": "tokenizer/image", "size": size, "patch": spec.cell[0]})(facts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(tokenizer, encoder(tokenizer.spec, name=name, pretrained=pretrained, weights=weights))
