"""A rank that hangs, and errors whose remedy is a key: what the run says instead of waiting or of a bare traceback."""

from __future__ import annotations

import faulthandler
import time
from pathlib import Path
from typing import IO, Any

import lightning

from mmssl import ranks


class Watchdog(lightning.Callback):
    """Ends a process that has not finished a step for too long, with the stack of each of its threads on disk.

    Ranks wait for one another in every step, so that one that hangs holds all up, and all of them say where they are.
    The clock runs outside of Python: it also ends a process that never comes back from a library.

    Args:
        folder: gets `rank<n>.txt` when time is up.
        minutes: how long a step, a measurement or a checkpoint may take.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.seconds = folder, 60 * minutes
        self._file: IO[str] | None = None
        self._armed = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Starts the clock."""
        self.folder.mkdir(exist_ok=True)
        self._file = (self.folder / f"rank{ranks.rank()}.txt").open("w")
        self._arm()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """There is progress: data have come."""
        self._arm()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """There is progress: a step is done."""
        self._arm()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Stops the clock."""
        self._leave()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Stops the clock."""
        self._leave()

    def _arm(self) -> None:
        # each time starts a thread, so not in every short step
        now = time.monotonic()
        if self._file is not None and now - self._armed > self.seconds / 100:
            self._armed = now
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._file)

    def _leave(self) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._file = None
            (self.folder / f"rank{ranks.rank()}.txt").unlink(missing_ok=True)
            if not list(self.folder.iterdir()):
                self.folder.rmdir()


def remedy(error: BaseException) -> str | None:
    """What to change after an error that a key causes; None for any other error."""
    said = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in said or isinstance(error, MemoryError):
        return (
            "There is not enough memory for a step. Make its pieces smaller and the step stays the same: "
            "trainer.accumulate=2 (or more), trainer.chunk=32 for terms over the batch, more trainer.devices, "
            "trainer.checkpoint_activations=true, trainer.precision=bf16-mixed; or take a smaller data.batch_size."
        )
    if "DataLoader worker" in said:
        return (
            "A process that reads data was lost, as a rule for want of memory or of shared memory (/dev/shm). Take "
            "fewer data.workers, or data.workers=0 to see the error itself."
        )
    if isinstance(error, OSError) and error.errno is not None:
        return "The disk is full, or the run's directory cannot be written any more. Make room, or write rights."
    return None
