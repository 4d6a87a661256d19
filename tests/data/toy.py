"""A modality made for tests: a file of digits is a vector. Nothing in mmssl.data may need more than this."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmssl.data.folder import Folder
from mmssl.data.module import Data


class Digits:
    name = "digits"
    extensions = (".txt", ".dig")

    def decode(self, blob, channels=None):
        if not blob.strip().isdigit():
            raise ValueError("not digits")
        return torch.tensor([int(c) for c in blob.decode().strip()], dtype=torch.uint8)

    def convert(self, sample, channels):
        return sample[:1].expand(channels).contiguous()

    def collate(self, samples):
        return torch.stack(list(samples))

    def facts(self, samples):
        values = torch.stack([sample.float() for sample in samples])
        return {"width": values.shape[1], "mean": float(values.mean()), "counted": len(values)}

    def baseline(self, sample):
        return sample.float()

    def picture(self, sample):
        return np.zeros((1, 1, 3), np.uint8)


def write(folder: Path, files: dict[str, str]) -> Path:
    """Writes files, by relative name."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def classes(folder: Path, per_class: int = 10, names: tuple[str, ...] = ("ant", "bee")) -> Path:
    """A folder with class subfolders; every sample is different."""
    count = per_class * len(names)
    numbers = {f"{names[i % len(names)]}/{i:03}.txt": f"{i + 100}" for i in range(count)}
    return write(folder, numbers)


def jitter(sample, draws):
    """A view that draws: adds a number to every value."""
    return sample + draws.integers(0, 50, 1)[0].to(torch.uint8)


def data(root: Path, **changes) -> Data:
    """Data of a folder of digits, in two views."""
    source = partial(Folder, root=str(root), **changes.pop("folder", {}))
    said = {"views": {"a": [jitter, jitter], "b": [jitter]}, "view": [], "batch_size": 4, "workers": 0} | changes
    return Data(Digits(), said.pop("seed", 0), source=source, **said)
