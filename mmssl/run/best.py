"""The best checkpoint of a run, chosen by a named criterion while it trains; and the end of one that gets no better."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning

from mmssl.config.compose import ConfigError
from mmssl.evaluation.supervised import classifier
from mmssl.run import checkpoints
from mmssl.run.best_criteria import criterion


class Best(lightning.Callback):
    """Chooses a step after every measurement; `Checkpoint`, which comes after it, writes `best.ckpt` then.

    What is compared was measured on rows that the encoder is validated on, never on the test split.

    Args:
        name: of the criterion.
        online: whose `history` grows with every measurement.
        metrics: knows the newest training loss.
        patience: measurements without a better one after which the run ends; None for never.
    """

    def __init__(self, name: str, online: Any, metrics: Any, patience: int | None = None) -> None:
        self.criterion, self.online, self.metrics, self.patience = criterion(name), online, metrics, patience
        self.value: float | None = None
        self.step: int | None = None
        self.since = self._seen = 0
        self.why: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and how long ago it was."""
        return {"value": self.value, "step": self.step, "since": self.since, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on comparing with the best of a checkpoint."""
        self.value, self.step = state_dict["value"], state_dict["step"]
        self.since, self._seen = state_dict["since"], state_dict["seen"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Refuses views that draw nothing before the first step."""
        if self.criterion.needs == "views" and self.online.history:
            self._measured(self.online.history[-1])

    def _measured(self, row: Mapping[str, float]) -> float:
        """The criterion's value in a row.

        Raises:
            ConfigError: where it has none.
        """
        name = self.criterion.name
        if name not in row:
            found = ", ".join(key for key in row if key not in ("step", "epoch", "n"))
            raise ConfigError(
                f"trainer.best={name}: it was not measured, but {found} were. LiDAR and alignment need a training view "
                "that draws something, alpha_req some dimensions."
            )
        return row[name]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compares, where something was measured since; the untrained network takes no part."""
        if len(self.online.history) == self._seen or self.online.history[-1]["step"] != trainer.global_step:
            return
        self._seen = len(self.online.history)
        row, name = self.online.history[-1], self.criterion.name
        # ranks may differ in the last digit, but have to write together
        value = trainer.strategy.broadcast(self.metrics.last if name == "loss" else self._measured(row))
        if self.criterion.merit(value) > self.criterion.merit(self.value):
            self.value, self.step, self.since = value, trainer.global_step, 0
            return
        self.since += 1
        if self.patience is not None and self.since >= self.patience:
            self.why = (
                f"trainer.patience: {self.since} measurements were not better than {name} {_said(self.value)} at step "
                f"{self.step}"
            )
            trainer.should_stop = True

    def told(self) -> dict[str, Any] | None:
        """The `best` block of summary.json; None before the first choice."""
        return None if self.step is None else block(self.criterion.name, self.value, self.step)

    def restore(self, module: Any, folder: Path) -> None:
        """Fills a module with the best weights, where a step was chosen."""
        if self.step is None:
            return
        module.load_state_dict(checkpoints.read(folder / "best.ckpt")["state_dict"])
        print(f"best.ckpt: step {self.step}, {self.criterion.name} {_said(self.value)}", file=sys.stderr)


def block(name: str, value: float | None, step: int) -> dict[str, Any]:
    """What summary.json says of the best checkpoint."""
    return {"criterion": name, "value": value, "step": step, "checkpoint": "checkpoints/best.ckpt"}


def _said(value: float | None) -> str:
    return "nothing" if value is None or math.isnan(value) else f"{value:.4g}"


def check(settings: Any, tree: Mapping[str, Any], data: Any, module: Any) -> None:
    """Refuses a criterion that nothing of the run measures, before the run has a directory.

    Raises:
        ConfigError: naming the key and what is missing.
    """
    if settings.best is None:
        return
    said, where = criterion(settings.best), f"trainer.best={settings.best}"
    if not tree["evaluation"].get("online", True):
        raise ConfigError(
            f"{where} needs evaluation.online=true: nothing is measured while the run trains. `mmssl evaluate RUN "
            f"watch=true best={settings.best}` chooses from another process."
        )
    without = "rankme, uniformity, alpha_req or loss"
    if said.needs == "labels" and data.splits["train"].labels is None:
        raise ConfigError(f"{where} needs labels, and the train split has none; take {without}")
    if said.needs == "labels" and classifier(module) is not None:
        raise ConfigError(f"{where}: probes take no part in fine-tuning; take top1 or ce, or {without}")
    if said.needs == "classes" and (classifier(module) is None or "val" not in data.splits):
        raise ConfigError(
            f"{where} needs a term that names classes and a val split, as `mmssl finetune` has; take knn or linear "
            f"where there are labels, else {without}"
        )


def stand_for(file: Path, target: Path) -> None:
    """Gives a checkpoint a second name, whole; what had that name is gone. Checkpoints are replaced, never changed."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(file, temporary)
    except OSError:  # file systems without hard links
        shutil.copyfile(file, temporary)
    os.replace(temporary, target)
