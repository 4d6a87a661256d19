"""Lightning's trainer, as a recipe sets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmssl.registry import register


@dataclass(frozen=True)
class Settings:
    """How to train; see `settings` for the fields."""

    max_epochs: int | None
    max_steps: int | None
    devices: int | str
    nodes: int
    accelerator: str
    strategy: str
    precision: Any
    accumulate: int
    log_every: int
    checkpoint_every: int
    chunk: int | None
    stop_on: Sequence[str]

    @property
    def world(self) -> int | None:
        """Number of processes, None where Lightning counts the devices itself."""
        return self.devices * self.nodes if isinstance(self.devices, int) else None


@register("trainer/lightning")
def settings(
    *,
    max_epochs: int | None = 100,
    max_steps: int | None = None,
    devices: int | str = 1,
    nodes: int = 1,
    accelerator: str = "auto",
    strategy: str = "auto",
    precision: str = "32-true",
    accumulate: int = 1,
    log_every: int = 10,
    checkpoint_every: int = 0,
    chunk: int | None = None,
    stop_on: Sequence[str] = (),
) -> Settings:
    """How long and on what to train.

    Args:
        max_epochs: passes over the data; null for no limit.
        max_steps: optimizer steps; null for no limit. Where both are given the earlier ends the run.
        devices: devices per node, or `auto`.
        nodes: number of machines.
        accelerator: `auto`, `cpu`, `gpu` or another word of Lightning.
        strategy: `auto`, `ddp` or another word of Lightning.
        precision: `32-true`, `bf16-mixed` or another word of Lightning.
        accumulate: forward passes per optimizer step; data.batch_size stays the number of samples of a *step*.
        log_every: optimizer steps between rows of metrics.csv.
        checkpoint_every: optimizer steps between checkpoints; 0 for the end of every epoch.
        chunk: rows that the encoder takes at once, the rest of a rank's share after them, and once more on the way
            back: a contrastive batch that memory does not bound (gradient caching); null for all at once.
        stop_on: verdicts that end the run as soon as they are seen, for instance [collapsed].

    Raises:
        ValueError: when nothing limits the run, a number is not positive, or a verdict is unknown.
    """
    if max_epochs is None and max_steps is None:
        raise ValueError("trainer.max_epochs and trainer.max_steps are both null; one of them has to end the run")
    positive = {"max_epochs": max_epochs, "max_steps": max_steps, "accumulate": accumulate, "log_every": log_every}
    positive |= {"chunk": chunk}
    for name, value in positive.items():
        if value is not None and value < 1:
            raise ValueError(f"trainer.{name} has to be at least 1 (got {value})")
    if unknown := set(stop_on) - {"warning", "collapsed", "diverged"}:
        raise ValueError(f"trainer.stop_on: there is no verdict {unknown.pop()!r}; warning, collapsed or diverged")
    return Settings(
        max_epochs, max_steps, devices, nodes, accelerator, strategy, precision, accumulate, log_every,
        checkpoint_every, chunk, stop_on,
    )  # fmt: skip


def planned_steps(given: Settings, batches: int) -> int:
    """Optimizer steps of a run whose epoch has `batches` forward passes."""
    per_epoch = max(batches // given.accumulate, 1)
    limits = [given.max_steps, None if given.max_epochs is None else given.max_epochs * per_epoch]
    return min(limit for limit in limits if limit is not None)


def lightning_trainer(given: Settings, steps: int, callbacks: list[Any], loggers: list[Any]) -> Any:
    """The Lightning trainer that takes `steps` optimizer steps. Progress, checkpoints and logs are our callbacks'."""
    import lightning

    return lightning.Trainer(
        max_epochs=-1,
        max_steps=steps,
        devices=given.devices,
        num_nodes=given.nodes,
        accelerator=given.accelerator,
        strategy=given.strategy,
        precision=given.precision,
        accumulate_grad_batches=given.accumulate,
        callbacks=callbacks,
        logger=loggers or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
