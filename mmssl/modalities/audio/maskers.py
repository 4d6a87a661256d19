"""Maskers on the grid of time and frequency, and on the frames of a spectrogram."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.draws import Draws
from mmssl.masks import ordinal
from mmssl.registry import register
from mmssl.types import Mask, Tokens


def _share(value: float, name: str) -> float:
    if not 0.0 <= value < 1.0:
        hint = f"; did you mean {value / 100:g}?" if 1.0 < value < 100.0 else ""
        raise ValueError(f"masker.{name} is a share and has to be in [0, 1) (got {value:g}){hint}")
    return value


def _grid(tokens: Tokens, name: str) -> tuple[int, int]:
    if tokens.grid is None or len(tokens.grid) != 2:
        raise ValueError(
            f"{name} needs tokens on a grid of time and frequency, such as those of tokenizer/spectrogram (got the "
            f"grid {tokens.grid}); for a sequence choose masker/random"
        )
    return tokens.grid[0], tokens.grid[1]


@register("masker/time_frequency")
class TimeFrequency:
    """Hides whole time steps and whole frequency rows of a grid of patches (Audio-MAE's structured masks).

    Of T steps int(T (1 - time)) stay, and of F rows int(F (1 - frequency)); visible is where both stay. With padding,
    each sample keeps that share of its own steps, at least one.

    Args:
        time: share of time steps that are hidden.
        frequency: share of frequency rows that are hidden.

    Raises:
        ValueError: for a share outside [0, 1); when called, for tokens without a grid, or if nothing would stay.
    """

    def __init__(self, *, time: float = 0.6, frequency: float = 0.5) -> None:
        self.time, self.frequency = _share(time, "time"), _share(frequency, "frequency")

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        steps, rows = _grid(tokens, "masker/time_frequency")
        keep_t, keep_f = int(steps * (1 - self.time)), int(rows * (1 - self.frequency))
        if not keep_t or not keep_f:
            raise ValueError(
                f"masker.time={self.time:g} and masker.frequency={self.frequency:g} leave nothing of the grid "
                f"{steps} x {rows}; lower them"
            )
        device = tokens.raw.device
        noise = draws.named("time").uniform(steps).to(device)
        low = ordinal(draws.named("frequency").uniform(rows).to(device)) < keep_f
        if tokens.valid is None:
            visible = ((ordinal(noise) < keep_t).unsqueeze(2) & low.unsqueeze(1)).flatten(1)
            count = keep_t * keep_f
            return Mask(visible, ~visible.unsqueeze(1), None, count, visible.shape[1] - count)
        real = tokens.valid.unflatten(1, (steps, rows)).any(2)
        # a table, not arithmetic on the device: a sample keeps as many steps as it would in a batch without padding
        table = torch.tensor([max(1, int(n * (1 - self.time))) for n in range(steps + 1)], device=device)
        kept = ordinal(noise.masked_fill(~real, 2.0)) < table[real.sum(1)].unsqueeze(1)
        visible = ((kept & real).unsqueeze(2) & low.unsqueeze(1)).flatten(1) & tokens.valid
        return Mask(visible, (~visible & tokens.valid).unsqueeze(1))


@register("masker/blocks")
class Blocks:
    """Hides random rectangles of a grid, until int(n ratio) tokens are hidden (BEiT's and A-JEPA's kind of mask).

    The last rectangle is hidden in part. Where rectangles do not suffice, single tokens are hidden.

    Args:
        ratio: share of tokens that are hidden.
        time: fewest and most steps of a rectangle.
        frequency: fewest and most rows of a rectangle.
        tries: rectangles that are drawn.

    Raises:
        ValueError: for a share outside [0, 1) or sides that do not ascend from 1; when called, without a grid.
    """

    def __init__(
        self, *, ratio: float = 0.5, time: Sequence[int] = (2, 8), frequency: Sequence[int] = (2, 8), tries: int = 32
    ) -> None:
        self.ratio, self.tries, self.sides = _share(ratio, "ratio"), tries, (tuple(time), tuple(frequency))
        for name, (low, high) in zip(("time", "frequency"), self.sides, strict=True):
            if not 1 <= low <= high:
                raise ValueError(f"masker.{name} has to be two ascending numbers of tokens (got [{low}, {high}])")

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        device, inside = tokens.raw.device, []
        for axis, (size, (low, high)) in enumerate(zip(_grid(tokens, "masker/blocks"), self.sides, strict=True)):
            side, place = draws.named(f"axis{axis}").uniform(self.tries, 2).to(device).unbind(-1)
            length = (min(low, size) + (side * (min(high, size) - min(low, size) + 1)).long()).unsqueeze(-1)
            start = (place.unsqueeze(-1) * (size - length + 1)).long()
            at = torch.arange(size, device=device)
            inside.append((at >= start) & (at < start + length))
        covered = (inside[0].unsqueeze(3) & inside[1].unsqueeze(2)).flatten(2)
        # the first rectangle that covers a token decides when it is hidden, chance decides within a rectangle
        first = torch.where(covered.any(1), covered.float().argmax(1), self.tries)
        rank = first + draws.named("order").uniform(first.shape[1]).to(device)
        n = rank.shape[1]
        if tokens.valid is None:
            hide = int(n * self.ratio)
            hidden = ordinal(rank) < hide
            return Mask(~hidden, hidden.unsqueeze(1), None, n - hide, hide)
        table = torch.tensor([int(count * self.ratio) for count in range(n + 1)], device=device)
        hidden = ordinal(rank.masked_fill(~tokens.valid, self.tries + 2.0)) < table[tokens.valid.sum(1)].unsqueeze(1)
        return Mask(~hidden & tokens.valid, hidden.unsqueeze(1))


@register("masker/bands")
class Bands:
    """Marks spans of frames and one band of frequencies in each recording, value by value (TERA, Liu, Li, Lee 2021).

    Of a recording of n valid frames, round(n time / width) spans of `width` frames start at distinct frames below
    n - width; they may overlap. The band takes from 0 to int(bins frequency) bins, from a random one on, in all frames.
    What is scored is the union, `Mask.elements`; where it is empty, all values of the recording. `Mask.visible` is
    False in spans (and in padding); `corruptor/alter` reads both.

    Args:
        time: share of frames in spans, if these did not overlap; 0 for none.
        width: frames of a span.
        frequency: the widest band, as a share of the bins; 0 for none.

    Raises:
        ValueError: for a share outside [0, 1), or a width below 1.
    """

    def __init__(self, *, time: float = 0.15, width: int = 7, frequency: float = 0.2) -> None:
        self.time, self.frequency, self.width = _share(time, "time"), _share(frequency, "frequency"), width
        if width < 1:
            raise ValueError(f"masker.width has to be at least one frame (got {width})")

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        b, n, bins = tokens.raw.shape
        valid = torch.ones(b, n, dtype=torch.bool, device=tokens.raw.device) if tokens.valid is None else tokens.valid
        spans = self._spans(draws.named("time"), valid)
        band = self._band(draws.named("frequency"), b, bins).to(valid.device)
        elements = (spans.unsqueeze(2) | band.unsqueeze(1)) & valid.unsqueeze(2)
        empty = ~elements.flatten(1).any(1)
        elements = elements | (empty[:, None, None] & valid.unsqueeze(2))
        return Mask(~spans & valid, elements.any(2).unsqueeze(1), elements=elements)

    def _spans(self, draws: Draws, valid: Tensor) -> Tensor:
        """Frames in spans, (b, n)."""
        n = valid.shape[1]
        places = torch.arange(n, device=valid.device)
        real = valid.sum(1, keepdim=True)
        # Python rounds halves to even, so that counts come from a table and not from the device
        table = torch.tensor([round(count * self.time / self.width) for count in range(n + 1)], device=valid.device)
        open_ = places < (real - self.width).clamp(min=1)
        starts = (ordinal(draws.uniform(n).to(valid.device).masked_fill(~open_, 2.0)) < table[real]) & open_
        reach = F.max_pool1d(F.pad(starts.float().unsqueeze(1), (self.width - 1, 0)), self.width, 1)[:, 0]
        return (reach > 0) & valid

    def _band(self, draws: Draws, b: int, bins: int) -> Tensor:
        """Bins in the band, (b, bins)."""
        size, place = draws.uniform(2).unbind(1)
        wide = (size * (int(bins * self.frequency) + 1)).long()
        low = (place * (bins - wide)).long().unsqueeze(1)
        at = torch.arange(bins, device=size.device)
        return (at >= low) & (at < low + wide.unsqueeze(1))
