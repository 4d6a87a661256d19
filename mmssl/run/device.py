"""What a run takes of its device: operations of a step over the measured matrix rate, and memory."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

# seconds that the matrix rate is measured for
_PATIENCE = 0.3


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Attention on the CPU, which torch's counter does not know."""
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Scores once more, then two products for each of the two of the forward pass."""
    return 5 * sdpa_flop_count(query, key, value) // 2


def counter() -> FlopCounterMode:
    """Counts the operations of matrix products, convolutions and attention within a `with`."""
    ops: Any = torch.ops.aten
    known = {
        ops._scaled_dot_product_flash_attention_for_cpu: _attention,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=known)


class Flops(lightning.Callback):
    """Counts the operations of the first step's matrix products, convolutions and attention, backward pass included.

    Compiled blocks cannot be counted; then there is no number.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self._counter: FlopCounterMode | None = None
        self._counting = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Begins to count."""
        self._counter = counter()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Counts the first batch."""
        if self._counter is not None and self.step is None:
            self._counter.__enter__()
            self._counting = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Has counted the first batch, one of the accumulated pieces of a step."""
        if self._counter is not None and self.step is None:
            self._counter.__exit__(None, None, None)
            self._counting = False
            self.step = self._counter.get_total_flops() * trainer.accumulate_grad_batches
            self._counter = None

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Counts no further: the counter stands between torch and everything that this process does."""
        if self._counter is not None and self._counting:
            self._counter.__exit__(None, None, None)
        self._counter, self._counting = None, False

    def mfu(self, step_ms: float | None, device: torch.device, dtype: torch.dtype) -> float | None:
        """Share of the matrix rate of one device that a step used; None where nothing was counted."""
        if not self.step or not step_ms:
            return None
        return round(self.step / (step_ms / 1000) / matrix_rate(device, dtype), 4)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on a device, the best of several."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.ones(n, n, device=device, dtype=dtype)
    best, begun = float("inf"), time.perf_counter()
    for _ in range(50):
        started = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() - begun > _PATIENCE:
            break
    return 2 * n**3 / best


def peak_memory() -> int:
    """Peak memory in MiB: of the GPU where there is one, else the largest resident size of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):  # `getrusage` begins with what the process that started this one had
            return round(int(line.split()[1]) / 2**10)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)
