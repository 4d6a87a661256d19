"""Maskers of spans of a sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.masks import ordinal
from mmssl.parts.maskers import check_ratio
from mmssl.registry import register
from mmssl.types import Mask, Tokens


@register("masker/spans")
class Spans:
    """Hides spans of a sequence that may overlap, as many tokens in every sample (wav2vec 2.0, HuBERT, data2vec).

    A sample of n tokens has int(n ratio / length + u) spans, u uniform in [0, 1), but at least `fewest`; they start at
    distinct tokens before n - length. So less than the ratio is hidden: 0.49 of 0.65, 0.57 of 0.8.

    Args:
        ratio: share of tokens in spans, if these did not overlap.
        length: tokens of a span.
        fewest: least number of spans.
        equal: whether samples with more hidden tokens than the fewest of the global batch show some of them, drawn at
            random, so that all hide equally many.

    Raises:
        ValueError: for a ratio outside [0, 1), or a length below 1.
    """

    def __init__(self, *, ratio: float = 0.65, length: int = 10, fewest: int = 2, equal: bool = True) -> None:
        check_ratio(ratio)
        if length < 1 or fewest < 0:
            raise ValueError(
                f"masker.length has to be at least 1 and masker.fewest at least 0 (got {length} and {fewest})"
            )
        self.ratio, self.length, self.fewest, self.equal = ratio, length, fewest, equal

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        b, n = tokens.index.shape
        device = tokens.raw.device
        valid = torch.ones(b, n, dtype=torch.bool, device=device) if tokens.valid is None else tokens.valid
        real = valid.sum(1)
        u = draws.named("count").uniform(1)[:, 0].to(device).double()
        spans = (real * (self.ratio / self.length) + u + 1e-9).long().clamp(min=self.fewest)
        room = torch.where(real - self.length > spans, real - self.length, spans + 1).clamp(max=n)
        open_ = torch.arange(n, device=device) < room.unsqueeze(1)
        starts = (_rank(draws.named("start").uniform(n).to(device), open_) < spans.unsqueeze(1)) & open_
        padded = F.pad(starts.float().unsqueeze(1), (self.length - 1, 0))
        hidden = (F.max_pool1d(padded, self.length, 1)[:, 0] > 0) & valid
        if not self.equal:
            return Mask(~hidden & valid, hidden.unsqueeze(1))
        count = ranks.smallest(int(hidden.sum(1).min()), device)
        hidden = hidden & (_rank(draws.named("equal").uniform(n).to(device), hidden) < count)
        seen = n - count if tokens.valid is None else None
        return Mask(~hidden & valid, hidden.unsqueeze(1), None, seen, count)


def _rank(noise: Tensor, among: Tensor) -> Tensor:
    """The place of each number in the ascending order of those of its row that are among the chosen."""
    return ordinal(noise.masked_fill(~among, 2.0))
