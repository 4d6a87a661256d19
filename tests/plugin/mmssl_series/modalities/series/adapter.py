"""What generic data code knows of time series."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.registry import register


@register("modality/series")
class Series:
    """The modality of time series. A decoded sample is a float32 tensor (c, t)."""

    name = "series"
    extensions = (".npy",)

    def decode(self, blob: bytes, channels: int | None = None) -> Tensor:
        """A `.npy` array (t,) or (c, t) as float32; ValueError for anything else."""
        values = np.load(io.BytesIO(blob), allow_pickle=False)
        if values.ndim not in (1, 2) or not np.isfinite(values).all():
            raise ValueError(f"a series is a finite array (t,) or (c, t) (got {values.shape})")
        return torch.from_numpy(np.atleast_2d(values).astype(np.float32))

    def convert(self, sample: Tensor, channels: int) -> Tensor:
        """Nothing to convert: there is no rule from one set of sensors to another."""
        if len(sample) != channels:
            raise ValueError(f"data.channels={channels}, but a series has {len(sample)}")
        return sample

    def collate(self, samples: Sequence[Tensor]) -> Tensor:
        """A batch (b, c, t) of series of one length."""
        return torch.stack(list(samples))

    def facts(self, samples: Iterable[Tensor]) -> dict[str, Any]:
        """`channels`, and their `mean` and `std`."""
        values = torch.cat([sample.double() for sample in samples], 1)
        std, mean = torch.std_mean(values, 1, correction=0)
        return {"channels": len(values), "mean": mean.tolist(), "std": std.tolist()}

    def baseline(self, sample: Tensor) -> Tensor:
        """The series resampled to 64 steps, (c * 64,)."""
        return torch.nn.functional.interpolate(sample[None], 64, mode="linear", align_corners=False).flatten()

    def picture(self, sample: Tensor) -> np.ndarray:
        """The first channel as a black line, (64, t, 3)."""
        values = sample[0]
        low, high = values.min(), values.max()
        row = ((high - values) / (high - low).clamp(min=1e-9) * 63).round().long()
        shown = np.full((64, len(values), 3), 255, dtype=np.uint8)
        shown[row.numpy(), np.arange(len(values))] = 0
        return shown
