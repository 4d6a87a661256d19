"""Maskers of columns; they know of missing cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.parts.maskers import check_ratio, fewest
from mmssl.registry import register
from mmssl.types import Mask, Tokens

_TRIES = 64


@register("masker/random_given")
class RandomGiven:
    """Hides a random share of the tokens, those that are missing by nature first (ReMasker, Du et al. 2024).

    int(n (1 - ratio)) of the tokens that are given stay visible. A row that has fewer shows those it has; the authors'
    code fills up with missing cells and trains on their placeholders. All others are asked for, and terms leave those
    that are missing by nature out of the loss.

    Args:
        ratio: share of all tokens that is hidden, in [0, 1).

    Raises:
        ValueError: for a ratio outside [0, 1).
    """

    def __init__(self, *, ratio: float = 0.5) -> None:
        check_ratio(ratio)
        self.ratio = ratio

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        n = tokens.index.shape[1]
        keep = int(n * (1 - self.ratio))
        noise, usable = draws.uniform(n).to(tokens.raw.device), usable_of(tokens)
        if usable is not None:
            noise = noise.masked_fill(~usable, 2.0)  # behind all others
        order = torch.argsort(noise, dim=1, stable=True)
        visible = torch.zeros_like(noise, dtype=torch.bool).scatter_(1, order[:, :keep], True)
        counts: tuple[int | None, int | None] = (keep, n - keep)
        if usable is not None:
            visible &= usable
            if tokens.valid is not None or bool((usable.sum(1) < keep).any()):
                counts = (None, None)
        asked = ~visible if tokens.valid is None else ~visible & tokens.valid
        return Mask(visible, asked.unsqueeze(1), None, *counts)


@register("masker/observed")
class Observed:
    """Shows all that is given and asks for all that is missing by nature: imputation (ReMasker)."""

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        usable = usable_of(tokens)
        if usable is None:
            usable = torch.ones_like(tokens.index, dtype=torch.bool)
        asked = ~usable if tokens.valid is None else ~usable & tokens.valid
        return Mask(usable, asked.unsqueeze(1))


def usable_of(tokens: Tokens) -> Tensor | None:
    """Which tokens are neither padding nor missing by nature, (b, n); None for all."""
    if tokens.valid is None or tokens.given is None:
        return tokens.given if tokens.valid is None else tokens.valid
    return tokens.valid & tokens.given


@register("masker/columns")
class Columns:
    """Shows a few columns and asks for other sets of columns (T-JEPA, Thimonier et al. 2024).

    How many are shown and how many each set holds is drawn once for a whole batch, whatever the ranks, uniformly from
    what the ranges allow together. Each row then shows columns of its own choice; every set is a random choice of the
    others, so that sets may overlap. What is missing by nature is chosen last, and never shown.

    Args:
        context: least and greatest share of the columns that is shown.
        target: least and greatest share of the columns in each set.
        blocks: number of sets.
        targets: `independent` sets, or `shared`: one set that is asked for `blocks` times, which is what the released
            code does, because all its sets are views of one array.

    Raises:
        ValueError: for ranges that do not ascend within [0, 1], no set, or another word; when called, where the least
            shares leave no room for one another.
    """

    def __init__(
        self,
        *,
        context: Sequence[float] = (0.13628, 0.36819),
        target: Sequence[float] = (0.15563, 0.62223),
        blocks: int = 4,
        targets: str = "independent",
    ) -> None:
        for key, pair in (("context", context), ("target", target)):
            if len(pair) != 2 or not 0 <= pair[0] <= pair[1] <= 1:
                raise ValueError(f"masker.{key} has to be two ascending shares of the columns (got {list(pair)})")
        if blocks < 1 or targets not in ("independent", "shared"):
            raise ValueError(
                f"masker.blocks has to be at least 1 and masker.targets 'independent' or 'shared' (got {blocks}, "
                f"{targets!r})"
            )
        self.context, self.target, self.blocks, self.targets = tuple(context), tuple(target), blocks, targets

    def counts(self, n: int, draws: Draws) -> tuple[int, int]:
        """How many of n columns are shown, and how many each set holds: round(low + (high - low) u) until both fit.

        Raises:
            ValueError: where they cannot fit.
        """
        ranges = [[max(1, round(share * n)) for share in pair] for pair in (self.context, self.target)]
        low = [pair[0] for pair in ranges]
        if sum(low) > n:
            raise ValueError(
                f"masker.context={list(self.context)} and masker.target={list(self.target)}: of {n} columns at least "
                f"{low[0]} would be shown and {low[1]} asked for, which are too many together; lower them"
            )
        for u in draws.named("counts").uniform(_TRIES, 2)[0].tolist():
            shown, asked = (first + round((last - first) * v) for (first, last), v in zip(ranges, u, strict=True))
            if shown + asked <= n:
                return shown, asked
        return low[0], low[1]

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample, with `blocks` sets of targets each."""
        n, device, usable = tokens.index.shape[1], tokens.index.device, usable_of(tokens)
        shown, asked = self.counts(n, draws.batch())
        noise = draws.named("context").uniform(n).to(device)
        if usable is not None:
            noise = noise.masked_fill(~usable, 2.0)
        visible = fewest(noise, shown)
        luck = draws.named("targets").uniform(1 if self.targets == "shared" else self.blocks, n).to(device)
        luck = luck.expand(-1, self.blocks, -1)
        if usable is not None:  # asked for last: a term leaves them out
            luck = luck.masked_fill(~usable.unsqueeze(1), 2.0)
        chosen = fewest(luck.masked_fill(visible.unsqueeze(1), 3.0).flatten(0, 1), asked)
        targets = chosen.unflatten(0, (-1, self.blocks))
        counts: tuple[int | None, int | None] = (shown, asked)
        if usable is not None:
            visible &= usable
            if tokens.valid is not None:
                targets &= tokens.valid.unsqueeze(1)
            if tokens.valid is not None or bool((usable.sum(1) < shown).any()):
                counts = (None, None if tokens.valid is not None else asked)
        return Mask(visible, targets, None, *counts)
