"""What generic data code knows of audio: how it is decoded, joined, measured and shown."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.modalities.audio.filters import FilterBanks
from mmssl.modalities.audio.pictures import Spectrogram, paint
from mmssl.modalities.audio.waves import Wave, Waves, as_float, join, resample
from mmssl.registry import register

# The raw-input baseline: filters, and segments whose means are taken.
_BINS, _SEGMENTS = 64, 4
_INT16 = ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW")


@register("modality/audio")
class Audio:
    """The audio modality. A decoded sample is a `Wave`: samples (c, n) and their rate."""

    name = "audio"
    extensions = (
        ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64",
    )  # fmt: skip
    measured = 1000

    def __init__(self) -> None:
        self.rate: int | None = None
        self.scale: tuple[float, float] | None = None

    def decode(self, blob: bytes, channels: int | None = None) -> Wave:
        """Decodes one recording: int16 where the file holds at most 16 bits, else float32 in [-1, 1].

        Args:
            blob: the bytes of the file, of any format that libsndfile reads.
            channels: what to convert to, see `convert`; None keeps the file's own channels.

        Raises:
            ValueError: where the bytes are no recording, or one that is empty, cut off or not finite.
        """
        return self._channels(_read(io.BytesIO(blob)), channels)

    def open(self, path: Path, channels: int | None = None) -> Wave:
        """Decodes one file; see `decode`."""
        with Path(path).open("rb") as file:
            return self._channels(_read(file), channels)

    def _channels(self, wave: Wave, channels: int | None) -> Wave:
        return wave if channels is None else self.convert(wave, channels)

    def convert(self, sample: Wave, channels: int) -> Wave:
        """Converts a recording to a number of channels: one is repeated, many are mixed to one by their mean.

        Raises:
            ValueError: for any other pair of numbers, for which there is no natural rule.
        """
        have = sample.data.shape[0]
        if have == channels:
            return sample
        if channels == 1:
            return sample._replace(data=as_float(sample.data).mean(0, keepdim=True))
        if have == 1:
            return sample._replace(data=sample.data.expand(channels, -1).contiguous())
        raise ValueError(
            f"data.channels={channels}, but a recording has {have} channels and there is no rule to convert {have} to "
            f"{channels}; set data.channels={have} to keep them, or 1 to mix them"
        )

    def collate(self, samples: Sequence[Wave]) -> Waves:
        """Joins recordings to a batch, padded with zeros to the longest, which says where each ends.

        Raises:
            ValueError: where rates or channels differ, with the key to set.
        """
        return join(samples)

    def facts(self, samples: Iterable[Wave]) -> dict[str, Any]:
        """Measures recordings one by one.

        Returns:
            `channels`; `rate` and `seconds` as [smallest, largest]; `mean` and `std` of the AST filter banks (128 bins,
            10 ms, at each recording's own rate) over all frames and all filters that hold any frequency; `counted`.

        Raises:
            ValueError: where recordings differ in channels, or there is none.
        """
        rates, seconds, by_channels, banks = set(), set(), dict[int, int](), dict[int, FilterBanks]()
        count, total, square = 0, 0.0, 0.0
        for wave in samples:
            channels = wave.data.shape[0]
            by_channels[channels] = by_channels.get(channels, 0) + 1
            rates.add(wave.rate)
            seconds.add(wave.seconds)
            bank = banks.setdefault(wave.rate, FilterBanks(wave.rate, 128, 10.0, "ast"))
            values = bank(wave.data[None], [wave.data.shape[1]])[..., bank.banks.sum(0) > 0].double()
            count, total, square = count + values.numel(), total + values.sum(), square + values.square().sum()
        if not by_channels:
            raise ValueError("data.source gave no readable recording to measure; check data.root")
        if len(by_channels) > 1:
            found = ", ".join(f"{number} with {channels}" for channels, number in sorted(by_channels.items()))
            raise ValueError(
                f"recordings differ in their number of channels ({found}); set data.channels=1 to mix them to one"
            )
        mean = float(total / count)
        return {
            "channels": next(iter(by_channels)),
            "rate": [min(rates), max(rates)],
            "seconds": [min(seconds), max(seconds)],
            "mean": mean,
            "std": math.sqrt(max(float(square / count) - mean * mean, 0.0)),
            "counted": sum(by_channels.values()),
        }

    def use(self, facts: dict[str, Any]) -> None:
        """Takes note of the rate that baselines compare at and of the scale that pictures are drawn on."""
        self.rate, self.scale = int(facts["rate"][0]), (float(facts["mean"]), float(facts["std"]))

    def baseline(self, sample: Wave) -> Tensor:
        """The raw-input baseline: of 64 log-mel bins the mean, the deviation and the means of four segments, (384,)."""
        wave = resample(sample, self.rate or sample.rate)
        banks = FilterBanks(wave.rate, _BINS, 10.0, "ast")(wave.data[None], [wave.data.shape[1]])[0].mean(0)
        edges = [i * len(banks) // _SEGMENTS for i in range(_SEGMENTS + 1)]
        means = [banks[low : max(high, low + 1)].mean(0) for low, high in pairwise(edges)]
        return torch.cat([banks.mean(0), banks.std(0, correction=0), *means])

    def picture(self, sample: Wave | Spectrogram) -> np.ndarray:
        """The spectrogram to look at, uint8 (bins, frames, 3): time to the right, low frequencies at the bottom.

        What a tokenizer restored is drawn as it is; of a recording the AST filter banks are, on the data's scale.
        """
        if isinstance(sample, Spectrogram):
            return paint(sample)
        banks = FilterBanks(sample.rate, _BINS, 10.0, "ast")(sample.data[None], [sample.data.shape[1]])[0].mean(0)
        mean, std = self.scale or (float(banks.mean()), float(banks.std(correction=0)))
        return paint(Spectrogram((banks - mean) / max(4 * std, 1e-6) + 0.5))


def _read(file: Any) -> Wave:
    import soundfile

    try:
        with soundfile.SoundFile(file) as sound:
            kind = "int16" if sound.subtype in _INT16 else "float32"
            expected, rate = sound.frames, sound.samplerate
            data = torch.from_numpy(sound.read(dtype=kind, always_2d=True).T.copy())
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        raise ValueError(f"not a readable recording ({str(error).splitlines()[0] or error!r})") from error
    if data.shape[1] == 0:
        raise ValueError("the recording holds no samples")
    if data.shape[1] < expected:
        raise ValueError(f"the recording is cut off: {data.shape[1]} of {expected} samples can be read")
    if data.dtype == torch.float32 and not bool(torch.isfinite(data).all()):
        raise ValueError("the recording holds samples that are not finite numbers")
    return Wave(data, rate)
