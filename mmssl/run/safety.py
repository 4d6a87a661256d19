"""What watches a run: the guard against losses that are no numbers, and the watch over its verdict."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor

from mmssl.run.checkpoints import save
from mmssl.types import View


class Diverged(RuntimeError):
    """The loss is no number any more."""


class Guard(lightning.Callback):
    """Stops at the first loss that is NaN or infinite, keeps the last good checkpoint and saves the batch.

    The loss of a step is looked at when the next has been queued, so that the device never idles for it; no checkpoint
    is written before its loss was looked at.

    Args:
        run: the run's directory; the batch goes to `offending_batch.pt`, as tensors and plain containers.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._waiting: tuple[int, Mapping[str, Tensor], Any] | None = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the last step's loss and keeps this one."""
        self.check()
        self._waiting = (trainer.global_step, pl_module.latest, batch)
        if pl_module.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Looks at the loss that is waiting.

        Raises:
            Diverged: naming the step, what of it is not finite, and what to try.
        """
        if self._waiting is None:
            return
        step, latest, batch = self._waiting
        self._waiting = None
        if math.isfinite(float(latest["loss"])):
            return
        file = self.run / "offending_batch.pt"
        views = {name: plain(view.data) for name, view in batch.items() if isinstance(view, View)}
        others = {name: value for name, value in batch.items() if isinstance(value, Tensor) and name not in views}
        save(views | others, file)
        terms = {name: float(value) for name, value in latest.items() if name != "loss" and "/" not in name}
        blame = [*(f"the term {name}" for name, x in terms.items() if not math.isfinite(x)), *_not_finite(views)]
        raise Diverged(
            f"The loss is {float(latest['loss'])} at step {step}; not finite: {', '.join(blame) or 'only their sum'}. "
            f"The batch is saved as {file}, and checkpoints/last.ckpt is from before. Usual causes: a learning rate "
            "too high (halve optim.lr or optim.base_lr, or lengthen optim.schedule.warmup), 16-bit floats "
            "(trainer.precision=bf16-mixed or 32-true), or samples with values that are not finite."
        )


def plain(value: Any) -> Any:
    """Tensors, numbers and containers alone, so that a file of them is read without running code."""
    if value is None or isinstance(value, (Tensor, bool, int, float, str)):
        return value
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return plain(value.to_dict()) if hasattr(value, "to_dict") else repr(value)


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Where a batch holds values that are not finite, and how many."""
    if isinstance(value, Tensor) and value.is_floating_point():
        if count := int((~value.isfinite()).sum()):
            yield f"{count} values of the view {name}"
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _not_finite(one, f"{name}.{key}" if name else key)


class Watch(lightning.Callback):
    """Looks at the verdict after every measurement, says when it gets worse, and ends the run where told to.

    Args:
        online: whose `history` grows with every measurement.
        health: gives the verdict with `causes` and `remedies`.
        stop_on: verdicts that end the run.
    """

    def __init__(self, online: Any, health: Callable[[], Mapping[str, Any]], stop_on: Sequence[str]) -> None:
        self.online, self.health, self.stop_on = online, health, tuple(stop_on)
        self.why: str | None = None
        self._seen, self._said = 0, ""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks, where something was measured since."""
        if len(self.online.history) == self._seen:
            return
        self._seen = len(self.online.history)
        found = self.health()
        word = found["verdict"]
        if word in ("warning", "collapsed", "diverged") and word != self._said and trainer.is_global_zero:
            message = f"step {trainer.global_step}: {word}. {found['causes'][0]} {found['remedies'][0]}"
            print(f"\n{message}", file=sys.stderr)
        self._said = word
        if word in self.stop_on:
            self.why = f"trainer.stop_on: the run is {word}. {found['causes'][0]}"
            trainer.should_stop = True
