"""Maskers that know time from space: tokens lie on a grid of (time, row, column)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.parts.block_maskers import rectangles
from mmssl.parts.maskers import check_ratio, fewest
from mmssl.registry import register
from mmssl.types import Mask, Tokens


def _grid(tokens: Tokens, masker: str) -> tuple[int, int]:
    """Slices, and tokens of a slice."""
    if tokens.grid is None or len(tokens.grid) != 3:
        raise ValueError(
            f"{masker} needs tokens on a grid of (time, row, column), and these lie on {tokens.grid}; use masker/random"
        )
    return tokens.grid[0], tokens.grid[1] * tokens.grid[2]


@register("masker/tube")
class Tube:
    """Hides the same random places in every time slice (VideoMAE): nothing can be copied from the frame before.

    Of each slice of n tokens exactly int(ratio * n) are hidden.

    Args:
        ratio: share of the places that are hidden, in [0, 1).

    Raises:
        ValueError: for a ratio outside [0, 1); when called, for tokens that are not on a grid of time and space.
    """

    def __init__(self, *, ratio: float = 0.9) -> None:
        check_ratio(ratio)
        self.ratio = ratio

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        slices, places = _grid(tokens, "masker/tube")
        hide = int(self.ratio * places)
        hidden = fewest(draws.uniform(places), hide).to(tokens.raw.device).repeat(1, slices)
        return Mask(~hidden, hidden.unsqueeze(1), None, slices * (places - hide), slices * hide)


@register("masker/slices")
class Slices:
    """Hides whole time slices (frame masking; the time-only variant of MAE-ST).

    Of t slices exactly int(t * (1 - ratio)) stay visible.

    Args:
        ratio: share of the slices that are hidden, in [0, 1); MAE-ST's ablation has 0.75.

    Raises:
        ValueError: for a ratio outside [0, 1); when called, for one that hides every slice, and for tokens that are not
            on a grid of time and space.
    """

    def __init__(self, *, ratio: float = 0.75) -> None:
        check_ratio(ratio)
        self.ratio = ratio

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        slices, places = _grid(tokens, "masker/slices")
        keep = int(slices * (1 - self.ratio))
        if keep < 1:
            raise ValueError(
                f"masker.ratio={self.ratio:g} leaves none of {slices} time slices visible; set it to at most "
                f"{1 - 1 / slices:g}, or take more frames"
            )
        visible = fewest(draws.uniform(slices), keep).to(tokens.raw.device).repeat_interleave(places, 1)
        return Mask(visible, (~visible).unsqueeze(1), None, keep * places, (slices - keep) * places)


# Places of the blocks of one mask that are tried, where these hide everything.
_TRIES = 8


@register("masker/multiblock_tubes")
class MultiBlockTubes:
    """Hides the union of some rectangles through all time slices; the rest is the context (V-JEPA, Bardes et al. 2024).

    Each entry of `scales` is a mask of its own: every sample gets one row per entry, all samples' rows of the first
    entry in front. Of K = int(places * scale) places and a random aspect ratio a, a rectangle has round(sqrt(K a)) rows
    and round(sqrt(K / a)) columns, cut to the grid: one size for the whole batch on all ranks. Where rectangles lie is
    each sample's own; places that leave no context are drawn again.

    Args:
        scales: share of a slice that each rectangle of a mask covers: V-JEPA's short-range and long-range masks.
        blocks: rectangles of each mask.
        aspect: smallest and largest rows over columns.
        truncate: `batch_min` cuts both lists of a mask, context and targets, to the shortest of the whole batch; tokens
            count time first, so the latest go (V-JEPA). `none` keeps all and pads.

    Raises:
        ValueError: for other numbers of scales and blocks, or ranges; when called, for tokens that are not on a grid of
            time and space, and where a rectangle is the whole slice.
    """

    def __init__(
        self, *, scales: Sequence[float] = (0.15, 0.7), blocks: Sequence[int] = (8, 2),
        aspect: Sequence[float] = (0.75, 1.5), truncate: str = "batch_min",
    ) -> None:  # fmt: skip
        if not scales or len(scales) != len(blocks) or min(blocks) < 1 or not all(0.0 < s < 1.0 for s in scales):
            raise ValueError(
                "masker.scales and masker.blocks have to be equally many: shares in (0, 1), and numbers of rectangles "
                f"from 1 on (got {list(scales)} and {list(blocks)}); V-JEPA has [0.15, 0.7] and [8, 2]"
            )
        if not 0.0 < aspect[0] <= aspect[1]:
            raise ValueError(f"masker.aspect has to be two ascending positive numbers (got {list(aspect)})")
        if truncate not in ("batch_min", "none"):
            raise ValueError(f"masker.truncate has to be 'batch_min' or 'none' (got {truncate!r})")
        self.scales, self.blocks, self.truncate = tuple(scales), tuple(blocks), truncate
        self.aspect = (float(aspect[0]), float(aspect[1]))

    def size(self, rows: int, columns: int, scale: float, unit: float) -> tuple[int, int]:
        """Rows and columns of a rectangle, of one uniform number."""
        cells, aspect = int(rows * columns * scale), self.aspect[0] + (self.aspect[1] - self.aspect[0]) * unit
        height, width = round((cells * aspect) ** 0.5), round((cells / aspect) ** 0.5)
        return max(1, min(height, rows)), max(1, min(width, columns))

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks as many rows per sample as there are scales."""
        slices, _ = _grid(tokens, "masker/multiblock_tubes")
        assert tokens.grid is not None
        rows, columns = tokens.grid[1:]
        units = draws.batch().uniform(len(self.scales))[0].tolist()
        hidden = []
        for i, (scale, count, unit) in enumerate(zip(self.scales, self.blocks, units, strict=True)):
            size = self.size(rows, columns, scale, unit)
            if size == (rows, columns):
                raise ValueError(
                    f"masker.scales={list(self.scales)}: a rectangle of {scale:g} of {rows} x {columns} tokens can be "
                    "the whole slice, which leaves no context; lower it, or narrow masker.aspect"
                )
            hidden.append(self._union(draws.named(f"mask {i}"), count, size, (rows, columns)))
        targets = torch.stack(hidden).to(tokens.raw.device).repeat(1, 1, slices)
        return self._cut(~targets, targets)

    @staticmethod
    def _union(draws: Draws, count: int, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Places of a slice that are hidden, (b, rows * columns)."""
        corner = draws.uniform(_TRIES, count, 2)
        sides = (torch.tensor(size[0], device=corner.device), torch.tensor(size[1], device=corner.device))
        each = rectangles(corner, sides, grid).flatten(-2)
        tried = each.any(2)
        context = ~tried.all(2)
        chosen = tried[torch.arange(len(tried), device=tried.device), context.int().argmax(1)]
        # where no try left anything, one rectangle has to do
        return torch.where(context.any(1, keepdim=True), chosen, each[:, 0, 0])

    def _cut(self, visible: Tensor, targets: Tensor) -> Mask:
        """The mask of all rows; lists are cut to the shortest of each kind, (masks, b, n) flags."""
        kinds, b, n = visible.shape
        row = torch.arange(b, device=visible.device).repeat(kinds)
        if self.truncate == "none":
            return Mask(visible.flatten(0, 1), targets.reshape(-1, 1, n), row)
        counts = torch.stack([visible.sum(2).amin(1), targets.sum(2).amin(1)]).tolist()
        kept = [[ranks.smallest(count, visible.device) for count in line] for line in counts]
        cut = []
        for flags, line in zip((visible, targets), kept, strict=True):
            limit = torch.tensor(line, device=flags.device)[:, None, None]
            cut.append(flags & (flags.cumsum(2) <= limit))
        same = [line[0] if len(set(line)) == 1 else None for line in kept]
        return Mask(cut[0].flatten(0, 1), cut[1].reshape(-1, 1, n), row, same[0], same[1])
