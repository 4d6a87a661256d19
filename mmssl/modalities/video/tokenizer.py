"""Clips to tubelets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.nn.network import LinearEmbed
from mmssl.nn.patches import coordinates, cut, fold
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec, View


@register("tokenizer/tubelet")
class TubeletTokenizer(nn.Module):
    """Normalises a clip and cuts it into tubelets of some frames by some pixels (VideoMAE, MAE-ST).

    A tubelet's raw values are its normalised pixels, (frame, row, column, channel) with the channel fastest.

    Args:
        facts: the data's facts: `channels`, and `mean` and `std` per channel in units of [0, 1].
        size: side of the frames in pixels, one number or (height, width).
        frames: frames of a clip.
        tubelet: frames of a tubelet; it has to divide the frames.
        patch: side of a tubelet in pixels; it has to divide the size.
        mean: mean per channel in units of [0, 1], or one number for all; null takes the data's.
        std: standard deviation, likewise.

    Raises:
        ValueError: where a tubelet does not divide the clip, naming what does.
    """

    mean: Tensor
    std: Tensor
    pos: Tensor

    def __init__(
        self, facts: Mapping[str, Any], *, size: int | list[int] = 224, frames: int = 16, tubelet: int = 2,
        patch: int = 16, mean: float | list[float] | None = None, std: float | list[float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        self.cell = (tubelet, patch, patch)
        grid = _divided((frames, height, width), self.cell)
        channels = int(facts["channels"])
        self.spec = TokenSpec(tubelet * patch * patch * channels, 3, grid, self.cell, channels)
        for name, said in (("mean", mean), ("std", std)):
            values = _per_channel(name, facts[name] if said is None else said, channels)
            self.register_buffer(name, values.view(1, -1, 1, 1, 1) * 255)
        self.register_buffer("pos", coordinates(grid), persistent=False)

    def embedding(self, dim: int) -> LinearEmbed:
        """A linear embedding of tubelets."""
        return LinearEmbed(self.spec.raw, dim)

    def forward(self, view: View) -> Tokens:
        """Tubelets of a batch.

        Args:
            view: uint8 clips (b, t, c, h, w), or floats in [0, 1].

        Returns:
            Tokens with raw (b, n, tubelet * patch * patch * c), without embeddings; n counts time first, then rows.
        """
        clip: Tensor = view.data.transpose(1, 2)
        sides = (clip.shape[2], clip.shape[3], clip.shape[4])
        grid = _divided(sides, self.cell)
        pixels = clip.float() if clip.dtype == torch.uint8 else clip * 255.0
        raw = cut((pixels - self.mean) / self.std, self.cell)
        pos = self.pos if grid == self.spec.grid else coordinates(grid).to(raw.device)
        b, n = raw.shape[:2]
        index = torch.arange(n, device=raw.device).expand(b, n)
        return Tokens(raw=raw, pos=pos.expand(b, n, 3), index=index, grid=grid)

    def restore(self, tokens: Tokens, shown: Tensor | None) -> Tensor:
        """Clips that raw values make up, for pictures: uint8 (b, t, c, h, w).

        Args:
            tokens: all tokens of each clip, raw (b, n, v).
            shown: which tubelets are shown, (b, n) bool; the others are grey. None for all.
        """
        assert tokens.grid is not None
        pixels = fold(tokens.raw.float(), tokens.grid, self.cell) * self.std + self.mean
        if shown is not None:
            cells = shown.reshape(-1, 1, *tokens.grid)
            for axis, side in enumerate(self.cell):
                cells = cells.repeat_interleave(side, axis + 2)
            pixels = torch.where(cells, pixels, 127.5)
        return pixels.round().clamp(0, 255).to(torch.uint8).transpose(1, 2)


def _divided(sides: Sequence[int], cell: Sequence[int]) -> tuple[int, ...]:
    """Tubelets per axis.

    Raises:
        ValueError: where they do not divide the clip.
    """
    keys = ("tokenizer.tubelet", "tokenizer.patch", "tokenizer.patch")
    names = ("tokenizer.frames", "data.size", "data.size")
    for side, part, key, name in zip(sides, cell, keys, names, strict=True):
        if part < 1 or side < part or side % part:
            near = sorted({max(side // part, 1) * part, -(-side // part) * part}) if part > 0 else []
            fits = [d for d in range(1, 33) if side % d == 0]
            raise ValueError(
                f"{key}={part} does not divide {name}={side}. Set {name} to a multiple of {part} "
                f"(near: {', '.join(map(str, near))}), or {key} to a divisor of it ({', '.join(map(str, fits))})."
            )
    return tuple(side // part for side, part in zip(sides, cell, strict=True))


def _per_channel(name: str, values: float | Sequence[float], channels: int) -> Tensor:
    """One float32 number per channel."""
    given = [float(values)] * channels if isinstance(values, int | float) else [float(v) for v in values]
    if len(given) != channels:
        raise ValueError(
            f"tokenizer.{name} has {len(given)} numbers, but the videos have {channels} channels; give one number, "
            f"{channels} of them, or null for the data's own"
        )
    return torch.tensor(given, dtype=torch.float32)
