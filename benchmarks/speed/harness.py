"""Two ways to do one work, taking turns: times, operations, memory."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import compose
from mmssl.nn.blocks import AskedBlock
from mmssl.nn.mlp import LeanMlp
from mmssl.run.device import counter, matrix_rate
from mmssl.run.metrics import Clock, Metrics
from mmssl.run.trainer import lightning_trainer, quiet, settings

WARM = 2  # turns that are not counted
TOLERANCE = 1e-5  # of float32 sums in another order


@dataclass
class Script:
    """The reference.

    Args:
        step: takes as many steps as one of our turns.
        losses: ours and the reference's of the same batch, weights and mask.
        module: the reference, and its
        optimizer: whose memory is counted.
        once: one step, whose operations are counted; None where `step` is one.
    """

    step: Callable[[], Any]
    losses: Callable[[], tuple[Tensor, Tensor]]
    module: nn.Module
    optimizer: torch.optim.Optimizer
    once: Callable[[], Any] | None = None


@dataclass
class Work:
    """A work, ready to be measured.

    Args:
        module: mmssl's module, which trains through Lightning.
        batches: its loader.
        script: makes the reference of a module whose weights it takes over.
        turn: our steps in a turn.
        facts: what a result says beside the numbers, such as sizes.
        countable: whether all work is in products that torch can count; sparse ones are not.
    """

    module: Any
    batches: Iterable[Any]
    script: Callable[[Any], Script]
    turn: int = 1
    facts: dict[str, Any] = field(default_factory=dict)
    countable: bool = True


def timms(module: Any) -> Any:
    """A copy of a module whose blocks are timm's own, of which ours are kinds with the same weights."""
    taken = copy.deepcopy(module)
    for part in taken.modules():
        part.__class__ = {AskedBlock: Block, LeanMlp: Mlp}.get(type(part), type(part))
    return taken


def built(recipe: str, overrides: list[str], facts: dict[str, Any]) -> Any:
    """Our module of a recipe at some sizes."""
    data = {"video": "videos", "pointcloud": "clouds"}.get(recipe.split("/")[0], "folder")
    tree = compose(recipe, [f"data={data}", "data.root=.", *overrides])
    check(tree)
    return build.module(tree, facts)


def sizes(part: str, dim: int, depth: int, heads: int) -> list[str]:
    """Overrides that size an encoder or a predictor."""
    return [f"{part}.dim={dim}", f"{part}.depth={depth}", f"{part}.heads={heads}"]


def asked(module: Any, batch: Any) -> tuple[Tensor, Any]:
    """Our loss of a batch, and the step that has its mask; of a module with one term."""
    (term,), step = module.objective.values(), module.begin(batch)
    total, count = term(step)
    return (total / count).sum(), step


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, *inputs: Any) -> Tensor:
    """One step of a loop written by hand."""
    loss = model(*inputs)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def adamw(model: nn.Module, **said: Any) -> torch.optim.Optimizer:
    """torch's AdamW as scripts call it: decay on matrices alone, and no choice of a kernel."""
    small = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    large = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    groups = [{"params": small, "weight_decay": 0.0}, {"params": large, "weight_decay": 0.05}]
    return torch.optim.AdamW(groups, lr=1e-4, **said)


def agree(script: Script) -> dict[str, float]:
    """Both losses of one batch; they differ by rounding alone.

    Raises:
        AssertionError: where they do not, for then the times compare two different works.
    """
    with torch.no_grad():
        ours, reference = (float(loss) for loss in script.losses())
    apart = abs(ours - reference) / abs(reference)
    assert apart <= TOLERANCE, f"the losses differ by {apart:.1e}: ours {ours}, reference {reference}"
    return {"ours": ours, "reference": reference}


