"""The memory of a step at any batch size: what was counted in small steps, put on this run's devices."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmssl.config.compose import ConfigError
from mmssl.nn.sharding import blocks, roots
from mmssl.run.planning.curve import Curve
from mmssl.run.planning.live import LABELS
from mmssl.run.planning.trial import Counted, Trial
from mmssl.run.trainer import Settings

# Samples of the steps that are counted: enough for masks that differ from sample to sample, few enough to be quick.
_SAMPLES = 32
# A step that has to be taken in earnest, to be counted, may take this share of the memory that is free.
_SHARE = 0.5


class Step:
    """What one rank's pass of some samples takes.

    Args:
        counted: steps of several sizes.
        settings: the trainer.
        gathered: bytes of weights that FSDP makes whole at a time.
        held: bytes of a sample that waits for its own pass while gradients accumulate.
    """

    def __init__(self, counted: list[Counted], settings: Settings, gathered: int, held: float) -> None:
        self.settings, self.gathered, self.held = settings, gathered, held
        sizes = [one.samples for one in counted]
        self.aligned = len({one.lines.shape for one in counted}) == 1
        self.bytes = Curve(sizes, [one.lines if self.aligned else one.peaks for one in counted])
        self.flops = Curve(sizes, [[one.forward, one.backward] for one in counted])
        self.state = counted[-1].state

    def memory(self, samples: int) -> dict[str, float]:
        """Bytes of each kind at the fullest moment of a pass with so many samples."""
        lines = dict(zip(LABELS, self.bytes.at(samples), strict=True))
        world, fsdp = self.settings.world, self.settings.strategy == "fsdp"
        if world > 1 and not fsdp:  # the buckets of DDP are the gradients, and stay
            lines["gradients"] = np.full_like(lines["gradients"], lines["gradients"].max())
        if fsdp:
            lines |= {kind: lines[kind] / world for kind in ("weights", "teacher", "gradients", "optimizer")}
        moment = int(np.sum(list(lines.values()), axis=0).argmax())
        found = {kind: float(line[moment]) for kind, line in lines.items()}
        if fsdp:
            found["gathered"] = float(self.gathered)
        found["batch"] += max(0, self.settings.accumulate - 2) * self.held * samples
        return found

    def peak(self, samples: int) -> float:
        """Bytes at the fullest moment."""
        return sum(self.memory(samples).values())


def counted(tree: Mapping[str, Any], data: Any, settings: Settings, per_pass: int) -> tuple[Trial, Step]:
    """Counts small steps: without memory for weights where that can be, else in earnest.

    Raises:
        ConfigError: where only a real step could tell, and there is not the memory for one.
    """
    trial = Trial(tree, data, settings)
    sizes = _sizes(trial, data, settings, per_pass)
    with _quiet():
        try:
            return trial, _count(trial, sizes, settings)
        except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
            # an operation that needs values, or that torch has no rule for
            why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    weights = sum(p.numel() * p.element_size() for p in trial.module.parameters())
    if 5 * weights > _SHARE * available():
        raise ConfigError(
            f"{tree['recipe']} can only be planned by taking a small step in earnest ({why}), and that needs about "
            f"{5 * weights / 2**20:.0f} MiB, more than half of the {available() / 2**20:.0f} MiB that are free. "
            "Plan a smaller encoder, or plan on a larger machine."
        )
    trial = Trial(tree, data, settings, weightless=False)
    return trial, _count(trial, sizes, settings)


def _count(trial: Trial, sizes: list[int], settings: Settings) -> Step:
    passes, held = min(settings.accumulate, 2), 0.0
    steps = [trial.count(size, passes) for size in sizes]
    if settings.accumulate > 2:
        more = trial.count(sizes[0], 3).lines.sum(0).max()
        held = max(0.0, float(more - steps[0].lines.sum(0).max())) / sizes[0]
    return Step(steps, settings, gathered(trial.module), held)


def _sizes(trial: Trial, data: Any, settings: Settings, per_pass: int) -> list[int]:
    """Samples of the steps to be counted: two, or four where samples are compared with one another."""
    if data.full:
        return [per_pass]
    terms: Any = trial.module.objective
    compares = any(getattr(term, "compares", False) for term in terms.values())
    step = max(2, min(per_pass, _SAMPLES) // (4 if compares else 2))
    if settings.chunk is not None:  # where the encoder takes whole chunks, and several
        return [settings.chunk, 2 * settings.chunk, 3 * settings.chunk]
    return [step * k for k in range(1, 5 if compares else 3)]


def gathered(module: nn.Module) -> int:
    """Bytes that FSDP holds whole at a time: the block at work, the next one, and the root around them."""

    def own(part: nn.Module) -> int:
        return sum(p.numel() * p.element_size() for p in part.parameters())

    inner = blocks(module)
    inside = {id(p) for block in inner for p in block.parameters()}
    outer = [
        sum(p.numel() * p.element_size() for p in root.parameters() if id(p) not in inside) for root in roots(module)
    ]
    return sum(sorted(map(own, inner))[-2:]) + max(outer, default=0)


def available() -> int:
    """Bytes of this machine's memory that are free."""
    with open("/proc/meminfo") if Path("/proc/meminfo").exists() else open(os.devnull) as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
                return min([free, *_group()])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group() -> Iterator[int]:
    """What the container or the cluster's job leaves: its limit less what it uses."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = Path(limit).read_text().strip(), int(Path(used).read_text())
        except (OSError, ValueError):
            continue
        if most.isdigit() and int(most) < 2**60:
            yield max(0, int(most) - now)


def resident() -> int:
    """Bytes that this process has in memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def verified(samples: int, take: Callable[[int], object], tries: int = 5) -> int | None:
    """The largest batch that a device really takes, from an estimate down.

    Args:
        samples: the estimate.
        take: takes a step with so many samples, or raises `torch.OutOfMemoryError`.
        tries: each takes a tenth less than the last.

    Returns:
        Samples, or None where none of the tries went through.
    """
    for _ in range(tries):
        try:
            take(samples)
            return samples
        except torch.OutOfMemoryError:
            samples = samples * 9 // 10
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if samples < 1:
                break
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch reports operations that it has no rule for; here that is no news."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
