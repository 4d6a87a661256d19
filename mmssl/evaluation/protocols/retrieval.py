"""Retrieval of samples of the same class by frozen features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmssl.evaluation.features import Features
from mmssl.evaluation.protocols.score import Score, averaged, check
from mmssl.registry import register

_CHUNK = 1 << 23  # similarities sorted at once


@register("protocol/retrieval")
class Retrieval:
    """Retrieval by cosine similarity: mean average precision of the whole ranking, and recall at 1. Nothing is fitted.

    Queries are the test samples, the gallery the training samples; a gallery sample is relevant where it has the
    query's class. A query without a relevant sample scores 0. Of equal similarities the earlier row comes first.

    Args:
        k: recall is that of one relevant sample among so many nearest.
    """

    needs = "pooled"

    def __init__(self, *, k: int = 1) -> None:
        if k < 1:
            raise ValueError(f"protocol/retrieval needs k of 1 or more (got {k})")
        self.k = k

    def __call__(self, train: Features, test: Features) -> Score:
        """Mean average precision, with recall at k beside it."""
        check("protocol/retrieval", train, test)
        gallery, query = normalize(train.x.float(), dim=1), normalize(test.x.float(), dim=1)
        step, k = max(1, _CHUNK // len(train)), min(self.k, len(train))
        found = [
            _ranked(query[i : i + step] @ gallery.T, test.y[i : i + step], train.y, k)
            for i in range(0, len(query), step)
        ]
        precision, recall = (torch.cat(parts) for parts in zip(*found, strict=True))
        chosen = {"gallery": len(train), "k": k}
        return averaged("map", precision, chosen, also={f"recall_at_{k}": averaged(f"recall_at_{k}", recall, chosen)})


def _ranked(similar: Tensor, wanted: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Average precision and whether one of the k nearest is relevant, of each query (q,)."""
    relevant = y[torch.argsort(similar, dim=1, descending=True, stable=True)] == wanted.unsqueeze(1)
    hits = relevant.cumsum(1)
    precision = hits.double() / torch.arange(1, len(y) + 1)
    average = (precision * relevant).sum(1) / hits[:, -1].clamp(min=1)
    return average, relevant[:, :k].any(1).double()
