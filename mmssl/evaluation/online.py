"""Monitors and probes while a run trains, without disturbing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning
import torch

from mmssl.evaluation.features import Features, embed, untouched
from mmssl.evaluation.monitors import monitors, views_apart
from mmssl.evaluation.protocols import Knn, Linear, Probe
from mmssl.evaluation.splits import stratified
from mmssl.evaluation.supervised import answered
from mmssl.registry import register


@register("callback/online")
class Online(lightning.Callback):
    """Looks at the kept network's features while training: label-free monitors always, probes where there are labels.

    Runs and checkpoints are chosen by what is logged here, so the test split is never read. Where the data have a `val`
    split, probes are fitted on `train` and scored on `val`; where they have none, both sets are parts of `train`
    (`holdout` of each class is scored on). Monitors are computed on the split that is scored, or all that was read of
    `train`. LiDAR and alignment compare several draws of a training view of some of its samples; they are left out
    where that view draws nothing. Terms that name classes themselves (fine-tuning) are scored on all of `val`. Consumes
    no training randomness: a run with this callback has the losses of one without.

    It reads `pl_module.kept`, the network to keep (`kept(view) -> Tokens`), and `trainer.datamodule.eval_loader(split,
    limit)`: batches as `embed` takes them, the same on every rank and not only of the first classes, or None where the
    data lack the split. Every rank computes the same numbers, as sharded networks demand; loggers write on rank 0.

    `history` holds one dict per measurement (`step`, `epoch`, `n` and the names below), `latest` the newest of its
    values. Loggers get the same as `val/knn`, `val/linear`, `val/rankme`, `val/feature_std`, `val/uniformity`,
    `val/alpha_req`, `val/lidar`, `val/alignment`, and so does `trainer.callback_metrics`. The history is saved in
    checkpoints.

    Args:
        every_epochs: measure after every so many epochs; null for not at epochs.
        every_steps: measure after every so many optimizer steps; null for not at steps.
        protocols: probes by name; by default kNN and a quick linear probe with one fixed penalty.
        limit: rows read of each split.
        pool: `mean`, `cls` or `token`, as in `embed`.
        holdout: share of each class of `train` that is scored on where there is no `val` split.
        at_start: also measure the untrained network: what a collapse is told from.
        at_end: also measure after the last step.
        view: the training view that LiDAR and alignment take; null for neither.
        view_samples: how many samples they take.
        view_copies: draws of the view of each sample.
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
        at_end: bool = True,
        view: str | None = None,
        view_samples: int = 100,
        view_copies: int = 3,
    ) -> None:
        numbers = {
            "every_epochs": every_epochs, "every_steps": every_steps, "limit": limit, "view_samples": view_samples,
            "view_copies": view_copies,
        }  # fmt: skip
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"callback/online: {name} has to be 1 or more, or null (got {value})")
        quick = {"knn": Knn(), "linear": Linear(l2=(1e-3,), max_iter=100, tolerance=1e-4)}
        self.protocols: Mapping[str, Probe] = quick if protocols is None else protocols
        self.every_epochs, self.every_steps = every_epochs, every_steps
        self.limit, self.pool, self.holdout, self.at_start = limit, pool, holdout, at_start
        self.at_end = at_end
        self.view, self.view_samples, self.view_copies = view, view_samples, view_copies
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
        """Measures every `every_steps` optimizer steps, at the end of every `every_epochs` epochs, and at the end."""
        step, last = trainer.global_step, trainer.is_last_batch
        by_steps = self.every_steps and step and step % self.every_steps == 0
        by_epochs = self.every_epochs and last and (trainer.current_epoch + 1) % self.every_epochs == 0
        ends = step == trainer.max_steps or (last and trainer.current_epoch + 1 == trainer.max_epochs)
        if by_steps or by_epochs or (ends and self.at_end):
            self.measure(trainer, pl_module)

    def measure(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Monitors and probes of the network as it is; nothing where this step was measured already."""
        if self.history and self.history[-1]["step"] == trainer.global_step:
            return
        data: Any = getattr(trainer, "datamodule")  # noqa: B009  # Lightning does not declare it
        values, n = self.values(pl_module.kept, data)
        values |= answered(pl_module, data)
        self.history.append({"step": trainer.global_step, "epoch": trainer.current_epoch, "n": n, **values})
        logged = {f"val/{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)
        # written here and not by `log`, which would average over batches and may not be called in every hook
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in logged.items()})

    def values(self, network: Any, data: Any) -> tuple[dict[str, float], int]:
        """Monitors and probes of a network, and the number of rows of the monitors; nothing is remembered.

        Args:
            network: `network(view) -> Tokens`.
            data: has `eval_loader`.
        """
        with untouched():
            train, test, seen = self._sets(network, data)
            found = monitors(seen.x[:: max(1, len(seen) // self.limit)])
            if self.view is not None:
                found |= self._views(network, data)
            # a diverged network has nothing to probe; its monitors are not numbers and say so
            if (
                bool(torch.isfinite(train.x).all() and torch.isfinite(test.x).all())
                and len(train) > 0
                and len(test) > 0
            ):
                found |= {name: protocol(train, test).value for name, protocol in self.protocols.items()}
        return found, len(seen)

    def _sets(self, network: Any, data: Any) -> tuple[Features, Features, Features]:
        """Features to fit probes on and to score them on (both empty without labels), and those to monitor."""
        train = self._features(network, data, "train")
        val = self._features(network, data, "val")
        assert train is not None, "every data module has a training split"
        seen = train if val is None else val
        if val is None:
            train = train.labelled()
            held = stratified(train.y, self.holdout)
            return train.where(~held), train.where(held), seen
        return train.labelled(), val.labelled(), seen

    def _features(self, network: Any, data: Any, split: str) -> Features | None:
        loader: Iterable[Mapping[str, Any]] | None = data.eval_loader(split, self.limit)
        return None if loader is None else embed(network, loader, self.pool, self.limit)

    def _views(self, network: Any, data: Any) -> dict[str, float]:
        """What several draws of a training view say."""
        for split in ("val", "train"):
            samples = min(self.view_samples, self.limit)
            loader = data.eval_loader(split, samples, self.view, self.view_copies)
            if loader is not None:
                x = embed(network, loader, self.pool).x
                return views_apart(x.reshape(-1, self.view_copies, x.shape[-1]))
        return {}
