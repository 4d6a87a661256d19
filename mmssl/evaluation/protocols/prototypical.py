"""Prototypical probe: what each class looks like, in a few places of feature space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmssl.evaluation.protocols.fitting import choose, fit, predict
from mmssl.evaluation.protocols.score import Score, check, top1
from mmssl.evaluation.tokens import TokenFeatures
from mmssl.registry import register


@register("protocol/prototypical")
class Prototypical:
    """Prototypical probe of Bird-MAE (Rauch et al., 2025, arXiv:2504.12880): a class is what some tokens look like.

    Each class has prototypes in feature space. A prototype answers with its largest cosine similarity to any token,
    rectified; a class sums its own prototypes' answers with weights that are not negative. The loss is the asymmetric
    loss of Ridnik et al. (2021, arXiv:2009.14119) over classes, plus a penalty that keeps a class's prototypes apart.
    Where the encoder has a class token it is taken off every token ("focal" features). The authors' bilinear
    up-sampling of the token map is left out, so that the probe serves tokens without a grid. Deterministic; the test
    set takes no part.

    Args:
        prototypes: of each class.
        lr: peak rate of the class weights; more than one to choose from.
        prototype_lr: peak rate of the prototypes; more than one to choose from.
        orthogonal: weight of the penalty.
        epochs: passes over the training set.
        batch: samples of a step.
        focal: whether the class token is taken off, where there is one.
        holdout: share of each class held out to choose.
        seed: of the prototypes and the order.
    """

    needs = "tokens"

    def __init__(
        self,
        *,
        prototypes: int = 20,
        lr: Sequence[float] = (3e-4,),
        prototype_lr: Sequence[float] = (0.04,),
        orthogonal: float = 1.0,
        epochs: int = 30,
        batch: int = 128,
        focal: bool = True,
        holdout: float = 0.2,
        seed: int = 0,
    ) -> None:
        if min(prototypes, epochs, batch) < 1 or orthogonal < 0 or not lr or not prototype_lr:
            raise ValueError(
                "protocol/prototypical needs prototypes, epochs and batch of 1 or more, orthogonal of 0 or more, and "
                f"one or more lr and prototype_lr (got {prototypes}, {epochs}, {batch}, {orthogonal}, {list(lr)} and "
                f"{list(prototype_lr)})"
            )
        if min(*lr, *prototype_lr) <= 0 or not 0 < holdout < 1:
            raise ValueError(
                "protocol/prototypical needs rates above 0 and holdout between 0 and 1 (got "
                f"{list(lr)}, {list(prototype_lr)} and {holdout})"
            )
        self.count, self.orthogonal, self.epochs, self.batch = prototypes, orthogonal, epochs, batch
        self.settings = [{"lr": rate, "prototype_lr": own} for rate, own in product(lr, prototype_lr)]
        self.focal, self.holdout, self.seed = focal, holdout, seed

    def __call__(self, train: TokenFeatures, test: TokenFeatures) -> Score:
        """Top-1 accuracy on `test` of the probe fitted on `train`."""
        check("protocol/prototypical", train, test)
        classes, y = torch.unique(train.y, return_inverse=True)
        train, test = (focal(part) if self.focal else part for part in (train, test))
        chosen = choose(self.settings, train, y, self.holdout, lambda s, x, t: self._fit(s, x, t, len(classes)))
        probe = self._fit(chosen, train, y, len(classes))
        return top1(classes[predict(probe, test)], test, chosen | {"prototypes": self.count})

    def _fit(self, setting: Mapping[str, Any], train: TokenFeatures, y: Tensor, classes: int) -> nn.Module:
        def loss(probe: Any, answers: Tensor, wanted: Tensor) -> Tensor:
            truth = nn.functional.one_hot(wanted, classes).to(answers.dtype)
            return asymmetric(answers, truth) + self.orthogonal * apart(probe.prototypes)

        def groups(probe: Any) -> list[dict[str, Any]]:
            return [
                {"params": [probe.prototypes], "lr": setting["prototype_lr"], "weight_decay": 0.0},
                {"params": [probe.weight, probe.bias], "lr": setting["lr"], "weight_decay": 1e-4},
            ]

        return fit(
            lambda: Prototypes(train.x.shape[-1], classes, self.count), train, y, loss, groups,
            epochs=self.epochs, batch=self.batch, clip=2.0, seed=self.seed,
        )  # fmt: skip


def focal(features: TokenFeatures) -> TokenFeatures:
    """Tokens less the class token of their sample; as they are where there is none."""
    if features.summary is None:
        return features
    return TokenFeatures(features.x - features.summary.unsqueeze(1), features.y, features.valid)


class Prototypes(nn.Module):
    """Class answers from the likeness of tokens to prototypes.

    Args:
        dim: d, width of the tokens.
        classes: c.
        count: j, prototypes of each class.
    """

    def __init__(self, dim: int, classes: int, count: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.rand(classes, count, dim))
        self.weight = nn.Parameter(torch.ones(classes, count))
        self.bias = nn.Parameter(torch.full((classes,), -2.0))

    def forward(self, features: TokenFeatures) -> Tensor:
        """Answers (b, c)."""
        alike = normalize(features.x.float(), dim=-1) @ normalize(self.prototypes, dim=-1).flatten(0, 1).T
        if features.valid is not None:
            alike = alike.masked_fill(~features.valid.unsqueeze(-1), -1.0)
        best = torch.relu(alike.amax(1)).unflatten(1, self.weight.shape)
        return (best * torch.relu(self.weight)).sum(2) + self.bias


def asymmetric(
    answers: Tensor, truth: Tensor, negative: float = 4.0, positive: float = 1.0, clip: float = 0.05
) -> Tensor:
    """Asymmetric loss (Ridnik et al. 2021) of logits (b, c) and truths of 0 and 1, mean over all.

    Cross entropy of each class, focused by (1 - p)^positive for what is there and p^negative for what is not, whose
    probability is lowered by `clip` first.
    """
    p = torch.sigmoid(answers)
    absent = (p - clip).clamp(min=0)
    there = (1 - p) ** positive * nn.functional.logsigmoid(answers)
    not_there = absent**negative * torch.log1p(-absent)
    return -(truth * there + (1 - truth) * not_there).mean()


def apart(prototypes: Tensor) -> Tensor:
    """How far the prototypes of each class are from orthogonal: |P P^T - I| / j^2 of unit rows, mean over classes."""
    unit = normalize(prototypes, dim=-1)
    gram = unit @ unit.transpose(1, 2) - torch.eye(unit.shape[1])
    return torch.linalg.matrix_norm(gram).mean() / gram[0].numel()