class Turns(lightning.Callback):
    """Times our turns within Lightning's loop; between two of them the reference has its own."""

    def __init__(self, turn: int, reference: Callable[[], Any]) -> None:
        self.turn, self.reference = turn, reference
        self.ours: list[tuple[float, float]] = []
        self.theirs: list[tuple[float, float]] = []
        self._steps, self._mark = 0, (0.0, 0.0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._steps += 1
        if self._steps % self.turn:
            return
        # from the end of the turn before to the end of this one: all that Lightning and mmssl do between, is in
        if self._steps > self.turn:
            self.ours.append(since(self._mark))
        mark = now()
        self.reference()
        self.theirs.append(since(mark))
        self._mark = now()


def now() -> tuple[float, float]:
    """Seconds by the clock on the wall, and of this process's threads."""
    return time.perf_counter(), time.process_time()


def since(mark: tuple[float, float]) -> tuple[float, float]:
    """Both since then."""
    wall, busy = now()
    return wall - mark[0], busy - mark[1]


class Given:
    """Batches that are there already; of a plain list Lightning would make several loaders."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def train(work: Work, turns: int, folder: Path, watch: lightning.Callback) -> None:
    """Takes our steps through the trainer of a run, with the callbacks that write its tables."""
    steps = work.turn * turns
    work.module.steps, metrics = steps, Metrics(folder, 10, work.module.batch_size)
    given = settings(max_steps=steps, max_epochs=None)
    with quiet():
        trainer = lightning_trainer(given, steps, [metrics, watch, Clock(metrics)], [])
        trainer.fit(work.module, work.batches)


def operations(work: Work, reference: Callable[[], Any]) -> dict[str, int]:
    """Operations of the matrix products and attention of a step, forward and backward."""
    batch, found = next(iter(work.batches)), {}

    def ours() -> None:
        work.module.training_step(batch).backward()
        work.module.zero_grad()

    for name, call in (("ours", ours), ("reference", reference)):
        with counter() as counted:
            call()
        found[name] = counted.get_total_flops()
    return found


def measured(work: Work, pairs: int, folder: Path) -> dict[str, Any]:
    """Everything about a work."""
    script = work.script(timms(work.module))
    result: dict[str, Any] = {"loss": agree(script), **work.facts}
    counted = operations(work, script.once or script.step) if work.countable else None
    device, dtype = torch.device("cpu"), torch.float32
    before = matrix_rate(device, dtype)
    # the first turn of ours is not timed, and the last of the reference's has none of ours behind it
    watch = Turns(work.turn, script.step)
    train(work, WARM + pairs, folder, watch)
    ours, theirs = watch.ours[-pairs:], watch.theirs[:-1][-pairs:]
    result |= compared(ours, theirs)
    if counted is not None:
        rate = max(before, matrix_rate(device, dtype))
        done = {name: work.turn * number for name, number in counted.items()}
        share = {name: round(1000 * done[name] / result[f"{name}_ms"] / rate, 3) for name in done}
        floor = round(counted["ours"] / counted["reference"], 4)
        if work.turn == 1:
            result["memory"] = memory(work, script, folder)
        result["operations"] = counted | {"floor": floor, "matrix_rate": round(rate), "share_of_rate": share}
    return result


def in_turn(ours: Callable[[], Any], reference: Callable[[], Any], pairs: int) -> dict[str, Any]:
    """Two plain functions alternating, after some turns that are not counted."""
    times: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    for _ in range(WARM + pairs):
        for call, found in zip((ours, reference), times, strict=True):
            mark = now()
            call()
            found.append(since(mark))
    return compared(times[0][WARM:], times[1][WARM:])


def found_below(folder: Path | None, name: str) -> Path:
    """The folder below this one that holds a file.

    Raises:
        FileNotFoundError: where none does, or no folder is given.
    """
    if folder is None:
        raise FileNotFoundError(f"it reads real data: name the folder that holds {name} somewhere below it with --data")
    for path in sorted(folder.rglob(name)):
        return path.parent
    raise FileNotFoundError(f"there is no {name} below {folder}")


def compared(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians, and the ratio of the medians; the ratio of processor time tells how much others disturbed."""
    walls = [[1000 * wall for wall, _ in times] for times in (ours, theirs)]
    busy = [statistics.median(cpu for _, cpu in times) for times in (ours, theirs)]
    a, b = (statistics.median(times) for times in walls)
    each = sorted(x / y for x, y in zip(*walls, strict=True))
    return {
        "pairs": len(ours), "ours_ms": round(a, 3), "reference_ms": round(b, 3), "ratio": round(a / b, 4),
        "ratio_of_pairs": [round(statistics.median(each), 4), round(each[0], 4), round(each[-1], 4)],
        "ratio_of_cpu_time": round(busy[0] / max(busy[1], 1e-9), 4),
        "ours_all_ms": [round(t, 2) for t in walls[0]], "reference_all_ms": [round(t, 2) for t in walls[1]],
    }  # fmt: skip


class Peak(lightning.Callback):
    """The largest number of bytes that tensors hold at once in a step of ours, the third."""

    def __init__(self) -> None:
        self.bytes, self._steps, self._begun = 0, 0, 0
        self._profile: Any = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._steps += 1
        if self._steps == WARM:
            self._begun = held(pl_module, trainer.optimizers[0])
            self._profile = allocations().__enter__()
        elif self._profile is not None:
            self._profile.__exit__(None, None, None)
            self.bytes, self._profile = self._begun + climb(self._profile), None


def allocations() -> Any:
    """Records what torch allocates and frees."""
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)


def climb(profile: Any) -> int:
    """How far the bytes held rose at most above those at the start."""
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((number for _, number in changes), initial=0))


def held(module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights, buffers, gradients and the optimizer's state."""
    weights = [*module.parameters(), *module.buffers()]
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    state = [value for one in optimizer.state.values() for value in one.values() if isinstance(value, Tensor)]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in (*weights, *gradients, *state)
    }
    return sum(storage.nbytes() for storage in storages.values())


def memory(work: Work, script: Script, folder: Path) -> dict[str, Any]:
    """Peak bytes of both sides in MiB; of the reference beside what its loop holds from step to step."""
    watch = Peak()
    train(work, WARM + 1, folder, watch=watch)
    for _ in range(WARM):
        script.step()
    begun = held(script.module, script.optimizer)
    with allocations() as profile:
        script.step()
    ours, reference = watch.bytes / 2**20, (begun + climb(profile)) / 2**20
    return {"ours_mb": round(ours, 1), "reference_mb": round(reference, 1), "ratio": round(ours / reference, 4)}
