"""Small configurations, batches and tokens that the tests of the core share."""

from __future__ import annotations

import copy
from typing import Any

import torch

from mmssl.config import build
from mmssl.types import Tokens, View

torch.set_num_threads(1)  # everything is small: threads would only wait for one another

FACTS = {"channels": 3, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
VIT = {"_target_": "encoder/vit", "dim": 32, "depth": 2, "heads": 4}
DECODER = {"_target_": "predictor/transformer", "dim": 32, "depth": 1, "heads": 4}
CROSS = {"_target_": "predictor/cross", "dim": 16, "depth": 2, "heads": 4}
PIXELS = {
    "_target_": "term/predict",
    "predictor": DECODER,
    "loss": {"_target_": "loss/mse"},
    "target": {"_target_": "target/raw", "normalize": True},
}


def tree(**changes: Any) -> dict[str, Any]:
    """A small MAE on 32-pixel images in 16 patches, with some slots changed."""
    base = {
        "modality": "image", "seed": 0, "keep": "student", "views": {"x": []}, "data": {"batch_size": 4},
        "tokenizer": {"_target_": "tokenizer/image", "size": 32, "patch": 8}, "encoder": VIT,
        "masker": {"_target_": "masker/random"}, "corruptor": {"_target_": "corruptor/drop"},
        "optim": {"_target_": "optim/adamw", "lr": 1e-3}, "objective": {"pixels": PIXELS},
    }  # fmt: skip
    return copy.deepcopy(base | changes)


def module(**changes: Any) -> Any:
    """The module of a small MAE, with some slots changed."""
    return build.module(tree(**changes), FACTS)


def images(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Noise images in [0, 1]."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batch(count: int = 4, first: int = 0, names: tuple[str, ...] = ("x",), epoch: int = 0) -> dict[str, Any]:
    """A batch of images whose content depends on their ids only."""
    ids = torch.arange(first, first + count)
    views = {
        name: View(torch.cat([images(1, seed=1000 * k + int(i)) for i in ids]), "image") for k, name in enumerate(names)
    }
    return views | {"id": ids, "epoch": torch.full((count,), epoch)}


def tokens(
    b: int, n: int, width: int = 5, grid: tuple[int, ...] | None = None, valid: Any = None, **more: Any
) -> Tokens:
    """Random dense tokens; coordinates are row and column where there is a grid."""
    generator = torch.Generator().manual_seed(b * 1000 + n)
    index = torch.arange(n).expand(b, n)
    pos = index.unsqueeze(-1).float()
    if grid is not None:
        pos = torch.stack([index // grid[1], index % grid[1]], -1).float()
    raw = torch.randn(b, n, width, generator=generator)
    return Tokens(raw=raw, pos=pos, index=index, grid=grid, valid=valid, **more)


def gradients(part: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """A copy of every parameter's gradient."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in part.named_parameters()}


def photos_in(folder):
    """Forty small pictures in a folder."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for i in range(40):
        pixels = torch.randint(0, 256, (20, 20, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:02d}.png")
    return folder
