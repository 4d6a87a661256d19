"""Recordings to tokens: patches of a spectrogram, or its frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.modalities.audio.filters import FilterBanks, within
from mmssl.modalities.audio.pictures import Spectrogram
from mmssl.modalities.audio.waves import FULL_SCALE, Erased, Waves, as_float
from mmssl.nn.network import LinearEmbed, StemEmbed
from mmssl.nn.patches import coordinates
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec, View


@register("tokenizer/spectrogram")
class SpectrogramTokenizer(nn.Module):
    """Log-mel filter banks of a fixed number of frames, normalised and cut into patches (AST, Audio-MAE, BEATs).

    A recording's filter banks are cut off or continued *before* they are normalised, as Audio-MAE does, to
    (z - mean) / (2 std). A patch's raw values are (time, frequency, channel) with the channel fastest; frames and bins
    that fill no whole patch are left out.

    Args:
        facts: the data's facts: `channels`, and `mean` and `std` of the AST filter banks.
        rate: samples per second; recordings have to come at this rate (view/resample).
        bins: mel filters.
        frames: frames of every spectrogram: 1024 of 10 ms are 10.24 seconds.
        shift_ms: from frame to frame, in milliseconds.
        flavour: `ast` (Audio-MAE) or `beats`; see `FilterBanks`.
        mean: of the log filter banks; null takes the data's (for `beats` moved by the factor of its samples).
        std: likewise; null takes the data's.
        patch: side of a patch, one number or [frames, bins].
        stride: from patch to patch, likewise; null for patches side by side (Audio-MAE tried 10 of 16).
        stem: width of a layer in front of the encoder's: patches are mapped to it without bias, normalised over
            features, and mapped on (BEATs: 512); null for one map.
        padding: `content` takes the silence behind a recording's end for part of it (Audio-MAE); `masked` marks patches
            wholly behind the end as padding, which no attention and no loss looks at (BEATs). Both continue filter
            banks with zeros; `quiet` is `content` continued with the recording's smallest value (Bird-MAE).

    Raises:
        ValueError: for patches that do not fit, or other words.
    """

    mean: Tensor
    std: Tensor
    pos: Tensor

    def __init__(
        self,
        facts: Mapping[str, Any],
        *,
        rate: int = 16000,
        bins: int = 128,
        frames: int = 1024,
        shift_ms: float = 10.0,
        flavour: str = "ast",
        mean: float | None = None,
        std: float | None = None,
        patch: int | Sequence[int] = 16,
        stride: int | Sequence[int] | None = None,
        stem: int | None = None,
        padding: str = "content",
    ) -> None:
        super().__init__()
        if padding not in ("content", "masked", "quiet"):
            raise ValueError(f"tokenizer.padding has to be 'content', 'masked' or 'quiet' (got {padding!r})")
        self.patch = _pair(patch)
        self.stride = self.patch if stride is None else _pair(stride)
        if self.patch[0] > frames or self.patch[1] > bins or min(*self.patch, *self.stride) < 1:
            raise ValueError(
                f"tokenizer.patch={list(self.patch)} has to fit into tokenizer.frames={frames} and "
                f"tokenizer.bins={bins}, and tokenizer.stride={list(self.stride)} has to be at least 1"
            )
        self.filters, self.stem = FilterBanks(rate, bins, shift_ms, flavour), stem
        self.frames, self.channels, self.masked = frames, int(facts["channels"]), padding == "masked"
        self.quiet = padding == "quiet"
        sides = (frames, bins)
        grid = tuple((side - p) // s + 1 for side, p, s in zip(sides, self.patch, self.stride, strict=True))
        self.spec = TokenSpec(math.prod(self.patch) * self.channels, 2, grid, self.stride, self.channels)
        louder = 2 * math.log(FULL_SCALE) if flavour == "beats" else 0.0
        self.register_buffer("mean", torch.tensor(float(facts["mean"]) + louder if mean is None else float(mean)))
        self.register_buffer("std", torch.tensor(float(facts["std"]) if std is None else float(std)))
        self.register_buffer("pos", coordinates(grid), persistent=False)

    def embedding(self, dim: int) -> nn.Module:
        """A linear embedding of patches, or one in two steps."""
        return LinearEmbed(self.spec.raw, dim) if self.stem is None else StemEmbed(self.spec.raw, self.stem, dim)

    def forward(self, view: View) -> Tokens:
        """Patches of a batch.

        Args:
            view: `Waves`, or a tensor (b, n) or (b, c, n) of samples at the tokenizer's rate.

        Returns:
            Tokens on the grid (time, frequency), without embeddings.
        """
        waves = as_waves(view.data, self.filters.rate, self.channels)
        values = self.filters(waves.data, waves.counts, self.frames, fill=True)
        heard = within(self.filters.frames(waves.counts), self.frames, values.device) if self.quiet else None
        if heard is not None:
            heard = heard[:, None, :, None]
            values = torch.where(heard, values, values.masked_fill(~heard, torch.inf).amin((1, 2, 3), keepdim=True))
        values = erase(values.sub_(self.mean).div_(2 * self.std), waves, self.filters)
        cells = values.unfold(2, self.patch[0], self.stride[0]).unfold(3, self.patch[1], self.stride[1])
        raw = cells.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        b, n = raw.shape[:2]
        index = torch.arange(n, device=raw.device).expand(b, n)
        valid = self._valid(waves.counts, raw.device) if self.masked else None
        return Tokens(raw=raw, pos=self.pos.expand(b, n, 2), index=index, grid=self.spec.grid, valid=valid)

    def _valid(self, counts: Sequence[int], device: torch.device) -> Tensor | None:
        """Which patches hold a frame of the recording, (b, n); None if all do."""
        assert self.spec.grid is not None
        rows, columns = self.spec.grid
        filled = [min(rows, -(-count // self.stride[0])) for count in self.filters.frames(counts)]
        flags = within(filled, rows, device)
        return None if flags is None else flags.repeat_interleave(columns, dim=1)

    def restore(self, tokens: Tokens, shown: Tensor | None) -> list[Spectrogram]:
        """Spectrograms that raw values make up, for pictures, without padding; where patches overlap, their mean.

        Args:
            tokens: the whole grid, raw (b, n, v).
            shown: which tokens are known, (b, n); None means all.
        """
        raw = tokens.raw.float().reshape(*tokens.raw.shape[:2], -1, self.channels).mean(-1)
        known = torch.ones_like(raw) if shown is None else shown.unsqueeze(-1).expand_as(raw).float()
        values, weight = self._fold(raw * known), self._fold(known)
        pictures = (values / weight.clamp(min=1)) / 2 + 0.5  # two deviations to either side of the mean
        ends = self._ends(tokens)
        return [Spectrogram(v[:end], w[:end] > 0) for v, w, end in zip(pictures, weight, ends, strict=True)]

    def _ends(self, tokens: Tokens) -> list[int]:
        """Frames of each recording that lie in valid patches."""
        assert self.spec.grid is not None
        steps = [self.spec.grid[0]] * len(tokens.raw)
        if tokens.valid is not None:
            steps = tokens.valid.unflatten(1, self.spec.grid).any(2).sum(1).tolist()
        return [(step - 1) * self.stride[0] + self.patch[0] for step in steps]

    def _fold(self, cells: Tensor) -> Tensor:
        """The sum of patches (b, n, values) where they lie, (b, frames, bins), without the left-out rest."""
        assert self.spec.grid is not None
        size = tuple((g - 1) * s + p for g, s, p in zip(self.spec.grid, self.stride, self.patch, strict=True))
        return F.fold(cells.transpose(1, 2), size, self.patch, stride=self.stride)[:, 0]


@register("tokenizer/log_mel")
class LogMelTokenizer(nn.Module):
    """The frames of a log-mel spectrogram of any length, one token each (Mockingjay, TERA).

    Recordings are scaled to one level, and every bin is standardised over the valid frames of its recording. Shorter
    recordings of a batch are padded, and their padding is marked.

    Args:
        facts: the data's facts: `channels`.
        rate: samples per second; recordings have to come at this rate (view/resample).
        bins: mel filters.
        shift_ms: from frame to frame, in milliseconds.
        level: power that recordings are scaled to, in decibels below full scale.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        *,
        rate: int = 16000,
        bins: int = 80,
        shift_ms: float = 10.0,
        level: float = -25.0,
    ) -> None:
        super().__init__()
        self.filters = FilterBanks(rate, bins, shift_ms, "beats")
        self.channels, self.level = int(facts["channels"]), level
        self.spec = TokenSpec(bins * self.channels, 1, channels=self.channels)

    def embedding(self, dim: int) -> LinearEmbed:
        """A linear embedding of frames."""
        return LinearEmbed(self.spec.raw, dim)

    def forward(self, view: View) -> Tokens:
        """Frames of a batch.

        Args:
            view: `Waves`, or a tensor (b, n) or (b, c, n) of samples at the tokenizer's rate.

        Returns:
            Tokens with raw (b, frames of the longest, bins * c), without embeddings.
        """
        waves = as_waves(view.data, self.filters.rate, self.channels)
        values = self.filters(self._levelled(waves), waves.counts)
        each = self.filters.frames(waves.counts)
        n = values.shape[2]
        valid = within(each, n, values.device)
        values = erase(standardise(values, each, valid), waves, self.filters)
        raw = values.permute(0, 2, 3, 1).flatten(2)
        index = torch.arange(n, device=raw.device).expand(raw.shape[0], n)
        return Tokens(raw=raw, pos=index.unsqueeze(-1).float(), index=index, valid=valid, count=n)

    def _levelled(self, waves: Waves) -> Tensor:
        """Samples at the wanted power; silence stays silent."""
        wave = as_float(waves.data)
        real = within(waves.counts, wave.shape[-1], wave.device)
        wave = wave if real is None else wave.masked_fill(~real.unsqueeze(1), 0.0)
        count = torch.tensor(waves.counts, device=wave.device) * wave.shape[1]
        power = wave.square().sum((1, 2)) / count
        return wave * (10 ** (self.level / 20) / power.sqrt().clamp(min=1e-8))[:, None, None]

    def restore(self, tokens: Tokens, shown: Tensor | None) -> list[Spectrogram]:
        """Spectrograms that raw values make up, for pictures, without padding; hidden frames are grey."""
        values = tokens.raw.float().unflatten(-1, (-1, self.channels)).mean(-1) / 5 + 0.5
        made = []
        for i, picture in enumerate(values):
            kept = slice(None) if tokens.valid is None else tokens.valid[i]
            flags = None if shown is None else shown[i, kept].unsqueeze(-1).expand(-1, picture.shape[-1])
            made.append(Spectrogram(picture[kept], flags))
        return made


