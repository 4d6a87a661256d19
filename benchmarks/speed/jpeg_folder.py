"""A folder of JPEG files to MAE's views: decoding, one crop, a flip."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

GOAL = 1.5
WHAT = "JPEG folder (500x375) to MAE's views, loader alone, two workers"
SAME = "crops of 20 to 100 % to 224 pixels (bicubic), flips, normalised floats at the end; by hand: PIL and torchvision"
BATCH, COUNT = 64, 512


def measure(pairs: int) -> dict[str, Any]:
    """Ours without and with the cache of decoded images, against one sample after the other."""
    from PIL import Image
    from torchvision import transforms as T

    from benchmarks.speed import loaders

    views = T.Compose([
        T.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=T.InterpolationMode.BICUBIC),
        T.RandomHorizontalFlip(), T.ToTensor(),
        T.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ])  # fmt: skip

    def read(path: Path) -> Any:
        with path.open("rb") as file:
            return views(Image.open(file).convert("RGB"))

    with tempfile.TemporaryDirectory() as name:
        paths = loaders.photographs(Path(name) / "images", COUNT)
        said = ["data=folder", f"data.root={name}/images", "data.size=224", f"data.batch_size={BATCH}"]
        found = loaders.in_turn(
            pairs,
            reference=loaders.epochs(loaders.plain(paths, read, BATCH), BATCH),
            ours=loaders.epochs(loaders.ours("image/mae", said, False), BATCH, loaders.normalised),
            cached=loaders.epochs(loaders.ours("image/mae", said, True), BATCH, loaders.normalised),
        )
    return loaders.reported(found, {"ours": (WHAT, GOAL), "cached": ("... with the cache of decoded images", 5.0)})
