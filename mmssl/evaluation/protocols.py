"""Probes of frozen features: what a classifier of fixed recipe gets out of them. One class per protocol.

A protocol takes what a recipe may say as keyword arguments, and is called with (train, test) features. It sees the test
set once, after everything has been chosen on the training set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmssl.evaluation.bootstrap import interval
from mmssl.evaluation.features import Features
from mmssl.evaluation.logistic import Logistic, Scaler
from mmssl.evaluation.splits import stratified
from mmssl.registry import register

_CHUNK = 1 << 24  # similarities held at once: 64 MB


@dataclass(frozen=True)
class Score:
    """What a protocol found.

    Args:
        metric: what `value` is, for instance `top1`, between 0 and 1.
        value: the score on the test set.
        ci95: its 95 % bootstrap interval over test samples.
        chosen: the hyper-parameters that were used or selected.
        correct: the result on each test sample, (n_test,) float32; its mean is `value`.
    """

    metric: str
    value: float
    ci95: tuple[float, float]
    chosen: dict[str, Any]
    correct: Tensor


class Probe(Protocol):
    """The signature of a protocol."""

    def __call__(self, train: Features, test: Features) -> Score:
        """Fits on `train`, scores on `test`."""
        ...


def top1(predicted: Tensor, test: Features, chosen: dict[str, Any]) -> Score:
    """The score of predicted labels (n_test,): the share that is right."""
    correct = (predicted == test.y).float()
    return Score("top1", float(correct.double().mean()), interval(correct), chosen, correct)


def check(name: str, train: Features, test: Features) -> None:
    """Refuses features that no probe can score.

    Raises:
        ValueError: where a set is empty, a row has no label or is not finite, or the widths differ.
    """
    for split, features in (("training", train), ("test", test)):
        if len(features) == 0:
            raise ValueError(f"{name}: the {split} set holds no labelled sample; give it labels, or another split.")
        if bool((features.y < 0).any()):
            raise ValueError(f"{name}: the {split} set holds rows without a label; use `Features.labelled()` first.")
        bad = int((~torch.isfinite(features.x).all(1)).sum())
        if bad:
            raise ValueError(
                f"{name}: {bad} of {len(features)} {split} features are not finite: the encoder diverged, or its input "
                "holds NaN. Look at the loss in metrics.csv and lower optim.lr, or run `mmssl audit` on the data."
            )
    if train.x.shape[1] != test.x.shape[1]:
        raise ValueError(f"{name}: training features have width {train.x.shape[1]}, test features {test.x.shape[1]}.")


@register("protocol/knn")
class Knn:
    """Weighted k-nearest-neighbour vote on cosine similarity, as in Wu et al. (2018) and DINO's `eval_knn`.

    Unsupervised Feature Learning via Non-Parametric Instance Discrimination. Wu et al., 2018. arXiv:1805.01978, 3.4:
    each of the k nearest training samples votes for its class with exp(cosine / temperature). Nothing is fitted.

    Args:
        k: neighbours; all training samples where there are fewer.
        temperature: sharpness of the weights, above 0.
    """

    def __init__(self, *, k: int = 20, temperature: float = 0.07) -> None:
        if k < 1 or temperature <= 0:
            raise ValueError(f"protocol/knn needs k of 1 or more and temperature above 0 (got {k} and {temperature})")
        self.k, self.temperature = k, temperature

    def __call__(self, train: Features, test: Features) -> Score:
        """Top-1 accuracy of the vote on `test`."""
        check("protocol/knn", train, test)
        k = min(self.k, len(train))
        bank, query = normalize(train.x.float(), dim=1), normalize(test.x.float(), dim=1)
        step = max(1, _CHUNK // len(train))
        votes = [self._vote(query[i : i + step], bank, train.y, k) for i in range(0, len(query), step)]
        return top1(torch.cat(votes), test, {"k": k, "temperature": self.temperature})

    def _vote(self, query: Tensor, bank: Tensor, y: Tensor, k: int) -> Tensor:
        near, index = (query @ bank.T).topk(k, dim=1)
        # relative to the nearest, which changes no vote but keeps small temperatures from overflowing
        weight = torch.exp((near - near[:, :1]) / self.temperature)
        return weight.new_zeros(len(query), int(y.max()) + 1).scatter_add_(1, y[index], weight).argmax(1)


@dataclass(frozen=True)
class Fitted:
    """A fitted linear classifier.

    Args:
        scaler: standardises features.
        classes: label of each output, (c,) int64.
        weight: (d, c).
        bias: (c,).
    """

    scaler: Scaler
    classes: Tensor
    weight: Tensor
    bias: Tensor

    def predict(self, x: Tensor) -> Tensor:
        """Label of each row of (n, d), (n,) int64."""
        x = self.scaler(x)
        return self.classes[(x @ self.weight.to(x.dtype) + self.bias.to(x.dtype)).argmax(1)]


@register("protocol/linear")
class Linear:
    """Linear probe: multinomial logistic regression on standardised frozen features, as in Kornblith et al. (2019).

    Do Better ImageNet Models Transfer Better? Kornblith et al., 2019. arXiv:1805.08974: L-BFGS, with the penalty chosen
    on a held-out part of the training set and the fit repeated on all of it. Here the held-out part is stratified, the
    path runs warm-started from strong to weak penalties and ends once two in a row did worse; of equals the stronger
    is taken. Deterministic; the test set takes no part.

    Args:
        l2: penalties to choose from, in mean cross entropy + l2 / 2 * |W|^2, so that a value means the same for sets of
            any size (scikit-learn's C is 1 / (n * l2)). With one value nothing is held out.
        holdout: share of each class held out to choose the penalty.
        max_iter: limit on L-BFGS iterations of each fit.
        tolerance: largest gradient entry at which a fit ends.
    """

    def __init__(
        self,
        *,
        l2: Sequence[float] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
        holdout: float = 0.2,
        max_iter: int = 1000,
        tolerance: float = 1e-5,
    ) -> None:
        if len(l2) == 0 or min(l2) <= 0:
            raise ValueError(f"protocol/linear needs one or more l2, each above 0 (got {list(l2)})")
        if not 0 < holdout < 1:
            raise ValueError(f"protocol/linear needs holdout between 0 and 1 (got {holdout})")
        self.l2 = sorted(l2, reverse=True)
        self.holdout, self.max_iter, self.tolerance = holdout, max_iter, tolerance

    def __call__(self, train: Features, test: Features) -> Score:
        """Top-1 accuracy on `test` of the probe fitted on `train`."""
        check("protocol/linear", train, test)
        chosen = self._choose(train)
        fitted = next(self._path(train, [chosen["l2"]]))
        return top1(fitted.predict(test.x), test, chosen)

    def _choose(self, train: Features) -> dict[str, Any]:
        held = stratified(train.y, self.holdout)
        if len(self.l2) == 1 or not bool(held.any()):
            # with one sample a class nothing can be held out, and the strongest penalty errs on the safe side
            return {"l2": self.l2[0], "holdout_top1": None}
        rest = train.where(held)
        best, score, worse = self.l2[0], -1.0, 0
        for l2, fitted in zip(self.l2, self._path(train.where(~held), self.l2), strict=False):
            right = float((fitted.predict(rest.x) == rest.y).double().mean())
            worse = worse + 1 if right < score else 0
            if right > score:
                best, score = l2, right
            if worse == 2:
                break
        return {"l2": best, "holdout_top1": score}

    def _path(self, train: Features, penalties: Sequence[float]) -> Iterator[Fitted]:
        """Fits of each penalty in turn, made as they are asked for; each begins where the one before ended."""
        scaler = Scaler.fit(train.x)
        classes, y = torch.unique(train.y, return_inverse=True)
        problem = Logistic(scaler(train.x), y, len(classes))
        solution = None
        for l2 in penalties:
            solution = problem.fit(l2, start=solution, max_iter=self.max_iter, tolerance=self.tolerance)
            yield Fitted(scaler, classes, *solution)
