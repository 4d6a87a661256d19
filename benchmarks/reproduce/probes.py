"""Audio, video and point clouds: kNN and linear probes of small encoders beside random weights and the raw input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import mmssl

# Sizes and lengths fit an hour on one core. They were chosen on validation data: see each recipe's `val` split.
SETTINGS: dict[str, tuple[str, str, list[str]]] = {
    "audio-audio_mae/arabic_speech_commands": ("audio/audio_mae", "audio/arabic_speech_commands_10", []),
    "audio-audio_mae/fsdd": ("audio/audio_mae", "audio/fsdd", []),
    "video-videomae/surv_fight": ("video/videomae", "video/surv_fight", []),
    "pointcloud-point_mae/shrec11": ("pointcloud/point_mae", "pointcloud/shrec11", []),
    "pointcloud-point_mae/coseg": ("pointcloud/point_mae", "pointcloud/coseg", []),
}


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
