"""Maskers that ask for visible tokens beside hidden ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from mmssl.draws import Draws
from mmssl.masks import ordinal
from mmssl.registry import register
from mmssl.types import Mask, Tokens


@register("masker/seen_too")
class SeenToo:
    """What another masker hides, and a random share of the visible tokens that is asked for as well (CCViT).

    Of n tokens int(n share) more are asked for, at most all that are visible; a corruptor may alter them.

    Args:
        masker: says what is hidden.
        share: of all tokens, in [0, 1).

    Raises:
        ValueError: for another share; when called, for a mask with several blocks.
    """

    def __init__(self, *, masker: Callable[..., Mask], share: float = 0.1) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"masker.share has to be at least 0 and below 1 (got {share:g})")
        self.masker, self.share = masker, share

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks as the other masker does."""
        mask = self.masker(tokens, draws.named("hidden"), progress, score)
        if mask.targets.shape[1] != 1:
            raise ValueError("masker/seen_too takes a masker with one target block, such as masker/beit_blocks")
        n = mask.visible.shape[1]
        own = draws.named("seen") if mask.row is None else draws.named("seen").rows(mask.row)
        seen = mask.visible
        if tokens.valid is not None:
            seen = seen & (tokens.valid if mask.row is None else tokens.valid[mask.row])
        noise = own.uniform(n).to(seen.device).masked_fill(~seen, 2.0)
        count = int(n * self.share + 1e-9)
        rank = ordinal(noise)
        more = (rank < count) & seen
        known = mask.target_count is not None and mask.visible_count is not None and tokens.valid is None
        total = (mask.target_count or 0) + min(count, mask.visible_count or 0) if known else None
        return replace(mask, targets=mask.targets | more.unsqueeze(1), target_count=total)
