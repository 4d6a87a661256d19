"""Maskers that hide or keep rectangles of a grid of tokens, and the one that asks another masker several times.

Blocks are drawn for all samples at once. Two axes of any meaning will do: rows and columns, time and frequency.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.masks import ordinal
from mmssl.parts.maskers import fewest
from mmssl.plan import Masker
from mmssl.registry import register
from mmssl.types import Mask, Tokens

TRIES = 20  # places a context block is tried at before one target stops constraining it, as in I-JEPA's code


def two_axes(tokens: Tokens, name: str) -> tuple[int, int]:
    """The two sides of the grid of tokens.

    Raises:
        ValueError: when there is no such grid.
    """
    if tokens.grid is None or len(tokens.grid) != 2 or tokens.packed:
        got = "a packed batch" if tokens.packed else f"the grid {tokens.grid}"
        raise ValueError(
            f"{name} needs whole tokens on a grid of two axes, such as patches of images or spectrograms (got {got}); "
            "for sequences and sets choose masker/random"
        )
    return tokens.grid[0], tokens.grid[1]


def check_range(name: str, pair: Sequence[float], low: float, high: float = float("inf")) -> tuple[float, float]:
    """Two ascending numbers within limits.

    Raises:
        ValueError: naming the key.
    """
    if len(pair) != 2 or not low < pair[0] <= pair[1] <= high:
        limit = f"above {low:g}" + ("" if high == float("inf") else f" and at most {high:g}")
        raise ValueError(f"masker.{name} has to be two ascending numbers {limit} (got {list(pair)})")
    return pair[0], pair[1]


def block_size(
    u: Tensor, grid: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Height and width of I-JEPA's block: one random number sets both its area and its shape, so they are coupled.

    Args:
        u: uniform in [0, 1), any shape.
        grid: tokens per axis.
        scale: least and greatest share of the grid.
        aspect: least and greatest height over width.

    Returns:
        Two int64 tensors of u's shape, at least 1 and smaller than the grid's sides.
    """
    u = u.double()
    area = (grid[0] * grid[1] * (scale[0] + (scale[1] - scale[0]) * u)).floor()
    shape = aspect[0] + (aspect[1] - aspect[0]) * u
    height, width = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    return height.long().clamp(1, max(grid[0] - 1, 1)), width.long().clamp(1, max(grid[1] - 1, 1))


