"""What a protocol finds: a score, what it is on resampled test sets, and what belongs to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from mmssl.evaluation.bootstrap import Statistic, mean, percentiles, resampled
from mmssl.evaluation.features import Features
from mmssl.evaluation.segments import SegmentFeatures
from mmssl.evaluation.tokens import TokenFeatures

Rows = Features | TokenFeatures | SegmentFeatures
"""What probes are fitted and scored on."""


@dataclass(frozen=True)
class Score:
    """What a protocol found.

    Args:
        metric: what `value` is, for instance `top1`.
        value: the score on the test set.
        resampled: the score on resampled test sets, (k, resamples); k repeats, with other seeds or labels.
        n: what was resampled, the number of test samples (or episodes, or pairs).
        chosen: the hyper-parameters that were used or selected.
        correct: where the value is a mean, the result on each test sample, (n,) float32; else None.
        lower: whether less is better, as of an error.
        also: further metrics of the same answers, by name.
        curve: further scores along something that was varied, each with `at`, what it was varied to.
    """

    metric: str
    value: float
    resampled: Tensor
    n: int
    chosen: dict[str, Any]
    correct: Tensor | None = None
    lower: bool = False
    also: Mapping[str, Score] = field(default_factory=dict)
    curve: Sequence[Score] = ()

    @cached_property
    def ci95(self) -> tuple[float, float]:
        """Its 95 % bootstrap interval over test samples; repeats are pooled."""
        return percentiles(self.resampled)


class Probe(Protocol):
    """The signature of a protocol.

    A class attribute `needs` says what it is fitted and scored on, one of `mmssl.evaluation.material.NEEDS`; `pooled`
    where there is none.
    """

    def __call__(self, train: Any, test: Any) -> Score:
        """Fits on `train`, scores on `test`."""
        ...


def scored(
    metric: str, statistic: Statistic, n: int, chosen: dict[str, Any], *, centred: bool = False, **more: Any
) -> Score:
    """A score and its bootstrap, from the statistic that it is.

    Args:
        metric: its name.
        statistic: the score as a function of the test samples.
        n: number of test samples.
        chosen: hyper-parameters.
        centred: takes off the bias of resampling (Efron and Tibshirani 1993, 10.3), for statistics such as mutual
            information that repeated samples raise: the resampled scores are moved to have the score as their mean.
        more: further fields of `Score`.
    """
    value = statistic(torch.arange(n).unsqueeze(0)).to(torch.float64)
    spread = resampled(statistic, n)
    if centred:
        spread = spread - spread.nanmean() + value.mean()
    return Score(metric, float(value.mean()), spread, n, chosen, **more)


def averaged(metric: str, results: Tensor, chosen: dict[str, Any], **more: Any) -> Score:
    """The score that is the mean of results per test sample, (n,), or of several such rows, (k, n)."""
    correct = results if results.dim() == 1 else None
    return scored(metric, mean(results), results.shape[-1], chosen, correct=correct, **more)


def top1(predicted: Tensor, test: Features | TokenFeatures, chosen: dict[str, Any]) -> Score:
    """The score of predicted labels (n_test,): the share that is right."""
    return averaged("top1", (predicted == test.y).float(), chosen)


def check(name: str, train: Rows, test: Rows) -> None:
    """Refuses features that no probe can score.

    Raises:
        ValueError: where a set is empty, a row has no label or is not finite, or the widths differ.
    """
    for split, features in (("training", train), ("test", test)):
        if len(features) == 0:
            raise ValueError(f"{name}: the {split} set holds no labelled sample; give it labels, or another split.")
        if not bool(features.known().all()):
            raise ValueError(f"{name}: the {split} set holds rows without a label; use `Features.labelled()` first.")
        bad = int((~torch.isfinite(features.x.flatten(1)).all(1)).sum())
        if bad:
            raise ValueError(
                f"{name}: {bad} of {len(features)} {split} features are not finite: the encoder diverged, or its input "
                "holds NaN. Look at the loss in metrics.csv and lower optim.lr, or run `mmssl audit` on the data."
            )
    if train.x.shape[-1] != test.x.shape[-1]:
        raise ValueError(f"{name}: training features have width {train.x.shape[-1]}, test features {test.x.shape[-1]}.")