def _pair(sides: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(sides, int):
        return sides, sides
    time, frequency = sides
    return time, frequency


def as_waves(data: Waves | Tensor, rate: int, channels: int) -> Waves:
    """The batch that a tokenizer reads; a bare tensor (b, n) or (b, c, n) is taken to be at its rate.

    Raises:
        ValueError: for another rate or number of channels, with the remedy.
    """
    if isinstance(data, Tensor):
        data = data.unsqueeze(1) if data.dim() == 2 else data
        data = Waves(data, (data.shape[-1],) * len(data), rate)
    if data.rate != rate:
        raise ValueError(
            f"tokenizer.rate={rate}, but recordings come at {data.rate} Hz; put view/resample with rate={rate} first "
            f"into data.views and data.view, or set tokenizer.rate={data.rate}"
        )
    if data.data.shape[1] != channels:
        raise ValueError(
            f"this run was built for {channels} channels, but recordings have {data.data.shape[1]}; set "
            f"data.channels={channels}"
        )
    return data


def standardise(values: Tensor, counts: Sequence[int], valid: Tensor | None) -> Tensor:
    """Every bin less its mean, over its unbiased deviation in time, (b, c, frames, bins); padding becomes zero.

    Args:
        values: (b, c, frames, bins), zero in the padding.
        counts: frames of each recording.
        valid: which frames are no padding, (b, frames).
    """
    count = torch.tensor(counts, device=values.device)[:, None, None, None]
    kept = 1.0 if valid is None else valid[:, None, :, None]
    away = (values - values.sum(2, keepdim=True) / count) * kept
    variance = away.square().sum(2, keepdim=True) / (count - 1).clamp(min=1)
    return away * torch.rsqrt(variance + 1e-5)


def erase(values: Tensor, waves: Waves, filters: FilterBanks) -> Tensor:
    """Sets the erased rectangles of each spectrogram (b, c, frames, bins) to zero, the mean, in place."""
    step, bins = filters.shift / filters.rate, values.shape[3]
    for row, rectangles in zip(values, waves.erased, strict=bool(waves.erased)):
        for start, stop, low, high in (Erased(*rectangle) for rectangle in rectangles):
            across = slice(round(low * bins), round(high * bins))
            row[:, round(start / step) : math.ceil(stop / step), across] = 0
    return values
