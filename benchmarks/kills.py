"""Kills runs at random moments with SIGKILL, resumes them, and compares each with a run that nobody disturbed.

    python -m benchmarks.kills [--kills 20] [--seed 0]

Weights, optimizer, teacher, counters and generators of the last checkpoint, and metrics.csv, have to be equal bit for
bit. Each trial is killed once or more: at a random moment of training, or as soon as a checkpoint is being written. One
trial in four runs in two processes. The result is written to docs/results/kills.json after every trial; trials that are
there are not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

RESULT = Path(__file__).parent.parent / "docs" / "results" / "kills.json"
# A teacher with a centre and drop path, and worker processes; dropout in a GNN on packed graphs; missing cells.
RECIPES = {
    "image/dino": ["trainer.max_steps=24", "data.workers=2", "data.batch_size=16", "encoder.depth=2"],
    "graph/graphmae": ["trainer.max_steps=40"],
    "tabular/remasker": ["trainer.max_steps=60", "data.workers=1"],
}
SHARED = [
    "data=sample", "trainer.accelerator=cpu", "trainer.checkpoint_every=3", "trainer.log_every=2",
    "evaluation.limit=40", "evaluation.protocols.linear=null",
]  # fmt: skip


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A run in the background, in a process group of its own."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "mmssl.cli", *words], stdout=out, stderr=out, start_new_session=True,
            env=os.environ | {"TMPDIR": str(log.parent)},
        )  # fmt: skip


def only(folder: Path) -> Path | None:
    """The run in a folder, once there is one."""
    return next((file.parent for file in (folder / "runs").glob("*/*/*/config.yaml")), None)


def strike(run: subprocess.Popen[bytes], folder: Path, writing: bool, steps: int, dice: random.Random) -> str:
    """Kills a run and all its processes at a moment of its training; says when that was."""
    at = dice.randrange(1, steps)
    while run.poll() is None:
        time.sleep(0.002)
        path = only(folder)
        if path is None:
            continue
        rows = path / "metrics.csv"
        step = (
            int(rows.read_text().splitlines()[-1].split(",")[0] or 0)
            if rows.exists() and rows.stat().st_size > 60
            else 0
        )
        if step < at - 2:
            continue
        if writing and not list((path / "checkpoints").glob(".last.ckpt.*")):
            continue
        if not writing:
            time.sleep(dice.random() * 0.3)
        break
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)
        for file in folder.glob("mmssl-*/pid.*"):  # ranks have sessions of their own
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)
    run.wait()
    path = only(folder)
    half = path is not None and bool(list((path / "checkpoints").glob(".last.ckpt.*")))
    return f"about step {at}{', while a checkpoint was being written' if half else ''}"


def ranks_of(recipe: str, number: int) -> int:
    """Processes of a trial; one whole graph has no share for a second."""
    return 2 if number % 4 == 3 and not recipe.startswith("graph/") else 1


def same(a: Any, b: Any, where: str = "") -> list[str]:
    """Names of all places where two checkpoints differ in a bit."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [where]
        return [name for key in a for name in same(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [where]
        return [name for i, (x, y) in enumerate(zip(a, b, strict=True)) for name in same(x, y, f"{where}[{i}]")]
    return [] if a == b else [where]


def state(run: Path) -> dict[str, Any]:
    """What has to be equal: everything in the checkpoint but what tells the time and the place."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for key in ("wall_s", "config", "facts", "versions"):
        content["mmssl"].pop(key)
    return content


def trial(recipe: str, number: int, folder: Path, dice: random.Random, whole: Path) -> dict[str, Any]:
    """One run, killed and resumed to its end, against the one that was not."""
    begun, words = time.perf_counter(), [recipe, *SHARED, *RECIPES[recipe], f"run.root={folder}/runs"]
    steps = int(RECIPES[recipe][0].partition("=")[2])
    ranks = ranks_of(recipe, number)
    words.append(f"trainer.devices={ranks}")
    kills = [strike(start(["pretrain", *words], folder / "log"), folder, number % 2 == 0, steps, dice)]
    run = only(folder)
    if run is not None and dice.random() < 0.3:
        kills.append(strike(start(["resume", str(run)], folder / "log"), folder, False, steps, dice))
    while run is None or json.loads((run / "summary.json").read_text())["status"] != "completed":
        again = ["pretrain", *words] if run is None else ["resume", str(run)]
        done = start(again, folder / "log")
        assert done.wait(timeout=600) == 0, (folder / "log").read_text()[-3000:]
        run = only(folder)
    different = same(state(whole), state(run))
    if (whole / "metrics.csv").read_bytes() != (run / "metrics.csv").read_bytes():
        different.append("metrics.csv")
    return {
        "recipe": recipe, "ranks": ranks, "kills": kills, "equal": not different,
        "different": different[:20], "wall_s": round(time.perf_counter() - begun, 1),
    }  # fmt: skip


def main() -> None:
    """Runs the trials that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    done = json.loads(given.out.read_text())["trials"] if given.out.exists() else []
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        wholes: dict[str, Path] = {}
        number = len(done)
        while sum(len(one["kills"]) for one in done) < given.kills:
            recipe = list(RECIPES)[number % len(RECIPES)]
            ranks = ranks_of(recipe, number)
            if (key := f"{recipe} {ranks}") not in wholes:
                folder = Path(name, f"whole-{len(wholes)}")
                folder.mkdir()
                more = [f"trainer.devices={ranks}", f"run.root={folder}/runs"]
                words = ["pretrain", recipe, *SHARED, *RECIPES[recipe], *more]
                assert start(words, folder / "log").wait() == 0, (folder / "log").read_text()[-3000:]
                wholes[key] = only(folder)  # pyright: ignore[reportArgumentType]
            folder = Path(name, f"trial-{number}")
            folder.mkdir()
            done.append(trial(recipe, number, folder, random.Random(given.seed * 1000 + number), wholes[key]))
            print(json.dumps(done[-1]), flush=True)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(
                json.dumps(
                    {"command": "python -m benchmarks.kills", "torch": torch.__version__, "trials": done}, indent=1
                )
                + "\n"
            )
            number += 1
    sys.exit(not all(one["equal"] for one in done))


if __name__ == "__main__":
    main()
