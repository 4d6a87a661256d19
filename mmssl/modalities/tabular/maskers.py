"""Maskers that know of missing cells."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.parts.maskers import check_ratio
from mmssl.registry import register
from mmssl.types import Mask, Tokens


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
