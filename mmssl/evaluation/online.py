"""Monitors and probes while a run trains, without disturbing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning
import torch

from mmssl.evaluation.features import Features, embed, untouched
from mmssl.evaluation.monitors import monitors
from mmssl.evaluation.protocols import Knn, Linear, Probe
from mmssl.evaluation.splits import stratified
from mmssl.registry import register


@register("callback/online")
class Online(lightning.Callback):
    """Looks at the kept network's features while training: label-free monitors always, probes where there are labels.

    Runs and checkpoints are chosen by what is logged here, so the test split is never read. Where the data have a `val`
    split, probes are fitted on `train` and scored on `val`; where they have none, both sets are parts of `train`
    (`holdout` of each class is scored on). Monitors are computed on the split that is scored, or all that was read of
    `train`. Consumes no training randomness: a run with this callback has the losses of one without.

    It reads `pl_module.kept`, the network to keep (`kept(view) -> Tokens`), and `trainer.datamodule.eval_loader(split,
    limit)`: batches as `embed` takes them, the same on every rank and not only of the first classes, or None where the
    data lack the split. Every rank computes the same numbers, as sharded networks demand; loggers write on rank 0.

    `history` holds one dict per measurement (`step`, `epoch`, `n` and the names below), `latest` the newest of its
    values. Loggers get the same as `val/knn`, `val/linear`, `val/rankme`, `val/feature_std`, `val/uniformity`, and so
    does `trainer.callback_metrics`, for checkpoints and early stopping. The history is saved in checkpoints.

    Args:
        every_epochs: measure after every so many epochs; null for not at epochs.
        every_steps: measure after every so many optimizer steps; null for not at steps.
        protocols: probes by name; by default kNN and a quick linear probe with one fixed penalty.
        limit: rows read of each split.
        pool: `mean`, `cls` or `token`, as in `embed`.
        holdout: share of each class of `train` that is scored on where there is no `val` split.
        at_start: also measure the untrained network: what a collapse is told from.
    """

    def __init__(
        self,
        *,
        every_epochs: int | None = 1,
        every_steps: int | None = None,
        protocols: Mapping[str, Probe] | None = None,
        limit: int = 2000,
        pool: str = "mean",
        holdout: float = 0.2,
        at_start: bool = True,
    ) -> None:
        for name, value in (("every_epochs", every_epochs), ("every_steps", every_steps), ("limit", limit)):
            if value is not None and value < 1:
                raise ValueError(f"callback/online: {name} has to be 1 or more, or null (got {value})")
        quick = {"knn": Knn(), "linear": Linear(l2=(1e-3,), max_iter=100, tolerance=1e-4)}
        self.protocols: Mapping[str, Probe] = quick if protocols is None else protocols
        self.every_epochs, self.every_steps = every_epochs, every_steps
        self.limit, self.pool, self.holdout, self.at_start = limit, pool, holdout, at_start
        self.history: list[dict[str, float]] = []

    @property
    def latest(self) -> dict[str, float]:
        """The newest measurement without its `step`, `epoch` and `n`; empty before the first."""
        if not self.history:
            return {}
        return {name: value for name, value in self.history[-1].items() if name not in ("step", "epoch", "n")}

    def state_dict(self) -> dict[str, Any]:
        """The history, in plain containers."""
        return {"history": [dict(row) for row in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the history of a checkpoint over."""
        self.history = [dict(row) for row in state_dict["history"]]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measures the untrained network; not on resume."""
        if self.at_start and not self.history:
            self.measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures every `every_steps` optimizer steps."""
        if self.every_steps and trainer.global_step and trainer.global_step % self.every_steps == 0:
            self.measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measures every `every_epochs` epochs."""
        if self.every_epochs and (trainer.current_epoch + 1) % self.every_epochs == 0:
            self.measure(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measures the final network."""
        self.measure(trainer, pl_module)

    def measure(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Monitors and probes of the network as it is; nothing where this step was measured already."""
        if self.history and self.history[-1]["step"] == trainer.global_step:
            return
        with untouched():
            train, test, seen = self._sets(trainer, pl_module)
            values = monitors(seen.x[:: max(1, len(seen) // self.limit)])
            # a diverged network has nothing to probe; its monitors are not numbers and say so
            if (
                bool(torch.isfinite(train.x).all() and torch.isfinite(test.x).all())
                and len(train) > 0
                and len(test) > 0
            ):
                values |= {name: protocol(train, test).value for name, protocol in self.protocols.items()}
        where = {"step": trainer.global_step, "epoch": trainer.current_epoch, "n": len(seen)}
        self.history.append({**where, **values})
        logged = {f"val/{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)
        # written here and not by `log`, which would average over batches and may not be called in every hook
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in logged.items()})

    def _sets(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> tuple[Features, Features, Features]:
        """Features to fit probes on and to score them on (both empty without labels), and those to monitor."""
        train = self._features(trainer, pl_module, "train")
        val = self._features(trainer, pl_module, "val")
        assert train is not None, "every data module has a training split"
        seen = train if val is None else val
        if val is None:
            train = train.labelled()
            held = stratified(train.y, self.holdout)
            return train.where(~held), train.where(held), seen
        return train.labelled(), val.labelled(), seen

    def _features(self, trainer: Any, pl_module: Any, split: str) -> Features | None:
        loader: Iterable[Mapping[str, Any]] | None = trainer.datamodule.eval_loader(split, self.limit)
        return None if loader is None else embed(pl_module.kept, loader, self.pool, self.limit)
