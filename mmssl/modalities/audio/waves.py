"""Waveforms: one recording, and a batch of recordings of unequal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

# int16 values that make 1.0.
FULL_SCALE = 32768.0


class Erased(NamedTuple):
    """A rectangle of a spectrogram that is set to its mean: seconds from `start` to `stop`, bins from `low` to `high`.

    Bins are given as shares of all bins, 0 the lowest and 1 the highest.
    """

    start: float
    stop: float
    low: float
    high: float


class Wave(NamedTuple):
    """One recording.

    Args:
        data: (c, n) int16, or float32 in [-1, 1].
        rate: samples per second.
        erased: parts of its spectrogram that the tokenizer sets to the mean (SpecAugment).
    """

    data: Tensor
    rate: int
    erased: tuple[Erased, ...] = ()

    @property
    def seconds(self) -> float:
        """Its length in seconds."""
        return self.data.shape[-1] / self.rate


@dataclass(frozen=True)
class Waves:
    """A batch of recordings of one rate, padded with zeros to the longest.

    Args:
        data: (b, c, n) int16 or float32.
        counts: samples of each recording, plain ints, so that nothing waits for the device.
        rate: samples per second.
        erased: parts of each spectrogram that are set to the mean.
    """

    data: Tensor
    counts: tuple[int, ...]
    rate: int
    erased: tuple[tuple[Erased, ...], ...] = ()

    def to(self, *args: Any, **kwargs: Any) -> Waves:
        """The batch with its samples moved, as `Tensor.to` does."""
        return Waves(self.data.to(*args, **kwargs), self.counts, self.rate, self.erased)

    def pin_memory(self) -> Waves:
        """The batch in page-locked memory."""
        return Waves(self.data.pin_memory(), self.counts, self.rate, self.erased)

    def __len__(self) -> int:
        return len(self.counts)

    def __iter__(self) -> Iterator[Wave]:
        """The recordings without their padding."""
        for i, count in enumerate(self.counts):
            yield Wave(self.data[i, :, :count], self.rate, self.erased[i] if self.erased else ())


def as_float(data: Tensor) -> Tensor:
    """Samples in [-1, 1] as float32, or as float64 where that is torch's default; a copy only of int16."""
    found = data.to(torch.get_default_dtype())
    return found.div_(FULL_SCALE) if data.dtype == torch.int16 else found


def join(waves: Sequence[Wave]) -> Waves:
    """Recordings of one rate and one number of channels as a batch; int16 if all are, else float32.

    Raises:
        ValueError: where rates or channels differ, with the remedy.
    """
    rates, channels = {wave.rate for wave in waves}, {wave.data.shape[0] for wave in waves}
    if len(rates) > 1:
        raise ValueError(
            f"one batch holds recordings of {', '.join(map(str, sorted(rates)))} Hz; put view/resample with one rate "
            "first into data.views and data.view"
        )
    if len(channels) > 1:
        raise ValueError(
            f"one batch holds recordings of {' and '.join(map(str, sorted(channels)))} channels; set data.channels=1 "
            "to mix every recording to one"
        )
    counts = tuple(wave.data.shape[1] for wave in waves)
    whole = all(wave.data.dtype == torch.int16 for wave in waves)
    each = [wave.data if whole else as_float(wave.data) for wave in waves]
    long = max(counts)
    # in a worker torch's own function stacks in the memory that the main process reads
    data = default_collate([one if one.shape[1] == long else F.pad(one, (0, long - one.shape[1])) for one in each])
    erased = tuple(wave.erased for wave in waves)
    return Waves(data, counts, rates.pop(), erased if any(erased) else ())


def resample(wave: Wave, rate: int) -> Wave:
    """The recording at another rate, by torchaudio's windowed sinc; itself where it has that rate.

    One of at least one sample keeps at least one.
    """
    if wave.rate == rate:
        return wave
    import torchaudio.functional

    data = torchaudio.functional.resample(as_float(wave.data), wave.rate, rate)
    return wave._replace(data=data, rate=rate)
