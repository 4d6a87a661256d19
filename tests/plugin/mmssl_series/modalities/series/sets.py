"""The set behind `data=sample`."""

from __future__ import annotations

import math

import numpy as np
import torch

from mmssl.data.source import Adapter, Arrays, Dataset
from mmssl.draws import Draws
from mmssl.registry import register

_LENGTH = 256


class Waves(Arrays):
    """Series that lie in one array of floats."""


@register("source/series_sample")
class SeriesSample:
    """Generated: 600 training and 200 test series of a sine, square or saw-tooth wave of random frequency and phase."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def splits(self) -> dict[str, Dataset]:
        """Train and test."""
        return {"train": _made("train", 600), "test": _made("test", 200)}


def _made(split: str, count: int) -> Waves:
    which = torch.arange(count)
    draws = Draws.of(2024, 0, which).named(f"series/{split}")
    frequency = draws.named("frequency").uniform(1, low=3.0, high=9.0)
    phase = draws.named("phase").uniform(1)
    turn = (torch.arange(_LENGTH) / _LENGTH * frequency + phase) % 1
    sine = torch.sin(2 * math.pi * turn)
    waves = torch.stack([sine, sine.sign(), 2 * turn - 1], 1)  # (count, 3, t)
    label = which % 3
    clean = waves[which, label] + 0.5 * draws.named("noise").normal(_LENGTH)
    return Waves(np.ascontiguousarray(clean[:, None].numpy()), label, ["sine", "square", "saw"], f"sample/{split}")
