"""A-JEPA's masks: bands of time and frequency, and the curriculum that leads from blocks to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.parts.block_maskers import block_size, check_range, rectangles, two_axes
from mmssl.plan import Masker
from mmssl.registry import register
from mmssl.types import Mask, Tokens

# Places of blocks that are tried.
_TRIES = 20


@register("schedule/competence")
def competence(progress: float, *, first: float = 0.01) -> float:
    """min(1, sqrt(p (1 - first^2) + first^2)): fast at the beginning (Platanios et al. 2019; A-JEPA's curriculum).

    Args:
        progress: share of training done, p.
        first: value at the first step.
    """
    return min(1.0, math.sqrt(progress * (1.0 - first**2) + first**2))


@register("masker/mixture")
class Mixture:
    """One of two maskers in each step, by one throw for the whole batch on all ranks (A-JEPA, Fei et al. 2023).

    Args:
        first: a masker.
        second: another, which is asked with probability `share`.
        share: that probability, a number or a schedule of progress.

    Raises:
        ValueError: for a number that is no probability.
    """

    def __init__(self, *, first: Masker, second: Masker, share: float | Callable[[float], float] = 0.5) -> None:
        if not callable(share) and not 0.0 <= share <= 1.0:
            raise ValueError(f"masker.share is a probability, between 0 and 1, or a schedule (got {share:g})")
        self.first, self.second, self.share = first, second, share

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """The mask of the masker that is chosen."""
        share = self.share(progress) if callable(self.share) else self.share
        if float(draws.named("mixture").batch().uniform(1)) < share:
            return self.second(tokens, draws.named("second"), progress, score)
        return self.first(tokens, draws.named("first"), progress, score)


@register("masker/multiblock_bands")
class MultiBlockBands:
    """Target blocks drawn out over all times, all frequencies or both; a context block without them (A-JEPA).

    Block sizes are drawn once per step, places for each sample, as by masker/multiblock. In each step all target blocks
    are drawn out in one way: `time`, to all steps of the rows that they touch; `frequency`, to all rows of the steps
    that they touch; or `both`, the union of the two. Where places leave too little they are drawn again; after 20
    tries all targets lie at one place. The context block has the grid's own shape; where none of 20 places has enough
    that is no target, all of that is the context.

    Args:
        targets: target blocks per sample; each is predicted on its own.
        scale: least and greatest share of the grid that a block covers before it is drawn out.
        aspect: least and greatest steps over rows of it; the same random number sets both.
        ways: which ways are drawn from, all equally likely.
        context: least and greatest share of the grid that the context block covers.
        min_keep: a context has to have more tokens than this.
        truncate: `batch_min` keeps the lowest places of each context, as many as the shortest of the whole batch has;
            `none` keeps all of them and pads.

    Raises:
        ValueError: for ranges that do not ascend or lie outside their limits, or other words; when called, for tokens
            without a grid of two axes.
    """

    def __init__(
        self, *, targets: int = 3, scale: Sequence[float] = (0.05, 0.075), aspect: Sequence[float] = (0.75, 1.5),
        ways: Sequence[str] = ("time", "frequency", "both"), context: Sequence[float] = (0.85, 1.0),
        min_keep: int = 10, truncate: str = "batch_min",
    ) -> None:  # fmt: skip
        if not ways or not set(ways) <= {"time", "frequency", "both"}:
            raise ValueError(f"masker.ways has to be some of time, frequency and both (got {list(ways)})")
        if truncate not in ("batch_min", "none"):
            raise ValueError(f"masker.truncate has to be 'batch_min' or 'none' (got {truncate!r})")
        if targets < 1:
            raise ValueError(f"masker.targets has to be at least one block (got {targets})")
        self.targets, self.ways, self.min_keep, self.truncate = targets, tuple(ways), min_keep, truncate
        self.scale, self.context = check_range("scale", scale, 0.0, 1.0), check_range("context", context, 0.0, 1.0)
        self.aspect = check_range("aspect", aspect, 0.0)

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample, with `targets` targets."""
        grid = two_axes(tokens, "masker/multiblock_bands")
        valid = None if tokens.valid is None else tokens.valid.to(draws.keys.device).unflatten(1, grid)
        bands, count = self._bands(draws, grid, valid)
        free = ~bands.any(1) if valid is None else ~bands.any(1) & valid
        context = self._context(draws, free, grid)
        visible, targets = context.flatten(1).to(tokens.raw.device), bands.flatten(2).to(tokens.raw.device)
        if tokens.valid is not None:
            return Mask(visible, targets & tokens.valid.unsqueeze(1))
        if self.truncate == "none":
            return Mask(visible, targets, None, None, count)
        kept = ranks.smallest(int(visible.sum(1).min()), visible.device)
        return Mask(visible & (visible.cumsum(1) <= kept), targets, None, kept, count)

    def _bands(self, draws: Draws, grid: tuple[int, int], valid: Tensor | None) -> tuple[Tensor, int]:
        """The targets (b, k, steps, rows), and how many tokens each has."""
        size = block_size(draws.named("target size").batch().uniform(1), grid, self.scale, self.aspect)
        way = self.ways[int(draws.named("way").batch().integers(0, len(self.ways), 1))]
        corner = draws.named("targets").uniform(_TRIES + 1, self.targets, 2)
        corner[:, -1] = corner[:, -1, :1]
        blocks = rectangles(corner, size, grid)
        over_time = blocks.any(-2, keepdim=True).expand_as(blocks)
        over_rows = blocks.any(-1, keepdim=True).expand_as(blocks)
        bands = over_time if way == "time" else over_rows if way == "frequency" else over_time | over_rows
        free = ~bands.any(2) if valid is None else ~bands.any(2) & valid.unsqueeze(1)
        enough = (free.sum((2, 3)) > self.min_keep).int()
        enough[:, -1] = 1
        chosen = bands[torch.arange(len(bands), device=bands.device), enough.argmax(1)]
        height, width = int(size[0]), int(size[1])
        counts = {"time": grid[0] * width, "frequency": height * grid[1]}
        return chosen, (counts | {"both": sum(counts.values()) - height * width})[way]

    def _context(self, draws: Draws, free: Tensor, grid: tuple[int, int]) -> Tensor:
        """A block of each sample without its targets, (b, steps, rows)."""
        unit = draws.named("context size").batch().uniform(1).double()
        side = (self.context[0] + (self.context[1] - self.context[0]) * unit).sqrt()
        size = tuple((side * length).round().long().clamp(1, length) for length in grid)
        corner = draws.named("context").uniform(_TRIES, 2)
        tried = rectangles(corner, (size[0], size[1]), grid) & free.unsqueeze(1)
        tried = torch.cat([tried, free.unsqueeze(1)], 1)
        enough = (tried.sum((2, 3)) > self.min_keep).int()
        enough[:, -1] = 1
        return tried[torch.arange(len(tried), device=tried.device), enough.argmax(1)]
