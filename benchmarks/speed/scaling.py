"""How a step grows with tokens and with the batch, and a loader with workers: MAE with ViT-S/16, and photographs."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import loaders
from benchmarks.speed.harness import allocations, built, climb, held, sizes
from benchmarks.speed.parts import image_batch
from mmssl.run.device import counter, matrix_rate

GOAL = "no goal"
WHAT = "MAE ViT-S/16: a step by tokens and batch; its loader by workers"
SAME = "no reference: how our own numbers grow"
POINTS = [(96, 8), (160, 8), (224, 2), (224, 4), (224, 8), (288, 8)]  # side in pixels, batch
WORKERS = (0, 1, 2)
REPEATS = 3


def step(side: int, batch: int, rate: float) -> dict[str, Any]:
    """Forward, backward and optimizer of one size: times, share of the matrix rate, bytes."""
    said = [*sizes("encoder", 384, 12, 6), *sizes("objective.pixels.predictor", 512, 8, 16)]
    module = built("image/mae", [*said, f"data.size={side}", f"data.batch_size={batch}"], FACTS)
    optimizer, given = module.configure_optimizers(), image_batch(batch, side)
    module.steps = 10
    times: dict[str, list[float]] = {"forward_ms": [], "backward_ms": [], "optimizer_ms": []}
    for _ in range(1 + REPEATS):
        marks = [time.perf_counter()]
        loss = module.training_step(given)
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        for name, begun, ended in zip(times, marks[:-1], marks[1:], strict=True):
            times[name].append(1000 * (ended - begun))
    with counter() as counted:
        module.training_step(given).backward()
    optimizer.zero_grad()
    begun = held(module, optimizer)
    with allocations() as profile:
        module.training_step(given).backward()
    told = {name: round(statistics.median(found[1:]), 2) for name, found in times.items()}
    whole = sum(told.values())
    return {
        "side": side, "batch": batch, "tokens": (side // 16) ** 2, **told, "step_ms": round(whole, 2),
        "samples_per_s": round(1000 * batch / whole, 2),
        "share_of_rate": round(counted.get_total_flops() / (whole / 1000) / rate, 3),
        "peak_mb": round((begun + climb(profile)) / 2**20, 1),
    }  # fmt: skip


FACTS = {"channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}


def measure(pairs: int) -> dict[str, Any]:
    """All points, and the loader's."""
    rate = matrix_rate(torch.device("cpu"), torch.float32)
    points = [step(side, batch, rate) for side, batch in POINTS]
    with tempfile.TemporaryDirectory() as name:
        loaders.photographs(Path(name) / "photos", 96)
        said = ["data=folder", f"data.root={name}/photos", "data.batch_size=16"]
        speeds = {}
        for workers in WORKERS:
            turns = loaders.epochs(loaders.ours("image/mae", said, False, workers), 16)
            speeds[str(workers)] = statistics.median([next(turns) for _ in range(4)][1:])
    rows = [(f"... {p['tokens']} tokens, batch {p['batch']}", "", "", _said(p), True) for p in points]
    rows += [(f"... loader, {n} workers", "", "", f"{speed:.0f} in a second", True) for n, speed in speeds.items()]
    return {"points": points, "loader": {k: round(v, 1) for k, v in speeds.items()}, "matrix_rate": rate, "rows": rows}


def _said(point: dict[str, Any]) -> str:
    """A point in words."""
    return (
        f"{point['step_ms']:.0f} ms, {point['samples_per_s']:.1f} in a second, {point['share_of_rate']:.2f} of the "
        f"matrix rate, {point['peak_mb']:.0f} MiB"
    )
