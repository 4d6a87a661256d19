"""A view that needs other recordings than its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.data.source import Dataset
from mmssl.draws import Draws
from mmssl.modalities.audio.waves import Wave, as_float, resample
from mmssl.registry import register


@register("view/mix_recording")
class MixRecording:
    """Adds other recordings of the train split, each softer by a random number of decibels, with probability `p`.

    The other one begins at a random place and starts again where it ends. Sounds in the background are what contrast
    then has to look past (after BYOL-A, Niizumi et al. 2021, which mixes logarithmic spectrograms).

    Args:
        decibels: lowest and highest ratio of the recording's power to the other's, drawn uniformly.
        p: probability that anything is added.
        most: from 1 to so many recordings are added (Bird-MAE: 3).

    Raises:
        ValueError: for decibels that do not ascend, another p, or no recording.
    """

    def __init__(self, *, decibels: Sequence[float] = (5.0, 20.0), p: float = 0.5, most: int = 1) -> None:
        low, high = decibels
        if most < 1:
            raise ValueError(f"view/mix_recording: most has to be at least 1 (got {most})")
        if low > high or not 0.0 <= p <= 1.0:
            raise ValueError(
                "view/mix_recording: decibels has to be two ascending numbers and p between 0 and 1 (got "
                f"{list(decibels)}, {p:g})"
            )
        self.decibels, self.p, self.most = (float(low), float(high)), p, most
        self.dataset: Dataset | None = None

    def fit(self, dataset: Dataset) -> None:
        """Remembers where other recordings come from."""
        self.dataset = dataset

    def __call__(self, sample: Wave, draws: Draws) -> Wave:
        """Returns the recording in float32, perhaps mixed; unmixed where the other cannot be read."""
        draws = draws.named("mix_recording")
        if self.dataset is None or float(draws.named("happens").uniform(1)) >= self.p:
            return sample
        data, count = as_float(sample.data), int(draws.named("count").integers(1, self.most + 1, 1))
        others = [self._other(data, sample.rate, draws if k == 0 else draws.named(f"{k}")) for k in range(count)]
        found = [other for other in others if other is not None]
        return sample._replace(data=data + torch.stack(found).sum(0)) if found else sample

    def _other(self, data: Tensor, rate: int, draws: Draws) -> Tensor | None:
        """What is added of one other recording; None where it cannot be read."""
        assert self.dataset is not None
        place = int(draws.named("other").integers(0, len(self.dataset), 1))
        try:
            other = resample(self.dataset.read(place), rate)
        except (ValueError, OSError):  # it is counted when its own turn comes
            return None
        added = self._fitted(as_float(other.data), data, float(draws.named("start").uniform(1)))
        ratio = float(draws.named("decibels").uniform(1, low=self.decibels[0], high=self.decibels[1]))
        level = data.square().mean().sqrt() / added.square().mean().sqrt().clamp(min=1e-8)
        return level * 10 ** (-ratio / 20) * added

    @staticmethod
    def _fitted(other: Tensor, data: Tensor, start: float) -> Tensor:
        """The other recording in as many channels and samples, from a random place on, round and round."""
        if other.shape[0] != data.shape[0]:
            other = other.mean(0, keepdim=True).expand(data.shape[0], -1)
        first = int(start * other.shape[1])
        return other[:, (first + torch.arange(data.shape[1])) % other.shape[1]]
