"""Training from Python: `resolve`, `pretrain`, `resume`, `build`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.compat import check_trio
from mmssl.config.compose import ConfigError
from mmssl.config.stages import check, composed


def resolve(recipe: str | None, overrides: list[str] | None = None) -> dict[str, Any]:
    """The checked configuration of a recipe with overrides.

    Raises:
        ConfigError: for anything misspelt or missing, naming the key.
    """
    tree = composed(recipe, list(overrides or []))
    check(tree)
    if message := check_trio():
        raise ConfigError(message)
    return tree


def pretrain(recipe: str | None, overrides: list[str] | None = None) -> Any:
    """Trains a recipe; the same as `mmssl pretrain RECIPE key=value ...`.

    Args:
        recipe: a name such as `image/mae`, the path of a YAML, or None where the overrides hold `recipe=...`.
        overrides: `key=value` as on the command line.

    Returns:
        A `Run` with `path` and `summary`.

    Raises:
        ConfigError: for anything misspelt, missing, or unfit for the data.
    """
    tree = resolve(recipe, overrides)
    from mmssl.run.stages import train

    return train(tree, ["mmssl", "pretrain", *([recipe] if recipe else []), *(overrides or [])])


def resume(run: str | Path, overrides: list[str] | None = None) -> Any:
    """Goes on with a stopped run in its own directory, from its newest checkpoint; the same as `mmssl resume RUN`.

    Args:
        run: its directory.
        overrides: `key=value` of keys that do not change the past: devices, loggers, workers, a longer run.

    Returns:
        A `Run` with `path` and `summary`.

    Raises:
        ConfigError: for a directory that is no run's, a run that is done, other data, or a key that is not free.
    """
    if message := check_trio():
        raise ConfigError(message)
    from mmssl.run.resume import prepared
    from mmssl.run.stages import train

    tree = prepared(Path(run), list(overrides or []))
    return train(tree, ["mmssl", "resume", str(run), *(overrides or [])], Path(run))


def build(recipe: str, overrides: list[str] | None = None, stage: str | None = None) -> tuple[Any, Any]:
    """The module and the data of a recipe, nothing trained yet, nor any stage before it.

    Args:
        recipe: a name such as `image/mae`, or the path of a YAML.
        overrides: `key=value` as on the command line.
        stage: the stage that is meant; None for the run itself.

    Returns:
        `(module, data)`: a LightningModule and a LightningDataModule.
    """
    tree = resolve(recipe, overrides)
    from mmssl.config import build as parts
    from mmssl.run.untrained import standing

    with standing(tree, stage) as own:
        data = parts.data(own)
        return parts.module(own, data.facts()), data
