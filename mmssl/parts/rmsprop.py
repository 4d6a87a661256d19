"""RMSprop as recipes name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from mmssl.parts.optim import Optim
from mmssl.registry import register

Schedule = Callable[[float], float]


@register("optim/rmsprop")
def rmsprop(
    *,
    lr: float | None = None,
    base_lr: float | None = None,
    base_batch: int = 256,
    smoothing: float = 0.9,
    eps: float = 1e-7,
    momentum: float = 0.0,
    weight_decay: float | Schedule = 0.0,
    schedule: Schedule | None = None,
    layer_decay: float = 1.0,
    clip: float | None = None,
    no_decay: Sequence[str] = (),
    decay_all: bool = True,
    rules: Mapping[str, Mapping[str, float]] | None = None,
) -> Optim:
    """RMSprop (Tieleman and Hinton 2012), with the constants of Keras (VIME). See `Optim` for the arguments."""
    make = partial(torch.optim.RMSprop, alpha=smoothing, eps=eps, momentum=momentum)
    given = (lr, base_lr, base_batch, weight_decay, schedule, layer_decay, clip, no_decay, rules or {}, decay_all)
    return Optim(make, *given)
