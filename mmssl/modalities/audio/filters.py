"""Kaldi's mel filter banks for whole batches, on any device (Povey et al. 2011)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.modalities.audio.waves import FULL_SCALE, as_float
from mmssl.registry import suggest

WINDOW_MS = 25.0
PREEMPHASIS = 0.97
LOW_HZ = 20.0
_SAMPLES = 2**18  # of recordings that a CPU takes at a time
_TOGETHER = 16  # filters that a CPU multiplies at a time
FLAVOURS = ("ast", "beats")


def frame_count(samples: int, window: int, shift: int) -> int:
    """Frames that fit into so many samples; a recording shorter than one frame is padded to one."""
    return 1 + max(0, samples - window) // shift


class FilterBanks(nn.Module):
    """The logarithm of mel filter banks, equal to `torchaudio.compliance.kaldi.fbank` sample by sample.

    Frames of 25 ms without dither or energy; the frames are those that fit into a recording.

    Args:
        rate: samples per second.
        bins: number of filters.
        shift_ms: from frame to frame, in milliseconds.
        flavour: `ast` takes samples in [-1, 1] less their mean over the recording and a Hann window (Gong et al. 2021;
            Audio-MAE); `beats` takes samples times 32768 and Povey's window (BEATs; Kaldi's own).

    Raises:
        ValueError: for another flavour, or a rate or shift that leaves nothing to measure.
    """

    taper: Tensor
    banks: Tensor

    def __init__(self, rate: int, bins: int, shift_ms: float, flavour: str) -> None:
        super().__init__()
        if flavour not in FLAVOURS:
            raise ValueError(
                f"tokenizer.flavour has to be 'ast' or 'beats' (got {flavour!r}){suggest(flavour, FLAVOURS)}"
            )
        self.rate, self.bins, self.flavour = rate, bins, flavour
        self.window, self.shift = int(rate * WINDOW_MS * 0.001), int(rate * shift_ms * 0.001)
        if bins < 4 or self.shift < 1 or rate < 1000:
            raise ValueError(
                f"tokenizer: filter banks need at least 4 bins, a rate of 1000 Hz and a shift of one sample (got "
                f"bins={bins}, rate={rate}, shift_ms={shift_ms:g})"
            )
        taper = torch.hann_window(self.window, periodic=False)
        taper = F.pad(taper if flavour == "ast" else taper.pow(0.85), (0, self.size - self.window))
        self.register_buffer("taper", taper, persistent=False)
        self.register_buffer("banks", mel_banks(bins, self.size, rate), persistent=False)
        self.ranges = mel_ranges(bins, self.size, rate)

    @property
    def size(self) -> int:
        """Points of the Fourier transform: the next power of two."""
        return 1 << (self.window - 1).bit_length()

    def frames(self, counts: Sequence[int]) -> list[int]:
        """Frames of recordings of so many samples."""
        return [frame_count(count, self.window, self.shift) for count in counts]

    def forward(self, data: Tensor, counts: Sequence[int], most: int | None = None, *, fill: bool = False) -> Tensor:
        """Filter banks of a batch of recordings.

        Args:
            data: samples (b, c, n), int16 or float in [-1, 1]; what lies behind a recording's end is never read.
            counts: samples of each recording.
            most: at most so many frames are computed.
            fill: whether the result has so many, however short the recordings are.

        Returns:
            (b, c, frames of the longest, bins) float32; zero where a recording has no such frame.
        """
        with torch.autocast(data.device.type, enabled=False):
            return self._forward(data, counts, most, fill)

    def _forward(self, data: Tensor, counts: Sequence[int], most: int | None, fill: bool) -> Tensor:
        each = [count if most is None else min(count, most) for count in self.frames(counts)]
        # on a CPU few at a time, whose values stay in its cache from first to last: less than half the time
        few = len(data) if data.device.type != "cpu" else max(1, _SAMPLES // data[0].numel())
        pieces = (self._scaled(data[i : i + few], counts[i : i + few]) for i in range(0, len(data), few))
        empty = most - max(each) if fill and most is not None else 0
        banks = torch.cat([F.pad(self._banks(piece, max(each)), (0, 0, 0, empty)) for piece in pieces])
        kept = within(each, banks.shape[2], banks.device)
        return banks if kept is None else banks.masked_fill(~kept[:, None, :, None], 0.0)

    def _scaled(self, data: Tensor, counts: Sequence[int]) -> Tensor:
        """Samples as the flavour has them, zero behind a recording's end."""
        wave = as_float(data)
        real = within(counts, wave.shape[-1], wave.device)
        if real is not None:
            wave = wave.masked_fill(~real.unsqueeze(1), 0.0)
        if self.flavour != "ast":
            return wave * FULL_SCALE
        total = torch.tensor(counts, device=wave.device) * wave.shape[1]
        wave = wave - (wave.sum((1, 2)) / total)[:, None, None]
        return wave if real is None else wave.masked_fill(~real.unsqueeze(1), 0.0)

    def _banks(self, wave: Tensor, frames: int) -> Tensor:
        """Log filter banks of recordings (b, c, n), (b, c, frames, bins).

        Kaldi takes each frame's mean away, then its values behind one another. Both are linear: differences are taken
        of the recording before it is cut, and what is left of a frame's mean after them. A frame's first value has none
        before it, but both windows are 0 there. Frames are cut as long as the transform, where the window is 0 too.
        """
        length = self.size + (frames - 1) * self.shift
        wave = F.pad(wave, (0, max(0, length - wave.shape[-1])))[..., :length]
        mean = wave.unfold(-1, self.window, self.shift)[..., :frames, :].mean(-1, keepdim=True)
        changes = F.pad(torch.sub(wave[..., 1:], wave[..., :-1], alpha=PREEMPHASIS), (1, 0))
        cut = changes.unfold(-1, self.size, self.shift) * self.taper
        cut = cut.addcmul_(mean, self.taper, value=PREEMPHASIS - 1)
        squares = torch.view_as_real(torch.fft.rfft(cut)).square()
        power = squares[..., 0] + squares[..., 1]
        if power.device.type == "cpu":  # a filter is zero at most frequencies, so that some share few
            shares = [power[..., low:high] @ self.banks[low:high, some] for some, low, high in self.ranges]
            banks = torch.cat(shares, -1)
        else:
            banks = power @ self.banks
        return banks.clamp_(min=torch.finfo(torch.float32).eps).log_()


