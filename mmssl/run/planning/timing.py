"""How long a run will take, from one real step where this machine can take it; else that is said to be unknown."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from mmssl.run.bench import bench
from mmssl.run.device import matrix_rate
from mmssl.run.planning.memory import Step, available
from mmssl.run.trainer import Settings

# Seconds that the measured steps may take, at a tenth of the matrix rate; and their share of the memory that is free.
_SECONDS, _EFFICIENCY, _SHARE = 10.0, 0.1, 0.5
_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


def measured(tree: Mapping[str, Any], data: Any, settings: Settings, step: Step, per_pass: int) -> dict[str, Any]:
    """Times of a step and of a sample, by taking some steps of as many samples as this machine takes at ease.

    Returns:
        `matrix_rate` (operations per second), `samples` (of the measured step), `efficiency` (share of the matrix rate
        that it used), `step_ms` (of a whole step of the run, data included); the last three None where no step was
        taken, and `why`.
    """
    device = torch.device("cuda" if settings.gpus else "cpu")
    rate = matrix_rate(device, _DTYPES.get(str(settings.precision).split("-")[0], torch.float32))
    room = torch.cuda.mem_get_info()[0] if settings.gpus else available()
    samples = per_pass
    while samples >= 2 and not _easy(step, samples, rate, room * _SHARE):
        samples = 0 if data.full else samples // 2
    if samples < min(2, per_pass):
        why = "no step that could be measured fits into half of the memory that is free, or ends within seconds"
        return unknown(why) | {"matrix_rate": rate}
    small: dict[str, Any] = copy.deepcopy(dict(tree))
    small["trainer"] |= {"devices": 1, "nodes": 1, "strategy": "auto", "accumulate": 1, "sharded_checkpoints": None}
    if not data.full:
        small["data"]["batch_size"] = samples
    found = bench(small, steps=2, warmup=1)
    here, there = (float(step.flops.at(n).sum()) for n in (samples, per_pass))
    busy = (found["step_ms"] - found["data_ms"]) / 1000
    scale = there / here if here else per_pass / samples
    return {
        "matrix_rate": rate,
        "samples": samples,
        "efficiency": round(here / busy / rate, 4),
        "step_ms": round(found["step_ms"] * scale * settings.accumulate, 3),
        "why": None,
    }


def unknown(why: str) -> dict[str, Any]:
    """What is said where no step was taken."""
    return {"matrix_rate": None, "samples": None, "efficiency": None, "step_ms": None, "why": why}


def _easy(step: Step, samples: int, rate: float, room: float) -> bool:
    seconds = 3 * float(step.flops.at(samples).sum()) / (rate * _EFFICIENCY)
    return step.peak(samples) < room and seconds < _SECONDS
