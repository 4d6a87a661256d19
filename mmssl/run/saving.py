"""When checkpoints are written, what they hold beside Lightning's state, and how a run goes on from one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist

from mmssl import ranks
from mmssl.run import generators, sharded
from mmssl.run.best import stand_for
from mmssl.run.checkpoints import save
from mmssl.run.safety import Guard
from mmssl.run.signals import Signals

# Checkpoints by time take at most this share of a run, however large they are.
_SHARE = 0.02
# Places in `SSLModule.wishes`.
_SAVE, _STOP, _AGAIN = range(3)


class Checkpoint(lightning.Callback):
    """Writes checkpoints/last.ckpt, whole, after a good loss: by steps, by minutes, at the end, and when asked to stop.

    All of a run's state is settled at the end of an optimizer step, and this callback comes after all others that have
    some. A rank that wants a checkpoint or an end says so in the message that the ranks exchange in every step, so that
    all of them act after the same one.

    Args:
        folder: the run's `checkpoints`.
        guard: asked before anything is written.
        signals: whether somebody asked the run to stop.
        extra: what goes into the file beside Lightning's state: config, facts, versions, fingerprint.
        every: optimizer steps between checkpoints; 0 for none by steps.
        minutes: minutes between checkpoints, or more where writing one takes long; None for none by time.
        told: called after every checkpoint.
        best: chooses steps whose checkpoint is `best.ckpt` too, and may end the run; None for none.
        pieces: `sync` or `async` where every rank writes its own piece of `last`, see `mmssl.run.sharded`; last.ckpt
            then gets the weights in the end.
    """

    def __init__(
        self,
        folder: Path,
        guard: Guard,
        signals: Signals,
        extra: dict[str, Any],
        every: int = 0,
        minutes: float | None = None,
        told: Callable[[], object] = lambda: None,
        pieces: str | None = None,
        best: Any = None,
    ) -> None:
        self.folder, self.guard, self.signals, self.extra = folder, guard, signals, extra
        self.every, self.minutes, self.told, self.pieces = every, minutes, told, pieces
        self.best = best
        self._writing: sharded.Writing | None = None
        self.stopped = self.again = False
        self._step, self._saved = -1, -1
        self._time, self._took = time.monotonic(), 0.0
        self._begun = time.perf_counter()
        self._found: list[dict[str, Any]] | None = None

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds what a reader needs to rebuild the encoder, and to go on."""
        states: list[Any] = [generators.state()]
        if ranks.world() > 1:
            states = [None] * ranks.world()
            dist.all_gather_object(states, generators.state())
        # after a restart at the end of an epoch, Lightning's counters of begun epochs lag by one
        for counts in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            counts["ready"] = counts["started"] = counts["processed"] + 1
        checkpoint["mmssl"] = self.extra | {
            "horizon": pl_module.steps,
            "accumulate": trainer.accumulate_grad_batches,
            "generators": states,
            "wall_s": time.perf_counter() - self._begun,
        }

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Takes the generators over, and counts batches in this run's accumulation steps."""
        own = checkpoint["mmssl"]
        self._found, self._saved = own["generators"], checkpoint["global_step"]
        self._begun -= own["wall_s"]
        for counts in checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"].values():
            if isinstance(counts, dict):
                for name, count in counts.items():
                    counts[name] = count // own["accumulate"] * trainer.accumulate_grad_batches

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Puts the generators back: those of this rank, or new ones where there were other ranks."""
        if self._found is not None and len(self._found) == ranks.world():
            generators.restore(self._found[ranks.rank()])
        else:
            generators.seed_all(pl_module.seed, ranks.rank(), trainer.global_step)
        self._step, self._time = trainer.global_step, time.monotonic()
        self.signals.training = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: saves where it is time, stops where somebody asked for it."""
        if trainer.global_step == self._step:  # gradients are still accumulating: nothing could go on from here
            return
        self._step = trainer.global_step
        heard = self._agree(pl_module)
        self.stopped, self.again = bool(heard[_STOP]), bool(heard[_AGAIN])
        by_steps = self.every > 0 and self._step % self.every == 0
        chosen = self.best is not None and self.best.step == self._step
        over = self.best is not None and self.best.why is not None
        if by_steps or heard[_SAVE] or self.stopped or chosen or over or self._step >= trainer.max_steps:
            self.write(trainer)
            if chosen and trainer.is_global_zero:
                stand_for(self.folder / "last.ckpt", self.folder / "best.ckpt")
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """From here on a signal ends the process."""
        self._wait()
        if self.pieces is not None and trainer.is_global_zero:
            sharded.consolidate(self.folder / "last", self.folder / "last.ckpt")
        self.signals.training = False

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """From here on a signal ends the process."""
        self.signals.training = False

    def _agree(self, pl_module: Any) -> list[float]:
        """How many ranks want each thing; where there are several, what they said in the step that was taken."""
        wish = [0.0, 0.0, 0.0]
        if self.minutes is not None and ranks.rank() == 0:
            wait = max(60 * self.minutes, self._took / _SHARE)
            wish[_SAVE] = float(time.monotonic() - self._time >= wait)
        wish[_STOP], wish[_AGAIN] = float(self.signals.received is not None), float(self.signals.again)
        heard = pl_module.heard.tolist() if ranks.world() > 1 else wish
        pl_module.wishes = torch.tensor(wish)
        return heard

    def write(self, trainer: lightning.Trainer) -> None:
        """Writes a checkpoint, once per step."""
        if self._saved == trainer.global_step:
            return
        begun = time.monotonic()
        self.guard.check()
        if self.pieces is not None:
            self._apart(trainer)
        else:
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            if trainer.is_global_zero:
                save(content, self.folder / "last.ckpt", keep=self.folder / "previous.ckpt")
        self._saved, self._time = trainer.global_step, time.monotonic()
        self._took = self._time - begun
        self.told()

    def _apart(self, trainer: lightning.Trainer) -> None:
        """Every rank its own piece; what is no piece is the same on all."""
        self._wait()
        strategy: Any = trainer.strategy
        with strategy.bare():
            beside = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        self._writing = sharded.save(
            self.folder / "last", trainer.lightning_module, trainer.optimizers[0], beside, self.pieces == "async"
        )

    def _wait(self) -> None:
        """Until the pieces of the checkpoint before are on disk."""
        if self._writing is not None:
            self._writing.wait()
            self._writing = None
