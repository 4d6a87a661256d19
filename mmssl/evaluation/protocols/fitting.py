"""How probes of tokens are fitted: AdamW over shuffled batches, the same whatever else has drawn random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.draws import shuffle
from mmssl.evaluation.features import untouched
from mmssl.evaluation.splits import stratified
from mmssl.evaluation.tokens import TokenFeatures

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Of the probe, its answers (b, c) and the classes (b,): what is minimised."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of modules follow from the seed alone, and the generators are as before afterwards."""
    with untouched():
        torch.manual_seed(seed)
        yield


def fit(
    make: Callable[[], nn.Module],
    train: TokenFeatures,
    y: Tensor,
    loss: Loss,
    groups: Callable[[nn.Module], list[dict[str, Any]]],
    *,
    epochs: int,
    batch: int,
    clip: float,
    seed: int = 0,
) -> nn.Module:
    """A probe after some epochs, its rates cosine-decayed to 0 after a tenth of warm-up.

    Args:
        make: builds the probe; it draws its weights from torch's generator.
        train: tokens.
        y: classes from 0 on, (n,).
        loss: what is minimised.
        groups: parameter groups for AdamW, with their peak rates.
        epochs: passes over the data.
        batch: samples of a step.
        clip: limit on the length of the gradient.
        seed: of weights and order.
    """
    with seeded(seed), torch.inference_mode(False), torch.enable_grad():
        probe = make()
        optimizer = torch.optim.AdamW(groups(probe))
        peaks = [group["lr"] for group in optimizer.param_groups]
        steps = epochs * math.ceil(len(train) / batch)
        step = 0
        for epoch in range(epochs):
            for rows in shuffle(len(train), seed, epoch).split(batch):
                rate = min(1.0, (step + 1) / max(1, steps // 10)) * 0.5 * (1 + math.cos(math.pi * step / steps))
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * rate
                part = train.where(rows)
                value = loss(probe, probe(part), y[rows])
                optimizer.zero_grad()
                value.backward()
                nn.utils.clip_grad_norm_(probe.parameters(), clip)
                optimizer.step()
                step += 1
        return probe.eval()


def predict(probe: nn.Module, features: TokenFeatures, batch: int = 256) -> Tensor:
    """The answer with the highest value of each sample, (n,) int64."""
    with torch.inference_mode():
        parts = torch.arange(len(features)).split(batch)
        return torch.cat([probe(features.where(rows)).argmax(1) for rows in parts])


def choose(
    settings: Sequence[Mapping[str, float]],
    train: TokenFeatures,
    y: Tensor,
    holdout: float,
    fitted: Callable[[Mapping[str, float], TokenFeatures, Tensor], nn.Module],
) -> dict[str, Any]:
    """The setting whose probe does best on a held-out part of the training set, of equals the first.

    Args:
        settings: what to choose from.
        train: tokens.
        y: classes from 0 on, (n,).
        holdout: share of each class that is held out.
        fitted: the probe of a setting, fitted on some samples.

    Returns:
        The setting, and `holdout_top1`; null where there was nothing to choose, or nothing can be held out.
    """
    held = stratified(y, holdout)
    if len(settings) == 1 or not bool(held.any()):
        return {**settings[0], "holdout_top1": None}
    part, rest = train.where(~held), train.where(held)
    found = [float((predict(fitted(s, part, y[~held]), rest) == y[held]).double().mean()) for s in settings]
    return {**settings[found.index(max(found))], "holdout_top1": max(found)}
