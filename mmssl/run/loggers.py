"""Loggers beside the CSV files, by key; called with the run's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.registry import register


@register("logger/wandb")
def wandb(
    run: Path,
    *,
    project: str = "mmssl",
    offline: bool = False,
    entity: str | None = None,
    tags: list[str] | None = None,
) -> Any:
    """Weights & Biases; `offline: true` needs no account and no network.

    Args:
        run: the run's directory; its name is the run's id, so that a resumed run goes on in the same place.
        project: W&B project.
        offline: whether to write files only, for `wandb sync` later.
        entity: W&B entity.
        tags: W&B tags.
    """
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(
        name="/".join(run.parts[-3:]),
        id=run.name,
        project=project,
        offline=offline,
        entity=entity,
        tags=tags,
        save_dir=run,
    )


@register("logger/tensorboard")
def tensorboard(run: Path) -> Any:
    """TensorBoard event files under the run's directory.

    Raises:
        ValueError: when the tensorboard package is missing.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(save_dir=run, name="", version="tensorboard")
    except ModuleNotFoundError as error:
        raise ValueError(
            "logger=tensorboard needs the package tensorboard: pip install 'mmssl[tensorboard]'"
        ) from error