def inside(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Which of the places 0 .. size - 1 lie in [start, start + length), (..., size) bool."""
    at = torch.arange(size, device=start.device)
    return (at >= start.unsqueeze(-1)) & (at < (start + length).unsqueeze(-1))


def rectangles(corner: Tensor, size: tuple[Tensor, Tensor], grid: tuple[int, int], reach: int = 1) -> Tensor:
    """Rectangles at uniform places, (..., height, width) bool.

    Args:
        corner: two uniform numbers in [0, 1) per rectangle, (..., 2).
        size: height and width, of a shape that fits (...).
        grid: tokens per axis.
        reach: 1 where a block may touch the far edge; 0 where it never does, as in I-JEPA's released code.
    """
    sides = []
    for axis, (side, length) in enumerate(zip(grid, size, strict=True)):
        start = (corner[..., axis] * (side - length + reach)).long()
        sides.append(inside(start, length.expand_as(start), side))
    return sides[0].unsqueeze(-1) & sides[1].unsqueeze(-2)


@register("masker/multiblock")
class MultiBlock:
    """Several target blocks, and one large context block without them (I-JEPA, Assran et al. 2023; A-JEPA).

    All target blocks of a step have one size and all context blocks another, whatever the ranks; places are each
    sample's own. The context is its block minus all targets. Where that leaves too few tokens, other places are tried,
    20 of them; then one target fewer constrains it, and so on.

    Args:
        targets: target blocks per sample; each is predicted on its own.
        scale: least and greatest share of the grid that a target block covers.
        aspect: least and greatest height over width of it; the same random number sets both.
        context: least and greatest share of the grid that the context block covers; it is a square.
        min_keep: a context has to have more tokens than this, if any place gives so many. Target blocks are what
            `scale` says.
        truncate: `batch_min` keeps the lowest places of each context, as many as the shortest of the whole batch has,
            so that nothing is padded (I-JEPA); `none` keeps all of them and pads.
        faithful: whether blocks never touch the last row and column, as in the released code, whose random places end
            one too early; with 14 x 14 tokens every context block then lies at (0, 0).

    Raises:
        ValueError: for ranges that do not ascend or lie outside their limits, or another word; when called, for tokens
            without a grid of two axes.
    """

    def __init__(
        self,
        *,
        targets: int = 4,
        scale: Sequence[float] = (0.15, 0.2),
        aspect: Sequence[float] = (0.75, 1.5),
        context: Sequence[float] = (0.85, 1.0),
        min_keep: int = 10,
        truncate: str = "batch_min",
        faithful: bool = True,
    ) -> None:
        if truncate not in ("batch_min", "none"):
            raise ValueError(f"masker.truncate has to be 'batch_min' or 'none' (got {truncate!r})")
        if targets < 1:
            raise ValueError(f"masker.targets has to be at least one block (got {targets})")
        self.targets, self.min_keep, self.truncate, self.faithful = targets, min_keep, truncate, faithful
        self.scale, self.context = check_range("scale", scale, 0.0, 1.0), check_range("context", context, 0.0, 1.0)
        self.aspect = check_range("aspect", aspect, 0.0)

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample, with `targets` blocks."""
        grid = two_axes(tokens, "masker/multiblock")
        reach = 0 if self.faithful else 1
        size = block_size(draws.named("target size").batch().uniform(1), grid, self.scale, self.aspect)
        blocks = rectangles(draws.named("targets").uniform(self.targets, 2), size, grid, reach)
        return self.around(tokens, draws, blocks, int(size[0] * size[1]))

    def around(self, tokens: Tokens, draws: Draws, blocks: Tensor, count: int | None) -> Mask:
        """The mask with these target blocks: a context is drawn that leaves them out.

        Args:
            tokens: the tokens, on a grid of two axes.
            draws: of the samples.
            blocks: (b, k, height, width) bool.
            count: number of tokens of every block where it is the same, else None.
        """
        grid = two_axes(tokens, "masker/multiblock")
        valid = None if tokens.valid is None else tokens.valid.to(blocks.device).unflatten(1, grid)
        visible, targets = self.outside(draws, blocks, grid, valid).flatten(1), blocks.flatten(2)
        visible, targets = visible.to(tokens.raw.device), targets.to(tokens.raw.device)
        if tokens.valid is not None:
            targets, count = targets & tokens.valid.unsqueeze(1), None
        if tokens.valid is not None or self.truncate == "none":
            return Mask(visible, targets, None, None, count)
        kept = ranks.smallest(int(visible.sum(1).min()), visible.device)
        return Mask(visible & (visible.cumsum(1) <= kept), targets, None, kept, count)

    def outside(self, draws: Draws, blocks: Tensor, grid: tuple[int, int], valid: Tensor | None = None) -> Tensor:
        """A context block for each sample without its targets and padding, (b, height, width) bool."""
        size = block_size(draws.named("context size").batch().uniform(1), grid, self.context, (1.0, 1.0))
        b, levels = len(blocks), blocks.shape[1] + 1
        free = torch.ones_like(blocks[:, 0])
        allowed = [free]
        for block in blocks.unbind(1):
            free = free & ~block
            allowed.insert(0, free)  # all targets constrain first, then one fewer at a time
        corner = draws.named("context").uniform(levels, TRIES, 2)
        tried = rectangles(corner, size, grid, 0 if self.faithful else 1) & torch.stack(allowed, 1).unsqueeze(2)
        tried = tried.reshape(b, levels * TRIES, *grid)
        if valid is not None:
            tried = tried & valid.unsqueeze(1)
        kept = tried.sum((2, 3))
        # the first that is large enough; where none is, the largest of those that most targets constrain
        enough = (kept > self.min_keep).int()
        level = torch.arange(levels, 0, -1, device=kept.device).repeat_interleave(TRIES)
        best = (kept + (kept > 0) * level * grid[0] * grid[1]).argmax(1)
        chosen = torch.where(enough.any(1), enough.argmax(1), best)
        return tried[torch.arange(b, device=chosen.device), chosen]


@register("masker/inverse_blocks")
class InverseBlocks:
    """Keeps small squares at random places and hides the rest, with an exact count (data2vec 2.0, Baevski et al. 2022).

    int(n (keep + adjust) / block^2) centres are drawn, with replacement, and the square around each is kept as far as
    it lies on the grid; single tokens are then hidden or kept at random until int(n keep) are visible. Of 196 tokens
    that makes 5 squares of 3 x 3 and 39 visible tokens.

    Args:
        keep: share of tokens that stay visible.
        adjust: what is added to that share for the number of squares, as they overlap and leave the grid.
        block: side of a square in tokens.

    Raises:
        ValueError: for a share outside (0, 1), or a side below 1; when called, for tokens without a grid of two axes.
    """

    def __init__(self, *, keep: float = 0.2, adjust: float = 0.07, block: int = 3) -> None:
        if not 0.0 < keep < 1.0 or block < 1:
            raise ValueError(
                f"masker.keep is the share of tokens that stay visible, in (0, 1), and masker.block a number of tokens "
                f"(got keep={keep:g}, block={block}); data2vec 2.0 keeps 0.2 in blocks of 3"
            )
        self.keep, self.adjust, self.block = keep, adjust, block

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        grid = two_axes(tokens, "masker/inverse_blocks")
        n = grid[0] * grid[1]
        centre = draws.named("centres").integers(0, n, int(n * (self.keep + self.adjust) / self.block**2))
        side = torch.full_like(centre, self.block)
        rows = inside(centre // grid[1] - self.block // 2, side, grid[0])
        columns = inside(centre % grid[1] - self.block // 2, side, grid[1])
        kept = (rows.unsqueeze(-1) & columns.unsqueeze(-2)).any(1).flatten(1)
        # kept squares first, chance within: the count cuts some of them off, or reaches into the rest
        rank = torch.where(kept, 0.0, 1.0) + draws.named("rest").uniform(n)
        if tokens.valid is not None:
            return self._ragged(rank.to(tokens.valid.device), tokens.valid)
        visible = fewest(rank, int(n * self.keep)).to(tokens.raw.device)
        return Mask(visible, ~visible.unsqueeze(1), None, int(n * self.keep), n - int(n * self.keep))

    def _ragged(self, rank: Tensor, valid: Tensor) -> Mask:
        """Each sample keeps its share of its own valid tokens; padding is neither visible nor asked for."""
        place = ordinal(rank.masked_fill(~valid, 3.0))
        table = torch.tensor([int(n * self.keep) for n in range(valid.shape[1] + 1)], device=valid.device)
        visible = place < table[valid.sum(1)].unsqueeze(1)
        return Mask(visible, (~visible & valid).unsqueeze(1))


@register("masker/several")
class Several:
    """Several masks of another masker for each sample (data2vec 2.0 takes 16): targets are computed once for all.

    The rows of a sample follow one another.

    Args:
        masker: the masker that is asked; its masks of one sample are drawn independently.
        count: masks per sample.

    Raises:
        ValueError: for a count below 1; when called, for a packed batch, which is one row.
    """

    def __init__(self, *, masker: Masker, count: int = 16) -> None:
        if count < 1:
            raise ValueError(f"masker.count is the number of masks per sample, at least 1 (got {count})")
        self.masker, self.count = masker, count

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks `count` rows per sample."""
        if tokens.packed:
            raise ValueError("masker/several needs samples of their own rows, and a packed batch is one row")
        masks = [self.masker(tokens, draws.named(f"copy {i}"), progress, score) for i in range(self.count)]
        assert all(mask.row is None for mask in masks), "masker/several asks a masker of one mask per sample"

        def join(name: str) -> Tensor | None:
            values = [getattr(mask, name) for mask in masks]
            return None if values[0] is None else torch.stack(values, 1).flatten(0, 1)

        def same(name: str) -> int | None:
            counts = {getattr(mask, name) for mask in masks}
            return counts.pop() if len(counts) == 1 else None

        visible, targets = join("visible"), join("targets")
        assert visible is not None and targets is not None
        row = torch.arange(len(tokens.index), device=visible.device).repeat_interleave(self.count)
        return Mask(
            visible, targets, row, same("visible_count"), same("target_count"), join("loss"), join("source"),
            join("elements"),
        )  # fmt: skip
