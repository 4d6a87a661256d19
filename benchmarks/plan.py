"""The memory that `mmssl plan` foretells beside the memory that a run takes: `python -m benchmarks.plan [--write]`.

Each half of a row is two fresh processes on the CPU: one that plans without memory for the weights, and one that trains
three steps and tells its largest resident size (`throughput.peak_mem_mb`). In the first half (`exact`) glibc is told to
hand every freed block back, so that what is resident is what is used; in the other (`default`) it keeps some, for which
a plan adds a fixed share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

OUT = Path(__file__).parent.parent / "docs" / "results" / "plan.json"
EXACT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
SAME = [
    "data=sample", "trainer.accelerator=cpu", "trainer.max_steps=3", "evaluation.limit=16",
    "evaluation.protocols.knn=null", "evaluation.protocols.linear=null",
]  # fmt: skip
ROWS = {
    "image/mae": ["encoder.dim=512", "encoder.depth=6", "encoder.heads=8", "data.batch_size=128"],
    "image/simclr": ["encoder.dim=384", "encoder.depth=6", "encoder.heads=6", "data.batch_size=32"],
    "image/dino": ["encoder.dim=256", "encoder.depth=6", "encoder.heads=8", "data.batch_size=8"],
    "audio/audio_mae": ["encoder.dim=512", "encoder.depth=6", "encoder.heads=8", "data.batch_size=64"],
}


def told(verb: str, recipe: str, overrides: list[str], folder: Path, **environ: str) -> dict[str, Any]:
    """What a verb says in a process of its own."""
    words = [sys.executable, "-m", "mmssl.cli", verb, recipe, "--json", *overrides]
    env = os.environ | {"MMSSL_RUNS": str(folder), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | environ
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)


def compare(recipe: str, overrides: list[str], folder: Path, **environ: str) -> dict[str, Any]:
    """Half of a row."""
    words = [*SAME, *overrides]
    plan = told("plan", recipe, [*words, "measure=false"], folder, **environ)["memory"]
    peak = told("pretrain", recipe, words, folder, **environ)["throughput"]["peak_mem_mb"]
    found = {"planned_mb": plan["peak_mb"], "measured_mb": peak, "off": round(plan["peak_mb"] / peak - 1, 3)}
    # the libraries, which are no part of the estimate, taken off both
    step, taken = plan["peak_mb"] - plan["process_mb"], peak - plan["process_mb"]
    return found | {"process_mb": plan["process_mb"], "off_without_process": round(step / taken - 1, 3)}


def main() -> None:
    """The command line."""
    found = {}
    for recipe, overrides in ROWS.items():
        with tempfile.TemporaryDirectory() as name:
            halves = {"exact": compare(recipe, overrides, Path(name), **EXACT)}
            halves["default"] = compare(recipe, overrides, Path(name))
        found[recipe] = {"overrides": overrides} | halves
        print(recipe, json.dumps(found[recipe]), file=sys.stderr, flush=True)
    text = json.dumps({"torch": torch.__version__, "device": "cpu", "recipes": found}, indent=1) + "\n"
    if "--write" in sys.argv:
        OUT.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
