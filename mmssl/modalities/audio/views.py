"""Operations on recordings, with parameters drawn as pure functions of (seed, epoch, sample).

Every operation takes a `Wave` and draws with one key, and returns a `Wave`. Lengths are in seconds, so that operations
mean the same at any rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from mmssl.draws import Draws
from mmssl.modalities.audio.filters import WINDOW_MS
from mmssl.modalities.audio.waves import Erased, Wave, as_float, resample
from mmssl.registry import register


@register("view/resample")
class Resample:
    """Brings a recording to one rate, by torchaudio's windowed sinc; nothing is drawn.

    Args:
        rate: samples per second.
    """

    def __init__(self, *, rate: int) -> None:
        if rate < 1:
            raise ValueError(f"view/resample: rate has to be positive (got {rate})")
        self.rate = rate

    def __call__(self, sample: Wave, draws: Draws) -> Wave:
        """Returns the recording at the rate."""
        return resample(sample, self.rate)


@register("view/sound")
class SoundOf:
    """The sound of what another view has chosen, such as a span of a video (HiCMAE); nothing is drawn.

    Operations on recordings follow. It stands behind `view/of`, for instance `[{_target_: view/of, name: x, after: 1},
    {_target_: view/sound}]` where view x begins with `view/span`.

    Args:
        channels: 1 mixes all channels to one by their mean; null keeps them.

    Raises:
        ValueError: for another number; when called, for what has no sound.
    """

    def __init__(self, *, channels: int | None = 1) -> None:
        if channels not in (None, 1):
            raise ValueError(f"view/sound: channels is 1, to mix them, or null, to keep them (got {channels})")
        self.mixes = channels == 1

    def __call__(self, sample: Any, draws: Draws) -> Wave:
        """Returns the recording."""
        if not callable(getattr(sample, "sound", None)):
            raise ValueError(
                f"view/sound hears what another view has chosen (got {type(sample).__name__}); begin the view with "
                "{_target_: view/of, name: x, after: 1}, and view x with view/span"
            )
        data, rate = sample.sound()
        return Wave(data.mean(0, keepdim=True) if self.mixes else data, rate)


@register("view/crop_audio")
class CropAudio:
    """A part of a recording of at most some seconds.

    Args:
        seconds: length of the part.
        random: a random part; else the central one, for evaluation.
        pad: whether a shorter recording is continued with silence to that length (then it lies at a random place, or
            in the middle).
    """

    def __init__(self, *, seconds: float, random: bool = True, pad: bool = False) -> None:
        if not seconds > 0:
            raise ValueError(f"view/crop_audio: seconds has to be positive (got {seconds})")
        self.seconds, self.random, self.pad = seconds, random, pad

    def __call__(self, sample: Wave, draws: Draws) -> Wave:
        """Returns the part, of `seconds` or shorter."""
        length, have = max(1, round(self.seconds * sample.rate)), sample.data.shape[1]
        spare = abs(have - length)
        if spare == 0 or (have < length and not self.pad):
            return sample
        unit = float(draws.named("crop_audio").uniform(1)) if self.random else 0.5
        start = min(int(unit * (spare + 1)), spare) if self.random else spare // 2
        if have > length:
            return sample._replace(data=sample.data[:, start : start + length])
        return sample._replace(data=torch.nn.functional.pad(sample.data, (start, spare - start)))


@register("view/gain")
class Gain:
    """Multiplies a recording by a random factor and takes its mean away (Audio-MAE).

    The factor is Beta(10, 10) + 0.5: between 0.5 and 1.5, and mostly near 1.
    """

    def factor(self, draws: Draws) -> float:
        """The factor: a Beta variable of whole parameters is a ratio of sums of exponential ones."""
        exponential = -torch.log1p(-draws.named("gain").uniform(20)[0].double())
        return float(exponential[:10].sum() / exponential.sum()) + 0.5

    def __call__(self, sample: Wave, draws: Draws) -> Wave:
        """Returns the recording in float32, not clipped."""
        data = as_float(sample.data)
        return sample._replace(data=(data - data.mean()).mul_(self.factor(draws)))


@register("view/loudness")
class Loudness:
    """Makes a recording louder or softer by a random number of decibels (A-JEPA: 6 up or down).

    Args:
        decibels: the change lies in [-decibels, decibels], drawn uniformly.
    """

    def __init__(self, *, decibels: float = 6.0) -> None:
        if decibels < 0:
            raise ValueError(f"view/loudness: decibels has to be at least 0 (got {decibels:g})")
        self.decibels = decibels

    def __call__(self, sample: Wave, draws: Draws) -> Wave:
        """Returns the recording in float32, not clipped."""
        change = float(draws.named("loudness").uniform(1, low=-self.decibels, high=self.decibels))
        return sample._replace(data=as_float(sample.data) * 10 ** (change / 20))


@register("view/part")
class Part:
    """A random part of a recording, of a random share of its length.

    Args:
        share: smallest and largest share, drawn uniformly; at least one sample stays.
    """

    def __init__(self, *, share: Sequence[float] = (0.5, 1.0)) -> None:
        low, high = share
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"view/part: share has to be two ascending shares in (0, 1] (got {[low, high]})")
        self.share = (low, high)

    def __call__(self, sample: Wave, draws: Draws) -> Wave:
        """Returns the part, (c, m)."""
        size, place = draws.named("part").uniform(2)[0].tolist()
        n, (low, high) = sample.data.shape[1], self.share
        length = min(n, max(1, round(n * (low + (high - low) * size))))
        start = int(place * (n - length + 1))
        return sample._replace(data=sample.data[:, start : start + length])


@register("view/cycle")
class Cycle:
    """As much of a recording as fills a spectrogram, from a random place on; it starts again where it ends (A-JEPA).

    Args:
        frames: frames of the spectrogram, as in its tokenizer.
        shift_ms: from frame to frame, in milliseconds, likewise.
    """

    def __init__(self, *, frames: int = 1024, shift_ms: float = 10.0) -> None:
        if frames < 1 or shift_ms <= 0:
            raise ValueError(f"view/cycle: frames and shift_ms have to be positive (got {frames}, {shift_ms:g})")
        self.seconds = ((frames - 1) * shift_ms + WINDOW_MS) / 1000

    def __call__(self, sample: Wave, draws: Draws) -> Wave:
        """Returns a recording of exactly so many samples."""
        n, length = sample.data.shape[1], math.ceil(self.seconds * sample.rate)
        # a longer recording is cut, so that its end does not meet its beginning without need
        start = int(float(draws.named("cycle").uniform(1)) * (n if n < length else n - length + 1))
        return sample._replace(data=sample.data[:, (start + torch.arange(length)) % n])


@register("view/roll")
class Roll:
    """Turns a recording round by a random number of samples: what falls off the end comes first (Audio-MAE's paper)."""

    def __call__(self, sample: Wave, draws: Draws) -> Wave:
        """Returns the recording turned, of the same length."""
        shift = int(float(draws.named("roll").uniform(1).double()) * sample.data.shape[1])
        return sample._replace(data=sample.data.roll(shift, 1))


@register("view/add_noise")
class AddNoise:
    """Adds white noise at a random ratio of signal to noise, with probability `p`.

    Args:
        snr: lowest and highest ratio in decibels, drawn uniformly.
        p: probability of noise.
    """

    def __init__(self, *, snr: tuple[float, float] = (10.0, 40.0), p: float = 0.5) -> None:
        low, high = snr
        if low > high or not 0 <= p <= 1:
            raise ValueError(f"view/add_noise: snr has to ascend and p to lie between 0 and 1 (got {list(snr)}, {p})")
        self.snr, self.p = (float(low), float(high)), p

    def __call__(self, sample: Wave, draws: Draws) -> Wave:
        """Returns the recording in float32, perhaps with noise."""
        draws = draws.named("add_noise")
        if float(draws.named("happens").uniform(1)) >= self.p:
            return sample
        data = as_float(sample.data)
        ratio = float(draws.named("snr").uniform(1, low=self.snr[0], high=self.snr[1]))
        level = data.square().mean().sqrt() * 10 ** (-ratio / 20)
        # draws of this sample alone: those of a whole batch at once would fill the memory
        noise = Draws(draws.named("noise").keys).normal(*data.shape)[0]
        return sample._replace(data=data + level * noise)


@register("view/spec_augment")
class SpecAugment:
    """Has the tokenizer set random stretches of time and bands of frequency to the mean (Park et al. 2019).

    It has to come after whatever cuts or shifts the recording. Widths are drawn uniformly from 0 on.

    Args:
        times: number of stretches of time.
        seconds: the longest stretch.
        bands: number of frequency bands.
        width: the widest band, as a share of the bins.
    """

    def __init__(self, *, times: int = 1, seconds: float = 1.0, bands: int = 1, width: float = 0.3) -> None:
        if min(times, bands) < 0 or seconds < 0 or not 0 <= width <= 1:
            raise ValueError(
                f"view/spec_augment: times, bands and seconds have to be at least 0 and width between 0 and 1 (got "
                f"{times}, {bands}, {seconds}, {width})"
            )
        self.times, self.seconds, self.bands, self.width = times, seconds, bands, width

    def __call__(self, sample: Wave, draws: Draws) -> Wave:
        """Returns the same recording, with what is to be erased from its spectrogram."""
        draws, end = draws.named("spec_augment"), sample.seconds
        erased = list(sample.erased)
        for size, place in draws.named("times").uniform(self.times, 2)[0].tolist():
            length = min(size * self.seconds, end)
            start = place * (end - length)
            erased.append(Erased(start, start + length, 0.0, 1.0))
        for size, place in draws.named("bands").uniform(self.bands, 2)[0].tolist():
            low = place * (1 - size * self.width)
            erased.append(Erased(0.0, end, low, low + size * self.width))
        return sample._replace(erased=tuple(erased))
