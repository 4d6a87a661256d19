"""Every recipe on the set of its modality, as small as the sample makes it: does its loss fall, and do features gain?

A job is at most three minutes of one core, training and scoring together, one seed. It says that a recipe trains as it
stands; how good a method is takes more (docs/results/README.md, `grid` and `siblings`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.reproduce.grid import CELLS, PLAIN, SETS, small_run
from mmssl.config.files import describe, recipes

# what all recipes of a modality are given on top of the set's own
BUDGET: dict[str, list[str]] = {
    "image": ["trainer.max_epochs=null", "trainer.max_steps=500"],
    "video": ["trainer.max_steps=null", "trainer.max_epochs=12"],
    "audio": ["trainer.max_steps=null", "trainer.max_epochs=6"],
    "pointcloud": [],
    "graph": ["trainer.max_epochs=300"],
    "tabular": ["data.batch_size=128", "encoder.depth=2", "trainer.max_epochs=12"],
}
# the set that recipes of several streams are decoded from
STREAMS = {"multimodal/croma": "image", "multimodal/hicmae": "video", "multimodal/multimae": "image"}
# overrides of one recipe; those of the grid's cells hold where nothing stands here
OWN: dict[str, list[str]] = {
    name: PLAIN for name in ("image/byol", "image/simsiam", "image/barlow", "image/vicreg", "image/mocov3")
}


def modality(recipe: str) -> str:
    """Whose set a recipe is trained on."""
    return STREAMS.get(recipe, describe(recipe)["modality"])


def jobs() -> dict[str, Callable[[Path, Path], dict]]:
    """One of every recipe, by `recipe-<modality>-<name>/<set>/seed0`."""
    return {
        f"recipe-{name.replace('/', '-')}/{SETS[modality(name)][0]}/seed0": partial(_run, name) for name in recipes()
    }


def _run(recipe: str, data: Path, runs: Path) -> dict:
    kind = modality(recipe)
    cells = {name: own for name, own in CELLS[kind].values()}
    own = OWN.get(recipe, cells.get(recipe, []))
    only = "evaluation.protocols.knn=null"
    return small_run(recipe, kind, [only, *BUDGET[kind], *own], 0, data, runs)


def table(results: Path) -> str:
    """Loss at the first row and the last, the linear probe beside random weights, verdict and time, in Markdown."""
    lines = ["| recipe | set | loss | linear | random weights | above | verdict | CPU s |", "|---" * 8 + "|"]
    for name in recipes():
        for file in sorted((results / f"recipe-{name.replace('/', '-')}").glob("*/seed0.json")):
            one = json.loads(file.read_text())
            score, loss = one["eval"]["linear"], one["train"]
            low, high = score["ci95"]
            above = "yes" if low > score["random_init_ci95"][1] else "no" if high < score["random_init"] else "~"
            lines.append(
                f"| `{name}` | {one['set']} | {loss['first_loss']:.3g} to {loss['loss']:.3g} | {score['value']:.3f} "
                f"[{low:.3f}, {high:.3f}] | {score['random_init']:.3f} | {above} | {one['health']['verdict']} "
                f"| {one['cpu_s']:.0f} |"
            )
    return "\n".join(lines)
