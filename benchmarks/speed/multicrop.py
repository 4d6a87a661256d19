"""A folder of JPEG files to DINO's ten crops, and to SimCLR's two views."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

GOAL = 2.0
WHAT = "DINO's multi-crop (2 of 224, 8 of 96), loader alone, two workers"
SAME = (
    "crops, flips, jitter, grey, blur and solarisation of the papers; by hand: PIL and torchvision, a sample at a time"
)
BATCH, COUNT = 32, 128


class Blur:
    """Gaussian blur as DINO's script has it, by PIL."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Any) -> Any:
        import random

        from PIL import ImageFilter

        if random.random() > self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def dino() -> list[Any]:
    """DINO's ten augmentations (Caron et al. 2021, arXiv:2104.14294, and its released script)."""
    from torchvision import transforms as T

    colour = [
        T.RandomHorizontalFlip(), T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8), T.RandomGrayscale(p=0.2),
    ]  # fmt: skip
    end = [T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]

    def crop(size: int, low: float, high: float) -> Any:
        return T.RandomResizedCrop(size, scale=(low, high), interpolation=T.InterpolationMode.BICUBIC)

    first = T.Compose([crop(224, 0.4, 1.0), *colour, Blur(1.0), *end])
    second = T.Compose([crop(224, 0.4, 1.0), *colour, Blur(0.1), T.RandomSolarize(128, p=0.2), *end])
    small = T.Compose([crop(96, 0.05, 0.4), *colour, Blur(0.5), *end])
    return [first, second, *[small] * 8]


def simclr() -> list[Any]:
    """SimCLR's two augmentations (Chen et al. 2020, arXiv:2002.05709)."""
    from torchvision import transforms as T

    one = T.Compose([
        T.RandomResizedCrop(224, scale=(0.08, 1.0), interpolation=T.InterpolationMode.BICUBIC),
        T.RandomHorizontalFlip(), T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8), T.RandomGrayscale(p=0.2),
        Blur(0.5), T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    return [one, one]


def measure(pairs: int) -> dict[str, Any]:
    """Both, one after the other."""
    from PIL import Image

    from benchmarks.speed import loaders

    found: dict[str, Any] = {"rows": []}
    for recipe, what, views in (("image/dino", WHAT, dino()), ("image/simclr", "SimCLR's two views", simclr())):

        def read(path: Path, views: list[Any] = views) -> list[Any]:
            with path.open("rb") as file:
                image = Image.open(file).convert("RGB")
            return [view(image) for view in views]

        with tempfile.TemporaryDirectory() as name:
            paths = loaders.photographs(Path(name) / "images", COUNT)
            said = [
                "data=folder", f"data.root={name}/images", "data.size=224", "data.small=96", f"data.batch_size={BATCH}",
            ]  # fmt: skip
            speeds = loaders.in_turn(
                pairs,
                reference=loaders.epochs(loaders.plain(paths, read, BATCH), BATCH),
                ours=loaders.epochs(loaders.ours(recipe, said, False), BATCH, loaders.normalised),
            )
        one = loaders.reported(speeds, {"ours": (what, GOAL)})
        found["rows"] += one.pop("rows")
        found[recipe] = one
    return found
