"""Histograms of oriented gradients as targets."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.nn.patches import cut, fold
from mmssl.parts.targets import full, gathered
from mmssl.registry import register
from mmssl.step import Look, Plan
from mmssl.types import Tokens


def gradients(image: Tensor, operator: str) -> tuple[Tensor, Tensor]:
    """Derivatives of images (b, c, h, w) along columns (x) and along rows (y), of the same shape.

    Args:
        image: the images.
        operator: `sobel`: Sobel's kernels with reflected borders; `central`: half the difference of both neighbours,
            0 at the border.
    """
    if operator == "sobel":
        wide = F.pad(image, (1, 1, 1, 1), mode="reflect")
        across, down = wide[..., :-2] - wide[..., 2:], wide[..., :-2, :] - wide[..., 2:, :]
        x = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
        return x, down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    x = F.pad((image[..., 2:] - image[..., :-2]) / 2, (1, 1))
    return x, F.pad((image[..., 2:, :] - image[..., :-2, :]) / 2, (0, 0, 1, 1))


@register("target/hog")
class HOG(nn.Module):
    """Histograms of oriented gradients (Dalal and Triggs 2005), per channel (MaskFeat, LocalMIM, DMJD).

    Every pixel gives its gradient's magnitude to the bin of its direction, which has no sign; magnitudes are averaged
    over cells. Gradients are those of the raw values that tokens hold. A token's target are the cells inside of it
    (rows, columns, channels, bins), or, where cells are larger than tokens, the cell that it lies in.

    Args:
        plan: sizes.
        look: the look whose tokens are meant, patches of an image or a spectrogram.
        cells: per token and axis: 2 for cells of 8 pixels in patches of 16; 0.5 where two by two tokens share a cell.
        bins: directions in half a circle.
        operator: `sobel` with reflected borders and angles from the vertical axis (MaskFeat, LocalMIM), or `central`
            differences, 0 at the border, and angles from the horizontal axis (DMJD).
        normalize: of each cell's bins per channel: `unit` length (MaskFeat, LocalMIM), `layer` for mean 0 and variance
            1 (DMJD), or null.

    Raises:
        ValueError: for tokens without such a grid, another word, or cells that do not fit.
    """

    def __init__(
        self,
        plan: Plan,
        look: str,
        *,
        cells: float = 2,
        bins: int = 9,
        operator: str = "sobel",
        normalize: str | None = "unit",
    ) -> None:
        super().__init__()
        spec = plan.specs[look]
        if spec.grid is None or spec.cell is None or spec.channels is None or len(spec.cell) != 2:
            raise ValueError("target/hog needs tokens that are patches of an image or a spectrogram")
        if operator not in ("sobel", "central") or normalize not in ("unit", "layer", None):
            raise ValueError(
                f"target/hog: operator has to be sobel or central and normalize unit, layer or null (got {operator!r} "
                f"and {normalize!r})"
            )
        side, inside, around = spec.cell[0], int(max(cells, 1)), round(1 / min(max(cells, 1e-3), 1))
        fits = side % inside == 0 and not any(count % around for count in spec.grid)
        if spec.cell[1] != side or cells not in (inside, 1 / around) or not fits:
            raise ValueError(
                f"target/hog: {cells:g} cells per axis do not fit tokens of {list(spec.cell)} pixels on a grid of "
                f"{list(spec.grid)}; choose a divisor of {side}, or 1 over a divisor of the grid's sides"
            )
        self.spec, self.bins, self.operator, self.normalize = spec, bins, operator, normalize
        self.inside, self.around, self.cell = inside, around, side * around // inside
        self.dim = self.inside**2 * spec.channels * bins

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Histograms at the tokens asked for, (r, t, cells * channels * bins)."""
        grid, side = look.tokens.grid, self.spec.cell
        assert grid is not None and side is not None
        found = self.histograms(fold(full(look.tokens.raw), grid, side))
        if self.around > 1:
            found = found.repeat_interleave(self.around, 2).repeat_interleave(self.around, 3)
        return gathered(look, query, look.tokens.but(x=cut(found, (self.inside, self.inside))))

    def histograms(self, image: Tensor) -> Tensor:
        """Of images (b, c, h, w), (b, c * bins, h / cell, w / cell), the bins of the first channel first."""
        x, y = gradients(image, self.operator)
        angle = torch.atan2(x, y) if self.operator == "sobel" else torch.atan2(y, x)
        bin_ = (angle / math.pi * self.bins).floor().long() % self.bins
        b, c, h, w = image.shape
        spread = image.new_zeros(b, c, self.bins, h, w).scatter_(2, bin_.unsqueeze(2), torch.hypot(x, y).unsqueeze(2))
        cells = F.avg_pool2d(spread.flatten(1, 2), self.cell).unflatten(1, (c, self.bins))
        if self.normalize == "unit":
            cells = F.normalize(cells, dim=2)
        elif self.normalize == "layer":
            cells = F.layer_norm(cells.movedim(2, -1), (self.bins,), eps=1e-6).movedim(-1, 2)
        return cells.flatten(1, 2)
