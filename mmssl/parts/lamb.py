"""LAMB, for large batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from mmssl.parts.optim import Optim, Schedule
from mmssl.registry import register


@register("optim/lamb")
def lamb(
    *,
    lr: float | None = None,
    base_lr: float | None = None,
    base_batch: int = 256,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float | Schedule = 0.04,
    schedule: Schedule | None = None,
    layer_decay: float = 1.0,
    clip: float | None = None,
    no_decay: Sequence[str] = (),
    rules: Mapping[str, Mapping[str, float]] | None = None,
) -> Optim:
    """LAMB (You et al. 2020): AdamW whose steps are as long as what decays. See `Optim` for the arguments."""
    from timm.optim.lamb import Lamb

    first, second = betas
    make = partial(Lamb, betas=(first, second), eps=eps, max_grad_norm=None)  # `clip` bounds gradients already
    return Optim(make, lr, base_lr, base_batch, weight_decay, schedule, layer_decay, clip, no_decay, rules or {})
