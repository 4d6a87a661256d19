"""How many samples a second the training loader gives, with and without the decoded cache.

The loader of a recipe is iterated alone, without a model, from the same seed. `ready_s` is the time until the data set
can be read; making the cache is part of it in the first run of all, which keeps it for the others.

    python benchmarks/loader.py video/videomae data=sample [seconds=5] [workers=0,2] [any override ...]
"""

from __future__ import annotations

import json
import sys
import time

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import compose


def measure(recipe, overrides, seconds, workers, memory_mb):
    """Samples per second over at least so many seconds, whole batches only, after the first batch."""
    said = [f"data.workers={workers}"] + ([] if memory_mb is None else [f"data.memory_mb={memory_mb}"])
    tree = compose(recipe, [*overrides, *said])
    check(tree)
    data = build.data(tree)
    start = time.perf_counter()
    dataset = data.dataset("train")
    opened = time.perf_counter() - start
    data.set_share(rank=0, world=1, accumulate=1)
    loader, batches, waits, begun = data.train_dataloader(), 0, [], None
    while begun is None or time.perf_counter() - begun < seconds:
        mark = time.perf_counter()
        for _ in loader:
            now = time.perf_counter()
            if begun is None:  # workers have started by now
                begun = now
            else:
                batches += 1
                waits.append(now - mark)
            mark = now
    spent = sum(waits)
    return {
        "cached": bool(dataset.in_memory), "workers": workers, "ready_s": round(opened, 2), "batches": batches,
        "samples_per_s": round(batches * data.batch_size / spent, 1), "batch_ms": round(1000 * spent / batches, 2),
    }  # fmt: skip


def main() -> None:
    recipe, *words = sys.argv[1:]
    said = dict(word.split("=", 1) for word in words if word.startswith(("seconds=", "workers=")))
    overrides = [word for word in words if not word.startswith(("seconds=", "workers="))]
    seconds = float(said.get("seconds", 5))
    counts = [int(count) for count in said.get("workers", "0").split(",")]
    found = []
    for workers in counts:
        for memory_mb in (0, None):
            found.append(measure(recipe, overrides, seconds, workers, memory_mb))
    print(json.dumps({"recipe": recipe, "overrides": overrides, "seconds": seconds, "loaders": found}, indent=2))


if __name__ == "__main__":
    main()
