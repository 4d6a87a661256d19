"""Maskers that hide by a score, which the guide of the look gives each token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.masks import ordinal
from mmssl.parts.maskers import check_ratio, fewest
from mmssl.parts.norms import Schedule, at
from mmssl.parts.schedules import linear
from mmssl.registry import register
from mmssl.types import Mask, Tokens


def scored(tokens: Tokens, score: Tensor | None, masker: str) -> Tensor:
    """The score of whole samples of equal length, (b, n).

    Raises:
        ValueError: without a guide, or for samples of unequal length.
    """
    if score is None:
        raise ValueError(f"{masker} hides by a score, and this look has no guide; give one, such as guide/attention")
    if tokens.packed or tokens.valid is not None:
        raise ValueError(f"{masker} needs samples of equal length, without padding; use masker/random")
    return score.detach()


@register("masker/guided")
class Guided:
    """Hides the tokens that score highest, and others at random: more and more of the former (HPM: easy to hard).

    Of n tokens int(n (1 - ratio)) stay visible. Of those hidden, int(hidden * share) are the highest ones.

    Args:
        ratio: share of tokens that are hidden, in [0, 1).
        share: share of the hidden ones that follow the score, a number or a schedule over progress; null goes from 0 to
            0.5 in a straight line.

    Raises:
        ValueError: for a ratio outside [0, 1), a share outside [0, 1]; when called, without a guide, or for padding.
    """

    def __init__(self, *, ratio: float = 0.75, share: float | Schedule | None = None) -> None:
        check_ratio(ratio)
        self.ratio = ratio
        self.share: float | Schedule = partial(linear, first=0.0, last=0.5) if share is None else share
        for progress in (0.0, 1.0):
            if not 0.0 <= at(self.share, progress) <= 1.0:
                raise ValueError(f"masker.share has to stay in [0, 1] (got {at(self.share, progress):g})")

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        score = scored(tokens, score, "masker/guided")
        n = score.shape[1]
        keep = int(n * (1 - self.ratio))
        hard = int((n - keep) * at(self.share, progress))
        place = ordinal(score, descending=True)
        order = draws.uniform(n).to(score.device).masked_fill(place < hard, 2.0)
        visible = fewest(order, keep)
        return Mask(visible, ~visible.unsqueeze(1), None, keep, n - keep)


@register("masker/attended")
class Attended:
    """Hides what is looked at most or least (AttMask, Kakogeorgiou et al. 2022), of some samples only.

    One ratio is drawn for the look's whole batch. Of n tokens k = int(n ratio) are hidden: the highest scores (`high`),
    the lowest (`low`), or the highest but for int(show n ratio) of them, drawn from the int(show n) highest (`hints`).

    Args:
        hide: high, low or hints.
        ratio: least and greatest share of the tokens that are hidden.
        share: probability that a sample is masked at all.
        show: see above.

    Raises:
        ValueError: for another word, shares outside [0, 1) or that do not ascend; when called, without a guide, or for
            padding.
    """

    def __init__(
        self, *, hide: str = "hints", ratio: Sequence[float] = (0.1, 0.5), share: float = 0.5, show: float = 0.1
    ) -> None:
        if hide not in ("high", "low", "hints"):
            raise ValueError(f"masker.hide has to be 'high', 'low' or 'hints' (got {hide!r})")
        if len(ratio) != 2 or not 0.0 <= ratio[0] <= ratio[1] < 1.0:
            raise ValueError(f"masker.ratio has to be two ascending shares in [0, 1) (got {list(ratio)})")
        if not (0.0 <= share <= 1.0 and 0.0 <= show <= 1.0):
            raise ValueError(f"masker.share and masker.show are shares in [0, 1] (got {share:g} and {show:g})")
        self.hide, self.ratio, self.share, self.show = hide, (ratio[0], ratio[1]), share, show

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        score = scored(tokens, score, "masker/attended")
        n = score.shape[1]
        low, high = self.ratio
        ratio = low + (high - low) * draws.named("ratio").batch().uniform(1)[0, 0].double().to(score.device)
        place = ordinal(score, descending=self.hide != "low")
        hidden = place < (n * ratio).long()
        if self.hide == "hints":
            chance = draws.named("hints").uniform(n).to(score.device).masked_fill(place >= int(self.show * n), 2.0)
            shown = ordinal(chance) < (self.show * ratio * n).long()
            hidden = hidden & ~shown
        hidden = hidden & (draws.named("sample").uniform(1).to(score.device) < self.share)
        return Mask(~hidden, hidden.unsqueeze(1))


@register("masker/sampled")
class Sampled:
    """Keeps tokens drawn by their scores without replacement: high ones are likely seen (MaskAlign, AdaMAE).

    Of n tokens int(n (1 - ratio)) stay visible. By the Gumbel trick: those with the greatest log weight plus noise.

    Args:
        ratio: share of tokens that are hidden, in [0, 1).
        log: whether scores are logarithms of weights, of any sum, and not weights.

    Raises:
        ValueError: for a ratio outside [0, 1); when called, without a guide, or for padding.
    """

    def __init__(self, *, ratio: float = 0.7, log: bool = False) -> None:
        check_ratio(ratio)
        self.ratio, self.log = ratio, log

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        score = scored(tokens, score, "masker/sampled")
        n = score.shape[1]
        keep = int(n * (1 - self.ratio))
        key = -torch.log(-torch.log(draws.uniform(n).to(score.device))) + (score if self.log else score.log())
        visible = fewest(-key, keep)
        return Mask(visible, ~visible.unsqueeze(1), None, keep, n - keep)
