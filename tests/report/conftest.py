"""Run directories as a training would leave them, small and without torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmssl.report import embedding, pictures

CONFIG = """\
recipe: image/mae
seed: {seed}
data:
  name: cifar10
  root: data/cifar10
  batch_size: 512
  views:
  - name: resized_crop
    scale: [0.2, 1.0]
  - name: flip
encoder:
  name: vit
  dim: 192
  depth: 12
  heads: 3
masker:
  name: random
  ratio: {ratio}
optim:
  name: adamw
  lr: 0.0006
  betas: [0.9, 0.95]
trainer:
  max_steps: 1200
  precision: bf16-mixed
"""


def summary(recipe: str = "image/mae") -> dict:
    base = {
        "knn": {
            "metric": "top1", "value": 0.7112, "ci95": [0.7021, 0.7203], "random_init": 0.3471,
            "random_init_ci95": [0.3381, 0.3562], "raw_input": 0.3398, "raw_input_ci95": [0.3304, 0.3489],
        },
        "linear": {
            "metric": "top1", "value": 0.7683, "ci95": [0.7601, 0.7762], "random_init": 0.4312,
            "random_init_ci95": [0.4215, 0.4406], "raw_input": 0.4019, "raw_input_ci95": [0.3921, 0.4117],
        },
        "cifar10_c/knn": {
            "metric": "top1", "value": 0.352, "ci95": [0.341, 0.363], "random_init": 0.3391,
            "random_init_ci95": [0.3281, 0.3502], "raw_input": None,
            "why": {"raw_input": "corruption is applied after decoding"},
        },
        "angle/ridge": {
            "metric": "rmse", "value": 0.211, "ci95": [0.204, 0.219], "random_init": 0.342,
            "random_init_ci95": [0.331, 0.353], "raw_input": 0.298, "raw_input_ci95": [0.290, 0.307],
        },
    }  # fmt: skip
    return {
        "recipe": recipe, "status": "completed", "steps": 1200, "wall_s": 311.0, "started": "2026-11-20 14:02 UTC",
        "train": {"loss": 0.412, "first_loss": 1.031},
        "throughput": {"samples_per_s": 910.0, "step_ms": 140.2, "data_wait": 0.021, "mfu": None, "peak_mem_mb": 812},
        "eval": base,
        "health": {"verdict": "healthy", "rankme": 88.13, "feature_std": 0.413},
        "skipped": {"count": 2, "files": ["data/cifar10/train/cat/0031.png", "data/cifar10/train/x.png"]},
    }  # fmt: skip


def metrics(file: Path, rng: np.random.Generator, steps: int = 1200, every: int = 2, lag: float = 1.0) -> None:
    names = ["step", "epoch", "train/loss", "train/pixels", "train/spread", "lr", "val/knn", "val/linear", "val/rankme"]
    names += ["val/feature_std", "val/uniformity", "grad/encoder", "grad/predictor"]
    with file.open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(names)
        for step in range(0, steps + 1, every):
            t = step / steps
            pixels = 0.32 + 0.55 * np.exp(-6 * t / lag) + rng.normal() * 0.012
            spread = 0.09 + 0.2 * np.exp(-3 * t / lag) + rng.normal() * 0.006
            rate = 6e-4 * min(t / 0.1, 0.5 * (1 + np.cos(np.pi * max(0.0, (t - 0.1) / 0.9))))
            row = [step, step // 98, pixels + 0.5 * spread, pixels, spread, rate]
            if step % 100 == 0:
                grow = 1 - np.exp(-3 * t / lag)
                row += [0.34 + 0.37 * grow, 0.42 + 0.35 * grow, 21 + 68 * grow, 0.2 + 0.22 * grow, -1.2 - 1.4 * grow]
            else:
                row += [""] * 5
            out.writerow([*row, 2.1 * np.exp(-2 * t) + abs(rng.normal()) * 0.2, 0.9 * np.exp(-1.5 * t) + 0.1])


def timing(file: Path, rng: np.random.Generator) -> None:
    with file.open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(["step", "step_ms", "data_ms", "samples_per_s"])
        for step in range(0, 1201, 10):
            ms = 140 + rng.normal() * 4 + (220 if step == 0 else 0)
            out.writerow([step, ms, 3 + abs(rng.normal()) * 2, 128e3 / ms])


def draw(folder: Path, rng: np.random.Generator) -> None:
    """Pictures of generated shapes: a disc, a square or a bar on a gradient."""
    y, x = np.mgrid[0:32, 0:32] / 31

    def image(kind: int) -> np.ndarray:
        cx, cy, size = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.12, 0.25)
        inside = (
            np.hypot(x - cx, y - cy) < size,
            np.maximum(abs(x - cx), abs(y - cy)) < size,
            abs(x - cx + y - cy) < size / 2,
        )
        back = np.stack([0.3 + 0.4 * x, 0.4 + 0.3 * y, 0.8 - 0.3 * x], -1)
        return np.where(inside[kind][..., None], rng.uniform(0.1, 1, 3), back).clip(0, 1)

    classes = ["disc", "square", "bar"]
    images = [image(i % 3) for i in range(24)]
    hidden = [np.kron(rng.random((8, 8)) < 0.75, np.ones((4, 4)))[..., None] for _ in range(6)]
    masked = [np.where(h, 0.5, im) for h, im in zip(hidden, images, strict=False)]
    blurred = [np.where(h, (im + im.mean((0, 1))) / 2, im) for h, im in zip(hidden, images, strict=False)]
    pictures.save(folder, "views", pictures.grid(images[:16], 8), title="Views", caption="Sixteen augmented views.")
    pictures.save(folder, "reconstructions", pictures.reconstruction_sheet(images[:4], masked[:4], blurred[:4]),
                  title="Reconstructions", caption="75 % of the patches were hidden (grey).")  # fmt: skip
    kinds = [[i % 3, i % 3, (i + (i > 1)) % 3, i % 3, i % 3] for i in range(4)]
    pictures.save(folder, "neighbours",
                  pictures.neighbour_sheet([image(k[0]) for k in kinds], [[image(c) for c in k[1:]] for k in kinds],
                                           [[classes[c] for c in k] for k in kinds]),
                  title="Nearest neighbours", caption="By cosine similarity, in the validation split.")  # fmt: skip
    labels = rng.integers(0, 10, 900)
    features = rng.normal(size=(10, 32))[labels] * 1.6 + rng.normal(size=(900, 32))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    pictures.save(folder, "embedding", embedding.embedding_map(embedding.project(features), labels.tolist(), names),
                  title="Embedding map", caption="First two principal components of the features.")  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a complete run directory; `change` edits its summary, `lag` slows its curves."""

    def make(name: str = "20261120-140200-a1b2c3", change: dict | None = None, seed: int = 0, **how: float) -> Path:
        rng = np.random.default_rng(seed)
        folder = tmp_path / "runs" / "image" / "mae" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(CONFIG.format(seed=seed, ratio=how.get("ratio", 0.75)))
        (folder / "summary.json").write_text(json.dumps(summary() | (change or {})))
        facts = {
            "channels": 3,
            "classes": 10,
            "train": 50000,
            "mean": [0.491, 0.482, 0.447],
            "std": [0.247, 0.243, 0.262],
        }
        data = {"name": "cifar10", "fingerprint": "9f2c" + "0" * 60, "facts": facts}
        (folder / "data.json").write_text(json.dumps(data))
        command = [
            "mmssl",
            "pretrain",
            "image/mae",
            "data=cifar10",
            "trainer.max_steps=1200",
            f"masker.ratio={how.get('ratio', 0.75)}",
        ]
        versions = {"python": "3.11.7", "torch": "2.11.0", "lightning": "2.6.1", "mmssl": "0.1.0"}
        git = {"commit": "4f1c9a7e", "dirty": False}
        (folder / "environment.json").write_text(
            json.dumps({"command": command, "versions": versions, "git": git, "devices": "1 x NVIDIA H100"})
        )
        metrics(folder / "metrics.csv", rng, lag=how.get("lag", 1.0))
        timing(folder / "timing.csv", rng)
        draw(folder / "pictures", rng)
        return folder

    return make