def mel_ranges(bins: int, size: int, rate: int) -> list[tuple[slice, int, int]]:
    """Neighbouring filters, and the first and the last but one place of the spectrum where any of them is not zero."""
    low, high = (1127 * math.log(1 + hz / 700) for hz in (LOW_HZ, rate / 2))
    # where filters begin; each ends where the next but one begins
    edges = [700 * (math.exp((low + i * (high - low) / (bins + 1)) / 1127) - 1) for i in range(bins + 2)]
    found = []
    for first in range(0, bins, _TOGETHER):
        last = min(first + _TOGETHER, bins)
        stop = min(math.ceil(edges[last + 1] * size / rate) + 1, size // 2 + 1)
        found.append((slice(first, last), int(edges[first] * size / rate), stop))
    return found


def mel_banks(bins: int, size: int, rate: int) -> Tensor:
    """Kaldi's triangular filters from 20 Hz to half the rate, (size / 2 + 1, bins)."""
    from torchaudio.compliance.kaldi import get_mel_banks

    banks, _ = get_mel_banks(bins, size, float(rate), LOW_HZ, 0.0, 100.0, -500.0, 1.0)
    return F.pad(banks, (0, 1)).T.contiguous()


def within(counts: Sequence[int], length: int, device: torch.device) -> Tensor | None:
    """Which of `length` places each row fills, (b, length) bool; None where all are full."""
    if min(counts) >= length:
        return None
    return torch.arange(length, device=device) < torch.tensor(counts, device=device).unsqueeze(1)
