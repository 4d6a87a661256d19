"""Audio, video and point clouds: kNN and linear probes of small encoders beside random weights and the raw input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import mmssl

_AUDIO = [
    "data.batch_size=32", "encoder.dim=128", "encoder.depth=3", "encoder.heads=4", "objective.patches.predictor.dim=64",
    "objective.patches.predictor.depth=2", "objective.patches.predictor.heads=4", "optim.base_lr=null", "optim.lr=1e-3",
]  # fmt: skip
_POINTS = [
    "data.size=512", "data.batch_size=32", "tokenizer.groups=32", "tokenizer.size=16", "tokenizer.hidden=32",
    "encoder.dim=96", "encoder.depth=4", "encoder.heads=4", "objective.points.predictor.depth=2",
    "objective.points.predictor.heads=4", "objective.points.predictor.head_std=0.005", "optim.lr=2e-3",
]  # fmt: skip
# The sizes are those that data=sample has for the modality, which were chosen on parts of its training set; only the
# lengths differ. (recipe, folder of the set, overrides)
SETTINGS: dict[str, tuple[str, str, list[str]]] = {
    "audio-audio_mae/fsdd": (
        "audio/audio_mae", "audio/fsdd", [*_AUDIO, "data.source.held_out=theo", "trainer.max_epochs=40"]
    ),
    "audio-audio_mae/arabic_speech_commands": (
        "audio/audio_mae", "audio/arabic_speech_commands_10",
        [*_AUDIO, "tokenizer.patch=[4,16]", "tokenizer.padding=masked", "trainer.max_epochs=120"],
    ),
    "pointcloud-point_mae/shrec11": (
        "pointcloud/point_mae", "pointcloud/shrec11", [*_POINTS, "trainer.max_epochs=100"]
    ),
    "pointcloud-point_mae/coseg": ("pointcloud/point_mae", "pointcloud/coseg", [*_POINTS, "trainer.max_epochs=60"]),
    "video-videomae/surv_fight": ("video/videomae", "video/surv_fight", []),
}  # fmt: skip


def jobs() -> dict[str, Callable[[Path, Path], dict]]:
    """Three seeds of every set."""
    return {f"{name}/seed{seed}": partial(_run, name, seed) for name in SETTINGS for seed in range(3)}


def _run(name: str, seed: int, data: Path, runs: Path) -> dict:
    recipe, folder, said = SETTINGS[name]
    overrides = [f"data={name.split('/')[1]}", f"data.root={data.resolve() / folder}", *said, f"seed={seed}"]
    run = mmssl.pretrain(recipe, [*overrides, f"run.root={runs}"])
    summary = run.summary
    shown = [one.replace(str(data.resolve()), "DATA") for one in overrides]
    return {
        "recipe": recipe,
        "set": name.split("/")[1],
        "seed": seed,
        "metric": "linear",
        "value": summary["eval"]["linear"]["value"],
        "eval": summary["eval"],
        "status": summary["status"],
        "steps": summary["steps"],
        "train": summary["train"],
        "health": summary["health"],
        "wall_s": summary["wall_s"],
        "command": " ".join(["mmssl", "pretrain", recipe, *shown]),
    }
