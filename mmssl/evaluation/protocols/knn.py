"""Nearest neighbours of frozen features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmssl.evaluation.features import Features
from mmssl.evaluation.protocols.score import Score, check, top1
from mmssl.registry import register

_CHUNK = 1 << 24  # similarities held at once: 64 MB


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
