"""What it costs to be able to go on: checkpoints every 200 steps, and a loader with a state, beside neither.

Both are measured alternating, A B A B, and reported as the median over the pairs. A run of 200 steps with its one
checkpoint stands against the same run without; the loader of a recipe against a plain DataLoader over the same batches.

    python -m benchmarks.costs [RECIPE] [key=value ...] [--pairs 7] [--write]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

OUT = Path(__file__).parents[1] / "docs" / "results" / "costs.json"
STEPS = 200
WRITES: list[float] = []  # seconds of each checkpoint


def fitted(tree, folder, every):
    """Seconds between the first and the last step, and of all that callbacks did."""
    from mmssl.config import build
    from mmssl.run.safety import Guard
    from mmssl.run.saving import Checkpoint
    from mmssl.run.signals import Signals
    from mmssl.run.trainer import lightning_trainer, quiet

    data = build.data(tree)
    module = build.module(tree, data.facts())
    module.steps = STEPS
    settings = build.make(tree["trainer"], "trainer")
    with Signals() as signals, quiet():
        guard = Guard(folder)
        saving = [Checkpoint(folder, guard, signals, {"config": tree, "facts": data.facts()}, every)] if every else []
        trainer = lightning_trainer(settings, STEPS, [guard, *saving], [])
        data.set_share(rank=0, world=1, accumulate=1)
        loader = data.train_dataloader()
        begun = time.perf_counter()
        trainer.fit(module, loader)
        spent = time.perf_counter() - begun
    if every:
        WRITES.append(saving[0]._took)
    return spent


def loaded(data, plain):
    """Seconds of one epoch of the loader alone."""
    loader = data.train_dataloader()
    if plain:
        workers = {"num_workers": loader.num_workers, "worker_init_fn": loader.worker_init_fn}
        loader = DataLoader(
            loader.dataset, batch_sampler=list(loader.batch_sampler), collate_fn=loader.collate_fn, **workers
        )
    begun = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - begun


def compared(measure, pairs):
    """Both alternating, after one of each that is not counted."""
    measure(True), measure(False)
    found = [(measure(True), measure(False)) for _ in range(pairs)]
    with_it, without = (statistics.median(column) for column in zip(*found, strict=True))
    share = statistics.median(a / b - 1 for a, b in found)
    return {"with_s": round(with_it, 3), "without_s": round(without, 3), "cost": round(share, 4), "pairs": pairs}


def main() -> None:
    from mmssl.api import resolve
    from mmssl.config import build

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", default=["image/mae", "data=sample"])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    recipe, *overrides = given.words
    tree = resolve(recipe, [*overrides, "trainer.log_every=1000000"])
    result = {
        "command": " ".join(["python -m benchmarks.costs", *given.words]),
        "torch": torch.__version__,
        "steps": STEPS,
    }
    with tempfile.TemporaryDirectory() as folder:
        result["checkpoints"] = compared(lambda yes: fitted(tree, Path(folder), STEPS if yes else 0), given.pairs)
        size = (Path(folder) / "last.ckpt").stat().st_size
    write = statistics.median(WRITES)
    share = write / result["checkpoints"]["without_s"]
    result["checkpoints"] |= {
        "mb": round(size / 1e6, 2),
        "write_ms": round(1000 * write, 1),
        "write_share": round(share, 5),
    }
    print(json.dumps(result["checkpoints"]), file=sys.stderr)
    for workers in (0, 2):
        tree["data"]["workers"] = workers
        data = build.data(tree)
        data.facts()
        data.set_share(rank=0, world=1, accumulate=1)
        result[f"loader, {workers} workers"] = compared(lambda yes, data=data: loaded(data, not yes), given.pairs)
    print(json.dumps(result, indent=1))
    if given.write:
        OUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
