"""Mixup and CutMix: samples of a batch are mixed in pairs, and what labels they have with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.registry import register
from mmssl.types import View


@register("corruptor/mix")
class Mix(nn.Module):
    """Mixes each sample with its neighbour in the batch: mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    Samples 2 k and 2 k + 1 of the batch, which is shuffled, are partners: each keeps a share drawn from Beta(a, a), and
    the other gives the rest, as in timm's `pair` mode. What a pair draws is a function of its first sample and the
    epoch, so that ranks and resuming change nothing as long as a rank's share of the batch is even; a sample without
    a partner stays as it is.

    Args:
        mixup: a of mixup; 0 for none. 0.8 in MAE's fine-tuning.
        cutmix: a of CutMix; 0 for none. 1.0 in MAE's fine-tuning.
        switch: probability of CutMix where both are on.
        p: probability that a pair is mixed at all.

    Raises:
        ValueError: where both are 0, or a number is out of range.
    """

    on = "view"

    def __init__(self, *, mixup: float = 0.0, cutmix: float = 0.0, switch: float = 0.5, p: float = 1.0) -> None:
        super().__init__()
        if mixup < 0 or cutmix < 0 or mixup + cutmix == 0:
            raise ValueError(f"corruptor/mix needs mixup or cutmix above 0 (got {mixup} and {cutmix})")
        for name, value in (("switch", switch), ("p", p)):
            if not 0 <= value <= 1:
                raise ValueError(f"corruptor/mix: {name} has to be between 0 and 1 (got {value})")
        self.mixup, self.cutmix, self.switch, self.p = mixup, cutmix, switch, p

    def forward(self, view: View, look: Any, draws: Draws) -> View:
        """The mixed samples; as they are outside of training."""
        return View(self._mix(view.data, draws)[0], view.modality) if self.training else view

    def mixed(self, view: View, draws: Draws) -> tuple[Tensor, Tensor]:
        """Of each sample the place of its partner, (b,) int64, and the share that it keeps itself, (b,)."""
        pairs = _Pairs(self, _dense(view.data, self.cutmix), draws)
        return pairs.partner, pairs.share

    def _mix(self, x: Any, draws: Draws) -> tuple[Tensor, _Pairs]:
        x = _dense(x, self.cutmix)
        pairs = _Pairs(self, x, draws)
        other = x[pairs.partner]
        share = pairs.blend.view(-1, *[1] * (x.dim() - 1))
        mixed = torch.lerp(other.to(share.dtype), x.to(share.dtype), share)
        mixed = mixed.round().to(x.dtype) if x.dtype == torch.uint8 else mixed.to(x.dtype)
        if pairs.inside is not None:
            inside = pairs.inside.view(len(x), *[1] * (x.dim() - 3), *x.shape[-2:])
            mixed = torch.where(inside, other, mixed)
        return mixed, pairs


class _Pairs:
    """What each sample of a batch draws: its partner, how both are blended, and the box that CutMix takes."""

    def __init__(self, said: Mix, x: Tensor, draws: Draws) -> None:
        b, device = len(x), x.device
        place = torch.arange(b, device=device)
        self.partner = torch.where(place ^ 1 < b, place ^ 1, place)
        first = draws.named("mix").rows(torch.minimum(place, self.partner))
        mixes, cuts, luck, top, left = first.uniform(5).unbind(1)
        mixes = (mixes < said.p) & (self.partner != place)
        cuts = torch.full_like(mixes, said.mixup == 0) if min(said.mixup, said.cutmix) == 0 else cuts < said.switch
        # the first of a pair keeps the share, and the second gives the same share to the first
        kept = torch.where(cuts, _beta(luck, said.cutmix), _beta(luck, said.mixup))
        ones = torch.ones_like(kept)
        self.blend = torch.where(mixes & ~cuts, kept, ones)
        self.share, self.inside = self.blend, None
        if said.cutmix > 0:
            self.inside, outside = _boxes(kept, top, left, *x.shape[-2:])
            self.inside &= (mixes & cuts).view(-1, 1, 1)
            self.share = torch.where(mixes & cuts, outside, self.blend)


def _beta(u: Tensor, a: float) -> Tensor:
    """Beta(a, a) numbers out of uniform ones, by the inverse of its distribution."""
    if a == 0:
        return torch.ones_like(u)
    from scipy.special import betaincinv

    found = betaincinv(a, a, u.double().cpu().numpy())
    return torch.from_numpy(np.asarray(found)).to(u.device, torch.float32)


def _boxes(kept: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes of share 1 - kept around a random place, cut at the border, (b, h, w) bool; and the share outside."""
    ratio = torch.sqrt(1 - kept)
    sides = [(ratio * size).long() for size in (height, width)]
    centres = [(luck * size).long() for luck, size in ((top, height), (left, width))]
    spans = []
    for centre, side, size in zip(centres, sides, (height, width), strict=True):
        at = torch.arange(size, device=kept.device)
        begin, end = centre - side // 2, centre + side // 2
        spans.append((at >= begin.unsqueeze(1)) & (at < end.unsqueeze(1)))
    inside = spans[0].unsqueeze(2) & spans[1].unsqueeze(1)
    return inside, 1 - inside.flatten(1).float().sum(1) / math.prod((height, width))


def _dense(x: Any, cutmix: float) -> Tensor:
    """The samples as a tensor; refused where they are none, or where there is nothing to cut."""
    if not isinstance(x, Tensor):
        raise ValueError(
            f"corruptor/mix mixes dense tensors, and samples of this modality are {type(x).__name__}; leave mixup and "
            "cutmix out"
        )
    if cutmix > 0 and x.dim() < 4:
        raise ValueError(f"corruptor/mix: cutmix cuts pictures, and a batch here is {tuple(x.shape)}; take mixup alone")
    return x
