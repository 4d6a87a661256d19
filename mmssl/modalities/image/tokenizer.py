"""Images to patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.nn.network import LinearEmbed
from mmssl.nn.patches import coordinates, cut, fold
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec, View


@register("tokenizer/image")
class ImageTokenizer(nn.Module):
    """Normalises an image with the data's statistics and cuts it into square patches (ViT, MAE).

    A patch's raw values are its normalised pixels, (row, column, channel) with the channel fastest.

    Args:
        facts: the data's facts: `channels`, and `mean` and `std` per channel in units of [0, 1].
        size: side of the image in pixels, one number or (height, width).
        patch: side of a patch in pixels; it has to divide the size.

    Raises:
        ValueError: when the patch does not divide the size.
    """

    mean: Tensor
    std: Tensor
    pos: Tensor

    def __init__(self, facts: Mapping[str, Any], *, size: int | list[int] = 224, patch: int = 16) -> None:
        super().__init__()
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if any(side % patch for side in sides):
            near = sorted({side // patch * patch for side in sides} | {-(-side // patch) * patch for side in sides})
            fits = [p for p in range(2, 33) if all(side % p == 0 for side in sides)]
            raise ValueError(
                f"tokenizer.patch={patch} does not divide data.size={size}. Set data.size to a multiple of {patch} "
                f"(near: {', '.join(map(str, near))}), or tokenizer.patch to a divisor of the size "
                f"({', '.join(map(str, fits)) or 'there is none up to 32'})."
            )
        channels = int(facts["channels"])
        grid = (sides[0] // patch, sides[1] // patch)
        self.patch = patch
        self.spec = TokenSpec(patch * patch * channels, 2, grid, (patch, patch), channels)
        self.register_buffer("mean", torch.tensor(facts["mean"], dtype=torch.float32).view(1, -1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(facts["std"], dtype=torch.float32).view(1, -1, 1, 1) * 255)
        self.register_buffer("pos", coordinates(grid), persistent=False)

    @property
    def pixels(self) -> dict[str, Any]:
        """What images are before they are cut, for exports: `size` [height, width], `mean` and `std` of [0, 1]."""
        assert self.spec.grid is not None
        size = [side * self.patch for side in self.spec.grid]
        mean, std = ((values.flatten().double() / 255).tolist() for values in (self.mean, self.std))
        return {"size": size, "mean": mean, "std": std}

    def embedding(self, dim: int) -> LinearEmbed:
        """A linear embedding of patches."""
        return LinearEmbed(self.spec.raw, dim)

    def forward(self, view: View) -> Tokens:
        """Patches of a batch.

        Args:
            view: uint8 images (b, c, h, w), or floats in [0, 1].

        Returns:
            Tokens with raw (b, n, patch * patch * c), without embeddings.
        """
        image = view.data
        if image.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"tokenizer/image was made for {self.mean.shape[1]} channels, but the view has {image.shape[1]}; give "
                "the view's own to a stream (streams.NAME.facts: {channels: ..., mean: [...], std: [...]}), or set "
                "data.channels"
            )
        raw = cut(self.normalized(image), (self.patch, self.patch))
        grid = (image.shape[-2] // self.patch, image.shape[-1] // self.patch)
        pos = self.pos if grid == self.spec.grid else coordinates(grid).to(raw.device)
        b, n = raw.shape[:2]
        index = torch.arange(n, device=raw.device).expand(b, n)
        return Tokens(raw=raw, pos=pos.expand(b, n, 2), index=index, grid=grid)

    def normalized(self, image: Tensor) -> Tensor:
        """Images (b, c, h, w), uint8 or floats in [0, 1], less the mean and over the deviation of each channel."""
        pixels = image.float() if image.dtype == torch.uint8 else image * 255.0
        # as rows of pixels where channels lie together: a CPU is slow over a last axis of three
        if pixels.is_contiguous(memory_format=torch.channels_last):
            b, _, h, w = pixels.shape
            mean, std = (values.flatten().repeat(w) for values in (self.mean, self.std))
            pixels.permute(0, 2, 3, 1).view(b, h, -1).sub_(mean).div_(std)
            return pixels
        return pixels.sub_(self.mean).div_(self.std)

    def restore(self, tokens: Tokens, shown: Tensor | None) -> Tensor:
        """Images that raw values make up, for pictures: uint8 (b, c, h, w).

        Args:
            tokens: all tokens of each image, raw (b, n, v).
            shown: which patches are shown, (b, n) bool; the others have the colour of the data's mean. None for all.
        """
        raw = tokens.raw.float() if shown is None else tokens.raw.float() * shown.unsqueeze(-1)
        assert tokens.grid is not None
        pixels = fold(raw, tokens.grid, (self.patch, self.patch)) * self.std + self.mean
        return pixels.round().clamp(0, 255).to(torch.uint8)
