"""What a teacher's following costs beside the step it follows, for recipes of every modality; the goal is below 2 %.

Batches are those of the shipped samples. Medians over steps on one thread; nothing but the step is done: forward pass,
backward pass, optimizer, teacher.

    python -m benchmarks.teachers [RECIPE ...] [--steps 9] [--write]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

import mmssl

OUT = Path(__file__).parents[1] / "docs" / "results" / "teachers.json"
RECIPES = (
    "image/ijepa", "image/dino", "image/byol", "video/vjepa", "audio/a_jepa", "pointcloud/point_jepa", "graph/bgrl",
    "tabular/t_jepa",
)  # fmt: skip


def row(recipe: str, steps: int) -> dict[str, float | str]:
    """Milliseconds of a step and of the teacher's part of it."""
    module, data = mmssl.build(recipe, ["data=sample"])
    optimizer = module.optim.build(module, module.batch_size)
    batch = data.batch([(0, i) for i in range(data.batch_size)])
    module.train()
    whole, follow = [], []
    for _ in range(steps):
        started = time.perf_counter()
        module.training_step(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        middle = time.perf_counter()
        module.teacher.follow(0.5)
        ended = time.perf_counter()
        whole.append(1000 * (ended - started))
        follow.append(1000 * (ended - middle))
    step, teacher = statistics.median(whole), statistics.median(follow)
    return {
        "recipe": recipe, "step_ms": round(step, 2), "teacher_ms": round(teacher, 3),
        "share": round(teacher / step, 5),
    }  # fmt: skip


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.teachers", description=__doc__)
    parser.add_argument("recipes", nargs="*", default=RECIPES, help="recipes with a teacher")
    parser.add_argument("--steps", type=int, default=9, help="steps of each")
    parser.add_argument("--write", action="store_true", help=f"write {OUT.name}")
    said = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for recipe in said.recipes:
        rows.append(row(recipe, said.steps))
        print(
            "{recipe:24} step {step_ms:8.1f} ms  teacher {teacher_ms:6.2f} ms  {share:.2%}".format(**rows[-1]),
            flush=True,
        )
    if said.write:
        OUT.write_text(json.dumps({"torch": torch.__version__, "threads": 1, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
