"""`plan`: what a run will take, as one object."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmssl.config import build
from mmssl.config.compose import ConfigError
from mmssl.run import directory
from mmssl.run.launch import joined, local
from mmssl.run.planning import timing
from mmssl.run.planning.curve import largest
from mmssl.run.planning.live import total
from mmssl.run.planning.memory import Step, available, counted, resident, verified
from mmssl.run.planning.trial import Trial
from mmssl.run.trainer import Settings, planned_steps

# Freed blocks that glibc keeps for itself, as a share of what tensors take: 0.19 to 0.45 was measured, see
# benchmarks/plan.py; and what of a memory may be filled where that cannot be tried.
_KEPT, _FULL = 0.35, 0.9
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def memory_bytes(said: str | None) -> int | None:
    """Bytes of a word such as `24GB`, `80GiB`.

    Raises:
        ConfigError: for another word.
    """
    if said is None:
        return None
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", said)
    if match is None or match[2].lower() not in _UNITS:
        raise ConfigError(f"memory={said}: give a number with a unit, such as memory=24GB or memory=80GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def plan(tree: dict[str, Any], memory: int | None = None, measure: bool = True) -> dict[str, Any]:
    """What a run will take, before its first step. Nothing of the size of the run is allocated.

    Args:
        tree: a checked configuration.
        memory: bytes of the device that the batch has to fit into; None for what is there: the GPU's, or what is free
            of the machine's.
        measure: whether real steps are taken: one is timed, where it fits into the machine at ease, and on a GPU the
            largest batch is tried.

    Returns:
        `recipe`, `device`, `precision`, `strategy`, `world` (ranks), `accumulate`, `batch_size`, `per_pass` (samples of
        one rank's pass); `parameters`, `tokens`, `flops`, `memory`, `largest`, `steps`, `time`, `disk`: see the
        functions that make them.

    Raises:
        ConfigError: for what `pretrain` would refuse, and for a recipe that only a larger machine can plan.
    """
    settings: Settings = build.make(tree["trainer"], "trainer")
    settings = settings if joined() else replace(settings, devices=local(settings))
    data = build.data(tree)
    data.set_share(rank=0, world=settings.world, accumulate=settings.accumulate)
    data.facts()
    batches = len(data.train_dataloader())
    per_pass = max(1, data.batch_size // (settings.world * settings.accumulate))
    process = 0 if settings.gpus else resident()
    trial, step = counted(tree, data, settings, per_pass)
    steps = planned_steps(settings, batches)
    took = timing.measured(tree, data, settings, step, per_pass) if measure else timing.unknown("not asked for")
    seconds = None if took["step_ms"] is None else took["step_ms"] / 1000 * steps
    passes = settings.world * settings.accumulate
    forward, backward = (round(float(one) * passes) for one in step.flops.at(per_pass))
    return {
        "recipe": tree["recipe"],
        "device": torch.cuda.get_device_name() if settings.gpus else "cpu",
        "precision": settings.precision,
        "strategy": settings.strategy,
        "world": settings.world,
        "accumulate": settings.accumulate,
        "batch_size": data.batch_size,
        "per_pass": per_pass,
        "parameters": parameters(trial.module),
        "tokens": trial.tokens(),
        "flops": {"forward": forward, "backward": backward, "step": forward + backward},
        "memory": _told(step.memory(per_pass), process, kept(settings))
        | {"weightless": trial.weightless, "aligned": step.aligned},
        "largest": _largest(tree, step, data, settings, process, memory, measure),
        "steps": steps,
        "time": took | {"seconds": None if seconds is None else round(seconds, 1)},
        "disk": disk(tree, trial.module, step, data),
    }


def parameters(module: Any) -> dict[str, Any]:
    """Numbers of parameters by network: `name: {parameters, trained}`, and `total`; shared ones count once.

    A network is one of `networks`, a head, a corruptor, what an objective's term owns (predictors), or the teacher.
    """
    found, seen = {}, set[int]()
    named = [
        *((f"{group}.{name}", part) for group in ("networks", "heads", "corruptors")
          for name, part in getattr(module, group).items()),
        *((f"objective.{name}", term) for name, term in module.objective.items()),
        *([] if module.teacher is None else [("teacher", module.teacher)]),
    ]  # fmt: skip
    for name, part in named:
        own = [p for p in part.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        if own:
            found[name] = _numbers(own)
    found["total"] = _numbers(list(module.parameters()))
    return found


def _numbers(own: list[nn.Parameter]) -> dict[str, int]:
    return {"parameters": sum(p.numel() for p in own), "trained": sum(p.numel() for p in own if p.requires_grad)}


def kept(settings: Settings) -> float:
    """The share of what tensors take that the allocator keeps beside it: none on a GPU, or where glibc is told to."""
    return 0.0 if settings.gpus or "MALLOC_MMAP_THRESHOLD_" in os.environ else _KEPT


def _told(kinds: Mapping[str, float], process: int, share: float) -> dict[str, Any]:
    """Mebibytes of each kind at the fullest moment, of the process itself where it is the device, and `peak_mb`."""
    kinds = {**kinds, "allocator": share * sum(kinds.values()), "process": process}
    found = {f"{kind}_mb": round(size / 2**20, 1) for kind, size in kinds.items()}
    return found | {"peak_mb": round(sum(kinds.values()) / 2**20, 1)}


def _largest(
    tree: Mapping[str, Any], step: Step, data: Any, settings: Settings, process: int, memory: int | None, measure: bool
) -> dict[str, Any]:
    """The largest batch that fits: `memory_mb`, `per_pass`, `batch_size` of all ranks and passes, `verified`, `why`.

    It follows from what small steps were counted to take. Where this machine's GPU is meant, it is tried as well; else
    a tenth of the memory is left free.
    """
    own = memory is None
    if memory is None:
        memory = torch.cuda.mem_get_info()[0] if settings.gpus else available() + process
    found = {"memory_mb": round(memory / 2**20), "per_pass": None, "batch_size": None, "verified": False, "why": None}
    if data.full:
        return found | {"why": "data.batch_size=full: a step is all of the data"}
    # another device, whose memory was said, holds tensors and nothing else
    share, beside = (kept(settings), process) if own else (0.0, 0)
    room = memory if own and settings.gpus else _FULL * memory
    most = largest(lambda samples: step.peak(samples) * (1 + share) + beside <= room)
    if most and own and measure and settings.gpus and settings.world == 1:
        trial = Trial(tree, data, settings, weightless=False)
        if total(trial.batch(1)) * most < available() / 2:  # the batch itself is made on this machine
            tried = verified(most, trial.count)
            most, found["verified"] = tried or 0, tried is not None
    if most == 0:
        return found | {"per_pass": 0, "batch_size": 0, "why": "not even one sample fits"}
    batch = most * settings.world * settings.accumulate
    samples = len(data.dataset("train"))
    why = f"the train split has {samples} samples" if batch > samples else None
    return found | {"per_pass": most, "batch_size": batch, "why": why}


def disk(tree: Mapping[str, Any], module: nn.Module, step: Step, data: Any) -> dict[str, Any]:
    """Mebibytes of a checkpoint, of two that a run keeps and the one it writes, of decoded data, and what is free."""
    state = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    one = state + step.state
    kept = [getattr(dataset, "array", None) for dataset in data._kept.values()]
    place = directory.root(tree["run"]["root"]).absolute()
    while not place.exists():
        place = place.parent
    return {
        "checkpoint_mb": round(one / 2**20, 1),
        "checkpoints_mb": round(3 * one / 2**20, 1),
        "cache_mb": round(sum(array.nbytes for array in kept if array is not None) / 2**20, 1),
        "free_mb": round(shutil.disk_usage(Path(place)).free / 2**20),
    }
