"""How fast a recipe trains here, measured through the real trainer and the real loader."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning
import torch

from mmssl.config import build
from mmssl.nn.network import Network
from mmssl.run.device import peak_memory
from mmssl.run.metrics import Metrics
from mmssl.run.trainer import lightning_trainer, quiet


class _Phases(lightning.Callback):
    """Times forward, backward and optimizer of every step, waiting for the device at each boundary."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._marks: dict[str, float] = {}

    def _mark(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._marks[name] = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._mark("start")

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self._mark("forward")

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self._mark("backward")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._mark("end")
        marks = self._marks
        self.rows.append(
            {
                "forward_ms": 1000 * (marks["forward"] - marks["start"]),
                "backward_ms": 1000 * (marks["backward"] - marks["forward"]),
                "optimizer_ms": 1000 * (marks["end"] - marks["backward"]),
            }
        )


def bench(tree: dict[str, Any], steps: int = 20, warmup: int = 3) -> dict[str, Any]:
    """Trains a few steps and reports medians.

    Args:
        tree: a checked configuration.
        steps: steps that are measured.
        warmup: steps before them that are not.

    Returns:
        recipe, device, threads, batch size, parameters, tokens, and in milliseconds a step: step, data, forward,
        backward, optimizer; samples per second, share of time spent waiting for data, peak memory.
    """
    data = build.data(tree)
    settings = build.make(tree["trainer"], "trainer")
    module = build.module(tree, data.facts())
    data.set_share(rank=0, world=settings.world or 1, accumulate=settings.accumulate)
    module.steps = steps + warmup
    phases = _Phases()
    with tempfile.TemporaryDirectory() as folder, quiet():
        metrics = Metrics(Path(folder), 1, module.batch_size)
        lightning_trainer(settings, module.steps, [metrics, phases], []).fit(module, datamodule=data)
    timings, rows = metrics.timings[warmup:], phases.rows[warmup * settings.accumulate :]
    step, wait = (statistics.median(row[key] for row in timings) for key in ("step_ms", "data_ms"))
    main: Network = module.kept
    return {
        "recipe": tree["recipe"],
        "device": str(module.device) if not torch.cuda.is_available() else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "batch_size": module.batch_size,
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "encoder_parameters": sum(p.numel() for p in main.parameters()),
        "tokens": main.spec.length,
        "steps": len(timings),
        "step_ms": round(step, 3),
        "data_ms": round(wait, 3),
        "data_wait": round(wait / step, 4),
        "samples_per_s": round(1000 * module.batch_size / step, 1),
        **{key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]},
        "mfu": None,
        "peak_mem_mb": peak_memory(),
    }
