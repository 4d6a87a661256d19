"""Patches with room between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.parts.views import RandomResizedCrop
from mmssl.registry import register


@register("view/gapped_crop")
class GappedCrop:
    """A random part of an image, resized and cut into cells of which a smaller patch each is kept (Latent MIM).

    A cell's side is that of a patch and a gap; the patch lies at a random place in it, its offsets whole numbers in [0,
    gap), each cell's own. The patches side by side are the result, so that neighbours share no border of the image.

    Args:
        size: side of the result in pixels.
        patch: side of a patch in pixels: `${tokenizer.patch}`; it divides the size.
        gap: room between patches over the side of a patch: 4 pixels beside 16 are 0.25.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
        interpolation: nearest, bilinear or bicubic.

    Raises:
        ValueError: for a patch that does not divide the size, or a negative gap.
    """

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        gap: float = 0.25,
        scale: Sequence[float] = (0.2, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bicubic",
    ) -> None:
        if size % patch or gap < 0:
            raise ValueError(
                f"view/gapped_crop: patch={patch} has to divide size={size}, and gap to be at least 0 (got {gap:g})"
            )
        self.patch, self.gap, self.grid = patch, round(patch * gap), size // patch
        side = self.grid * (patch + self.gap)
        self.crop = RandomResizedCrop(size=side, scale=scale, ratio=ratio, interpolation=interpolation)

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (..., c, size, size)."""
        return self._patches(self.crop(sample, draws), draws)

    def segments(self, classes: Tensor, sample: Tensor, draws: Draws) -> Tensor:
        """Classes of pixels (h, w): those of the same patches, (size, size)."""
        return self._patches(self.crop.segments(classes, sample, draws), draws)

    def _patches(self, image: Tensor, draws: Draws) -> Tensor:
        n, side = self.grid, self.patch + self.gap
        offset = torch.zeros(2, n, n, dtype=torch.int64)
        if self.gap:
            offset = draws.named("gaps").integers(0, self.gap, 2, n, n)[0]
        inside = torch.arange(self.patch)
        start = torch.arange(n) * side
        # places in the image of each pixel of each patch: (row of patches, column of patches, pixel)
        rows = start.view(n, 1, 1) + offset[0].unsqueeze(-1) + inside
        columns = start.view(1, n, 1) + offset[1].unsqueeze(-1) + inside
        cut = image[..., rows.unsqueeze(-1), columns.unsqueeze(-2)]
        return cut.transpose(-3, -2).reshape(*image.shape[:-2], n * self.patch, n * self.patch)
