"""Six modalities times four families: small encoders on real sets, each cell beside random weights and the raw input.

All cells of a modality share set, sizes and length, which are those of `data=sample` but for what stands here.
Nothing was chosen on a test split.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mmssl

FAMILIES = ("mae", "jepa", "contrastive", "distillation")
# modality: (set, its folder, overrides of all cells)
SETS: dict[str, tuple[str, str, list[str]]] = {
    "image": (
        "cifar10", "image/cifar10",
        ["tokenizer.patch=8", "data.batch_size=128", "trainer.max_epochs=10", "evaluation.limit=10000"],
    ),
    "video": ("surv_fight", "video/surv_fight", ["data.source.cache_side=80", "trainer.max_epochs=40"]),
    "audio": ("fsdd", "audio/fsdd", ["data.source.held_out=theo", "trainer.max_epochs=15"]),
    "pointcloud": ("coseg", "pointcloud/coseg", ["trainer.max_epochs=30"]),
    "graph": ("cora", "graph/planetoid/Cora", ["trainer.max_epochs=1000"]),
    "tabular": ("covertype", "tabular/covertype_20k", ["data.batch_size=128", "trainer.max_epochs=8"]),
}  # fmt: skip
# modality: {family: (recipe, overrides of this cell)}
CELLS: dict[str, dict[str, tuple[str, list[str]]]] = {
    "image": {
        "mae": ("image/mae", []),
        "jepa": ("image/ijepa", []),
        "contrastive": ("image/simclr", []),
        "distillation": ("image/dino", []),
    },
    "video": {
        "mae": ("video/videomae", []),
        "jepa": ("video/vjepa", []),
        "contrastive": ("video/simclr", []),
        "distillation": ("video/dbot", []),
    },
    "audio": {
        "mae": ("audio/audio_mae", []),
        "jepa": ("audio/a_jepa", []),
        "contrastive": ("audio/simclr", []),
        "distillation": ("audio/mask_distill", []),
    },
    "pointcloud": {
        "mae": ("pointcloud/point_mae", []),
        "jepa": ("pointcloud/point_jepa", []),
        "contrastive": ("pointcloud/simclr", []),
        "distillation": ("pointcloud/dbot", []),
    },
    "graph": {
        "mae": ("graph/graphmae", []),
        "jepa": ("graph/graph_jepa", []),
        "contrastive": ("graph/grace", ["trainer.max_epochs=200"]),
        "distillation": ("graph/bgrl", []),
    },
    "tabular": {
        "mae": ("tabular/remasker", []),
        "jepa": ("tabular/t_jepa", []),
        "contrastive": ("tabular/scarf", []),
        "distillation": ("tabular/dbot", []),
    },
}
SEEDS = range(3)


def jobs() -> dict[str, Callable[[Path, Path], dict]]:
    """Three seeds of every cell, by `grid-<modality>-<family>/<set>/seed<n>`, seed by seed."""
    return {
        f"grid-{modality}-{family}/{SETS[modality][0]}/seed{seed}": partial(_run, modality, family, seed)
        for seed in SEEDS
        for modality, cells in CELLS.items()
        for family in cells
    }


def _run(modality: str, family: str, seed: int, data: Path, runs: Path) -> dict:
    name, folder, shared = SETS[modality]
    recipe, own = CELLS[modality][family]
    # the sample's preset makes every recipe small
    said = [f"data={name}", f"data.root={data.resolve() / folder}", "data.preset=${sample_preset}", *shared, *own]
    run = mmssl.pretrain(recipe, [*said, f"seed={seed}", f"run.root={runs}"])
    summary = run.summary
    shown = [one.replace(str(data.resolve()), "DATA") for one in [*said, f"seed={seed}"]]
    return {
        "recipe": recipe,
        "set": name,
        "seed": seed,
        "metric": "linear",
        "value": summary["eval"]["linear"]["value"],
        **{key: summary[key] for key in ("eval", "status", "steps", "train", "health", "throughput", "wall_s")},
        "command": " ".join(["mmssl", "pretrain", recipe, *(f"'{one}'" if "$" in one else one for one in shown)]),
    }


def _mark(cell: list[dict]) -> str:
    """Linear probe: mean over seeds, and how it stands to random weights and the raw input in every seed."""
    found = [one["eval"]["linear"] for one in cell]
    signs = "".join(
        ">" if all(one["ci95"][0] > one[f"{base}_ci95"][1] for one in found)
        else "<" if all(one["ci95"][1] < one[f"{base}_ci95"][0] for one in found) else "~"
        for base in ("random_init", "raw_input")
    )  # fmt: skip
    word = sorted({one["health"]["verdict"] for one in cell})
    return f"{statistics.mean(one['value'] for one in found):.3f} {signs} {'/'.join(word)} ({len(cell)})"


def table(results: Path) -> str:
    """The grid in Markdown: mean of the linear probe, marks against random weights and raw input, verdicts, seeds."""
    lines = [
        "| modality, set | random | raw | " + " | ".join(FAMILIES) + " |",
        "|---" * (3 + len(FAMILIES)) + "|",
    ]
    for modality, (name, _, _) in SETS.items():
        cells = {}
        for family in FAMILIES:
            files = sorted((results / f"grid-{modality}-{family}" / name).glob("seed*.json"))
            cells[family] = [json.loads(file.read_text()) for file in files]
        every = [one["eval"]["linear"] for cell in cells.values() for one in cell]
        base = [
            f"{statistics.mean(one[key] for one in every):.3f}" if every else "" for key in ("random_init", "raw_input")
        ]
        row = [f"{modality}, {name}", *base, *(_mark(cells[family]) if cells[family] else "" for family in FAMILIES)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)
