"""BEiT's masks of growing blocks, and the shares of tokens that iBOT and DINOv2 hide with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.masks import ordinal
from mmssl.parts.block_maskers import check_range, rectangles, two_axes
from mmssl.parts.maskers import check_ratio
from mmssl.registry import register
from mmssl.types import Mask, Tokens

TRIES = 10  # rectangles tried for one block
ROUNDS = 200  # blocks tried where they have to fill the count; single tokens do the rest

Ratio = Callable[[Draws, int], Tensor]


def grow(
    draws: Draws,
    count: Tensor,
    grid: tuple[int, int],
    smallest: float,
    aspect: tuple[float, float],
    patient: bool = False,
) -> Tensor:
    """Blocks hidden one after the other, until each sample has its count or no block fits, (b, height, width) bool.

    A block is the first of 10 tried rectangles that hides something new, but no more than is missing. Its area is
    uniform between `smallest` and what is missing, the logarithm of its shape is uniform, its place is uniform.

    Args:
        draws: of the samples.
        count: how many tokens to hide, (b,) float; need not be whole.
        grid: tokens per axis.
        smallest: least area of a block; it may lie above what is missing.
        aspect: least and greatest height over width.
        patient: whether to go on, up to 200 times, where 10 rectangles did not fit (CAE); else the sample is done.
    """
    count = count.double()
    hidden = torch.zeros(len(count), *grid, dtype=torch.bool, device=count.device)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    done = count <= 0
    for turn in range(ROUNDS if patient else grid[0] * grid[1]):
        if bool(done.all()):
            break
        left = count - hidden.sum((1, 2))
        u = draws.named(f"block {turn}").uniform(TRIES, 4).double()
        area = smallest + (left.unsqueeze(1) - smallest) * u[..., 0]
        shape = torch.exp(low + (high - low) * u[..., 1])
        height, width = (area * shape).sqrt().round().long(), (area / shape).sqrt().round().long()
        fits = (height < grid[0]) & (width < grid[1])
        block = rectangles(u[..., 2:], (height.clamp(max=grid[0]), width.clamp(max=grid[1])), grid)
        new = (block & ~hidden.unsqueeze(1)).sum((2, 3))
        good = fits & (new > 0) & (new <= left.unsqueeze(1)) & ~done.unsqueeze(1)
        first = block[torch.arange(len(block), device=block.device), good.int().argmax(1)]
        found = good.any(1)
        hidden = hidden | (first & found[:, None, None])
        done = (hidden.sum((1, 2)) >= count) | (done if patient else ~found)
    return hidden


@register("masker/beit_blocks")
class BEiTBlocks:
    """Hides growing rectangles of a grid (BEiT, Bao et al. 2021; BEiT v2, CAE, MaskDistill, iBOT, DINOv2).

    A rectangle may overlap others, but never hides more than is missing. A sample whose ratio is 0 hides nothing, asks
    for nothing, and is a row all the same.

    Args:
        ratio: share of tokens that are hidden, in [0, 1): of n tokens int(n ratio); or a part that draws one for each
            sample, such as `ratio/sometimes` (iBOT) or `ratio/spread` (DINOv2).
        smallest: least area of a rectangle in tokens: 16 in BEiT, 4 in DINOv2; null takes the square of a third of the
            shorter side, rounded down (iBOT).
        aspect: least and greatest height over width.
        fill: how the count becomes exact where no rectangle fits any more: `random` hides single tokens (BEiT v2),
            `blocks` goes on trying (CAE), `none` leaves it below (iBOT, DINOv2), and n ratio unrounded.

    Raises:
        ValueError: for a ratio outside [0, 1), shapes that do not ascend from above 0, or another word; when called,
            for tokens without a grid of two axes.
    """

    def __init__(
        self,
        *,
        ratio: float | Ratio = 0.4,
        smallest: int | None = 16,
        aspect: Sequence[float] = (0.3, 1 / 0.3),
        fill: str = "random",
    ) -> None:
        if not callable(ratio):
            check_ratio(ratio)
        if fill not in ("random", "blocks", "none"):
            raise ValueError(f"masker.fill has to be 'random', 'blocks' or 'none' (got {fill!r})")
        self.ratio, self.smallest, self.fill = ratio, smallest, fill
        self.aspect = check_range("aspect", aspect, 0.0)

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        grid = two_axes(tokens, "masker/beit_blocks")
        n, b = grid[0] * grid[1], len(tokens.index)
        device = draws.keys.device
        if callable(self.ratio):
            count = self.ratio(draws.named("ratio"), b).double() * n
        else:
            count = torch.full((b,), n * self.ratio, dtype=torch.float64, device=device)
        count = count if self.fill == "none" else (count + 1e-9).floor()
        smallest = (min(grid) // 3) ** 2 if self.smallest is None else self.smallest
        hidden = grow(draws, count, grid, smallest, self.aspect, self.fill == "blocks").flatten(1)
        whole = self.fill != "none" and tokens.valid is None
        if self.fill != "none":
            # blocks first, chance within: the count cuts some off, or reaches into the rest
            rank = torch.where(hidden, 0.0, 1.0) + draws.named("rest").uniform(n)
            place = ordinal(rank)
            hidden = place < count.unsqueeze(1)
        hidden = hidden.to(tokens.raw.device)
        if tokens.valid is not None:
            return Mask(~hidden & tokens.valid, (hidden & tokens.valid).unsqueeze(1))
        asked = int(n * self.ratio + 1e-9) if whole and not callable(self.ratio) else None
        return Mask(~hidden, hidden.unsqueeze(1), None, None if asked is None else n - asked, asked)


@register("ratio/sometimes")
def sometimes(draws: Draws, rows: int, *, share: float = 0.5, low: float = 0.1, high: float = 0.5) -> Tensor:
    """Uniform in [low, high) with probability `share`, else 0, for each sample on its own (iBOT, Zhou et al. 2021).

    Args:
        draws: of the samples.
        rows: number of samples.
        share: probability that a sample is masked at all.
        low: least share of its tokens that is then hidden.
        high: greatest.
    """
    u = draws.uniform(2)
    return torch.where(u[:, 0] < share, low + (high - low) * u[:, 1], 0.0)


@register("ratio/spread")
def spread(draws: Draws, rows: int, *, share: float = 0.5, low: float = 0.1, high: float = 0.5) -> Tensor:
    """Exactly int(rows * share) samples are masked, their ratios spread evenly over [low, high) (DINOv2).

    The i-th of k masked samples, in random order, draws from the i-th of k equal parts of the range. What is counted is
    the batch of one look over all ranks. DINOv2's code counts both global crops of one rank together, and rounds the
    number of hidden tokens down.

    Args:
        draws: of the samples.
        rows: number of samples.
        share: share of the samples that are masked.
        low: least share of a masked sample's tokens that is hidden.
        high: greatest.
    """
    u = draws.uniform(2)
    everyone, first = ranks.gather(u[:, 0].contiguous()), ranks.offset(rows, u.device)
    masked = int(len(everyone) * share)
    turn = ordinal(everyone)[first : first + rows]
    ratio = low + (high - low) * (turn + u[:, 1]) / max(masked, 1)
    return torch.where(turn < masked, ratio, 0.0)
