"""Lightning's trainer, as a recipe sets it."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from mmssl.registry import register, suggest
from mmssl.run.best_criteria import criterion

STRATEGIES = ("auto", "ddp", "fsdp")
SHARDED = ("sync", "async")


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
    checkpoint_minutes: float | None
    sharded_checkpoints: str | None
    timeout_minutes: float
    restarts: int
    checkpoint_activations: bool
    compile: bool
    sync_batchnorm: bool
    chunk: int | None
    stop_on: Sequence[str]
    best: str | None
    patience: int | None

    @property
    def gpus(self) -> bool:
        """Whether training takes GPUs: they are there, and nothing else is asked for."""
        import torch

        return self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()

    @property
    def world(self) -> int:
        """Number of processes; 1 where the devices were not counted yet."""
        return self.devices * self.nodes if isinstance(self.devices, int) else 1


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
    checkpoint_minutes: float | None = 1.0,
    sharded_checkpoints: str | None = None,
    timeout_minutes: float = 30.0,
    restarts: int = 0,
    checkpoint_activations: bool = False,
    compile: bool = False,
    sync_batchnorm: bool = False,
    chunk: int | None = None,
    stop_on: Sequence[str] = (),
    best: str | None = None,
    patience: int | None = None,
) -> Settings:
    """How long and on what to train.

    Args:
        max_epochs: passes over the data; null for no limit.
        max_steps: optimizer steps; null for no limit. Where both are given the earlier ends the run.
        devices: devices per node, or `auto`.
        nodes: number of machines.
        accelerator: `auto`, `cpu`, `gpu` or another word of Lightning.
        strategy: how ranks share the work: `ddp`, each with all weights; `fsdp`, each with a piece of them (FSDP2);
            `auto` is DDP where there are several ranks.
        precision: `32-true`, `bf16-mixed` or another word of Lightning.
        accumulate: forward passes per optimizer step; data.batch_size stays the number of samples of a *step*.
        log_every: optimizer steps between rows of metrics.csv.
        checkpoint_every: optimizer steps between checkpoints; 0 for none by steps.
        checkpoint_minutes: minutes between checkpoints, or more where they took over 2 % of the time; null for
            none by time. The end and a request to stop always write one.
        sharded_checkpoints: with `fsdp`: `sync` and `async` (while training goes on) let every rank write its own piece
            of a checkpoint, and put the weights into one file in the end; null gathers everything in one file.
        timeout_minutes: minutes that a rank waits for the others before it gives them up.
        restarts: how often ranks of one command start again, from the last checkpoint, after one of them was lost.
        checkpoint_activations: blocks keep their inputs alone and are computed once more on the way back: less memory,
            about a third more time.
        compile: whether blocks run through torch.compile.
        sync_batchnorm: whether batch norms of foreign encoders (timm) take their statistics over all ranks; ours do.
        chunk: rows that the encoder takes at once, and once more on the way back: a batch that memory does not bound
            (gradient caching); null for all at once.
        stop_on: verdicts that end the run as soon as they are seen, for instance [collapsed].
        best: what checkpoints/best.ckpt, which verbs then take, is chosen by: with labels `knn`, `linear`, `top1` or
            `ce`, without `rankme`, `lidar`, `alpha_req`, `uniformity`, ...; see docs/finetuning.md. null for none.
        patience: measurements without a better one after which the run is complete; null for never.

    Raises:
        ValueError: when nothing limits the run, a number is not positive, or a verdict is unknown.
    """
    return _checked(Settings(**locals()))


def _checked(given: Settings) -> Settings:
    if given.max_epochs is None and given.max_steps is None:
        raise ValueError("trainer.max_epochs and trainer.max_steps are both null; one of them has to end the run")
    for name in ("max_epochs", "max_steps", "accumulate", "log_every", "chunk", "nodes", "devices", "patience"):
        value = getattr(given, name)
        optional = value is None and name in ("max_epochs", "max_steps", "chunk", "patience")
        if not optional and (name, value) != ("devices", "auto") and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"trainer.{name} has to be a number from 1 on (got {value!r})")
    for name in ("checkpoint_minutes", "timeout_minutes"):
        value = getattr(given, name)
        if value is not None and value <= 0:
            raise ValueError(f"trainer.{name} has to be above 0 (got {value})")
    for name in ("checkpoint_every", "restarts"):
        if getattr(given, name) < 0:
            raise ValueError(f"trainer.{name} has to be 0 or more (got {getattr(given, name)})")
    if given.strategy not in STRATEGIES:
        raise ValueError(f"trainer.strategy: there is no {given.strategy!r}{suggest(given.strategy, STRATEGIES)}")
    if given.sharded_checkpoints is not None:
        if given.sharded_checkpoints not in SHARDED:
            near = suggest(given.sharded_checkpoints, SHARDED)
            raise ValueError(f"trainer.sharded_checkpoints: there is no {given.sharded_checkpoints!r}{near}")
        if given.strategy != "fsdp":
            raise ValueError(
                "trainer.sharded_checkpoints needs trainer.strategy=fsdp: elsewhere every rank has all weights"
            )
    _check_best(given)
    if unknown := set(given.stop_on) - {"warning", "collapsed", "diverged"}:
        raise ValueError(f"trainer.stop_on: there is no verdict {unknown.pop()!r}; warning, collapsed or diverged")
    return given


def _check_best(given: Settings) -> None:
    if given.best is None:
        if given.patience is not None:
            raise ValueError(
                "trainer.patience counts measurements by a criterion; name it, for instance trainer.best=rankme"
            )
        return
    criterion(given.best)
    if given.sharded_checkpoints is not None:
        raise ValueError(
            "trainer.best writes whole files, which trainer.sharded_checkpoints leaves to the end; set one to null"
        )


def planned_steps(given: Settings, batches: int) -> int:
    """Optimizer steps of a run whose epoch has `batches` forward passes."""
    per_epoch = max(batches // given.accumulate, 1)
    limits = [given.max_steps, None if given.max_epochs is None else given.max_epochs * per_epoch]
    return min(limit for limit in limits if limit is not None)


def lightning_trainer(given: Settings, steps: int, callbacks: list[Any], loggers: list[Any]) -> Any:
    """The Lightning trainer up to optimizer step `steps`. Progress, checkpoints and logs are our callbacks'."""
    import lightning
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    from mmssl.run.strategies import precision, strategy

    # said, not detected: Lightning would take any process in a Slurm job for one that srun has started
    environment = TorchElasticEnvironment() if "RANK" in os.environ else LightningEnvironment()
    kind = precision(given.strategy, given.precision, "cuda" if given.gpus else "cpu")
    trainer = lightning.Trainer(
        max_epochs=-1,
        max_steps=steps,
        devices=given.devices,
        num_nodes=given.nodes,
        accelerator=given.accelerator,
        strategy=strategy(given.strategy, given.world, timedelta(minutes=given.timeout_minutes)),
        precision=kind.get("precision"),
        accumulate_grad_batches=given.accumulate,
        callbacks=callbacks,
        logger=loggers or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        plugins=[environment, *kind.get("plugins", [])],
    )
    # signals have one owner, mmssl.run.signals, and its ranks agree in the message of the step
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back Lightning's notices about loggers, workers and devices; its warnings about the run still come."""
    names = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*`LightningModule.*",
            ".*dataloader.*bottleneck.*",
            ".*LeafSpec.*",
            ".*`srun` command.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
