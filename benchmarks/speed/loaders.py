"""Loaders alone, ours and one written by hand as released code has it, taking turns; what loader works share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import compose
from mmssl.modalities.image.tokenizer import ImageTokenizer

WORKERS = 2
TOKENIZER = ImageTokenizer({"channels": 3, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]})


class Files(Dataset[Any]):
    """A data set by hand: a function of a path."""

    def __init__(self, paths: list[Path], read: Callable[[Path], Any]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.read(self.paths[index])


def plain(paths: list[Path], read: Callable[[Path], Any], batch: int) -> DataLoader[Any]:
    """The loader that scripts have: shuffled, workers that stay."""
    return DataLoader(
        Files(paths, read), batch, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=True
    )


def tokenizer(recipe: str, overrides: list[str]) -> Any:
    """The tokenizer of a recipe: what is made of whole batches, on the device of the model."""
    tree = compose(recipe, overrides)
    check(tree)
    return build.network(tree, build.data(tree).facts()).tokenizer


def ours(recipe: str, overrides: list[str], cached: bool, workers: int = WORKERS) -> Any:
    """The training loader of a recipe; the cache is filled before anything is timed."""
    tree = compose(recipe, [*overrides, f"data.workers={workers}", *([] if cached else ["data.memory_mb=0"])])
    check(tree)
    data = build.data(tree)
    assert data.dataset("train").in_memory == cached
    data.set_share(rank=0, world=1, accumulate=1)
    return data.train_dataloader()


def epochs(loader: Any, batch: int, behind: Callable[[Any], Any] | None = None) -> Iterator[float]:
    """Samples per second of one epoch after the other, from its first batch to its last.

    Args:
        loader: batches of equal size.
        batch: that size.
        behind: what a step would do with a batch before it is the input of a network, counted with it.
    """
    while True:
        mark, count = 0.0, 0
        for i, one in enumerate(loader):
            if behind is not None:
                behind(one)
            if i == 0:
                mark = time.perf_counter()
            else:
                count += batch
        yield count / (time.perf_counter() - mark)


def in_turn(pairs: int, **loaders: Iterator[float]) -> dict[str, Any]:
    """Samples per second of each loader, medians over alternating epochs, the first of each left out."""
    found: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(pairs + 1):
        for name, loader in loaders.items():
            speed = next(loader)
            if turn:
                found[name].append(round(speed, 1))
    return {"samples_per_s": {name: statistics.median(each) for name, each in found.items()}, "each": found}


def reported(found: dict[str, Any], lines: dict[str, tuple[str, float]]) -> dict[str, Any]:
    """A result with its rows of the table: how many times faster than `reference` a loader is, and has to be.

    Args:
        found: of `in_turn`.
        lines: by the loader's name what the row says, and the goal.
    """
    speed = found["samples_per_s"]
    times = {name: round(speed[name] / speed["reference"], 3) for name in lines}
    said = {name: f"{times[name]:.2f} ({speed[name]:.0f} / {speed['reference']:.0f} in a second)" for name in lines}
    rows = [
        (what, f"at least {goal:g} times", "", said[name], times[name] >= goal) for name, (what, goal) in lines.items()
    ]
    return found | {"times": times, "rows": rows, "workers": WORKERS}


def photographs(folder: Path, count: int, size: tuple[int, int] = (375, 500)) -> list[Path]:
    """JPEG files cut at random from scikit-learn's two photographs, in a folder without classes."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    images, numbers = load_sample_images()["images"], np.random.default_rng(0)
    folder.mkdir(parents=True)
    paths = []
    for i in range(count):
        image = images[i % len(images)]
        top = int(numbers.integers(image.shape[0] - size[0] + 1))
        left = int(numbers.integers(image.shape[1] - size[1] + 1))
        part = image[top : top + size[0], left : left + size[1]]
        paths.append(folder / f"{i:04}.jpg")
        Image.fromarray(part if i % 4 < 2 else part[:, ::-1]).save(paths[-1], quality=90)
    return paths


def normalised(batch: Any) -> None:
    """What our step does on the device with pictures: bytes to normalised floats. Loaders by hand have done it."""
    for one in batch.values():
        if hasattr(one, "data") and isinstance(one.data, torch.Tensor) and one.data.dtype == torch.uint8:
            TOKENIZER.normalized(one.data)
