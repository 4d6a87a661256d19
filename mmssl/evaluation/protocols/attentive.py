"""Attentive probe: one query asks all frozen tokens of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.evaluation.protocols.fitting import choose, fit, predict
from mmssl.evaluation.protocols.score import Score, check, top1
from mmssl.evaluation.tokens import TokenFeatures
from mmssl.registry import register


@register("protocol/attentive")
class Attentive:
    """Attentive probe: a cross-attention block with one learned query on frozen tokens, as in CAE and V-JEPA.

    Context Autoencoder for Self-Supervised Representation Learning. Chen et al., 2022. arXiv:2202.03026; V-JEPA, Bardes
    et al., 2024, arXiv:2404.08471: normalised tokens, a query, multi-head attention and an MLP with residuals, then a
    linear layer. Rate and decay are chosen on a held-out part of the training set and the fit is repeated on all of it.
    Deterministic; the test set takes no part. Features are standardised, so that rates mean the same for all encoders.

    Args:
        heads: attention heads; fewer where the width does not divide.
        mlp: width of the MLP over that of the tokens; 0 leaves it out, as CAE does.
        lr: peak rates of AdamW to choose from.
        weight_decay: decays to choose from.
        epochs: passes over the training set.
        batch: samples of a step.
        holdout: share of each class held out to choose.
        seed: of the probe's weights and the order.
    """

    needs = "tokens"

    def __init__(
        self,
        *,
        heads: int = 8,
        mlp: float = 4.0,
        lr: Sequence[float] = (3e-4, 1e-3),
        weight_decay: Sequence[float] = (0.01, 0.3),
        epochs: int = 20,
        batch: int = 128,
        holdout: float = 0.2,
        seed: int = 0,
    ) -> None:
        if heads < 1 or mlp < 0 or epochs < 1 or batch < 1 or not lr or min(lr) <= 0 or not weight_decay:
            raise ValueError(
                "protocol/attentive needs heads, epochs and batch of 1 or more, mlp of 0 or more, and one or more lr "
                f"above 0 and weight_decay (got {heads}, {epochs}, {batch}, {mlp}, {list(lr)}, {list(weight_decay)})"
            )
        if not 0 < holdout < 1:
            raise ValueError(f"protocol/attentive needs holdout between 0 and 1 (got {holdout})")
        self.heads, self.mlp, self.epochs, self.batch = heads, mlp, epochs, batch
        self.settings = [{"lr": rate, "weight_decay": decay} for rate, decay in product(lr, weight_decay)]
        self.holdout, self.seed = holdout, seed

    def __call__(self, train: TokenFeatures, test: TokenFeatures) -> Score:
        """Top-1 accuracy on `test` of the probe fitted on `train`."""
        check("protocol/attentive", train, test)
        classes, y = torch.unique(train.y, return_inverse=True)
        chosen = choose(self.settings, train, y, self.holdout, lambda s, x, t: self._fit(s, x, t, len(classes)))
        probe = self._fit(chosen, train, y, len(classes))
        return top1(classes[predict(probe, test)], test, chosen)

    def _fit(self, setting: Mapping[str, Any], train: TokenFeatures, y: Tensor, classes: int) -> nn.Module:
        mean, std = moments(train)

        def groups(probe: nn.Module) -> list[dict[str, Any]]:
            kept = [p for p in probe.parameters() if p.dim() > 1]
            bare = [p for p in probe.parameters() if p.dim() <= 1]
            decay = setting["weight_decay"]
            return [
                {"params": kept, "lr": setting["lr"], "weight_decay": decay},
                {"params": bare, "lr": setting["lr"], "weight_decay": 0.0},
            ]

        return fit(
            lambda: AttentivePooler(mean, std, classes, self.heads, self.mlp), train, y,
            lambda _, answers, wanted: nn.functional.cross_entropy(answers, wanted), groups,
            epochs=self.epochs, batch=self.batch, clip=5.0, seed=self.seed,
        )  # fmt: skip


def moments(features: TokenFeatures, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature over all tokens that are no padding, (d,) float32; 1 for constant ones."""
    total = square = torch.zeros(features.x.shape[-1], dtype=torch.float64)
    count = 0
    for rows in torch.arange(len(features)).split(chunk):
        part = features.where(rows)
        x = part.x if part.valid is None else part.x[part.valid]
        x = x.reshape(-1, x.shape[-1]).double()
        total, square, count = total + x.sum(0), square + x.square().sum(0), count + len(x)
    mean = total / max(count, 1)
    std = (square / max(count, 1) - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 1e-4 * mean.abs(), std, torch.ones_like(std)).float()


class AttentivePooler(nn.Module):
    """Class answers of one query that attends to all tokens of a sample.

    With one query, the query's side of the product is folded into the keys' weights and the values are projected after
    they were averaged: the numbers are those of multi-head attention, at 1 / d of its cost.

    Args:
        mean: of the features, (d,).
        std: of the features, (d,).
        classes: c.
        heads: attention heads at most.
        mlp: width of the MLP over d; 0 for none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, classes: int, heads: int, mlp: float) -> None:
        super().__init__()
        d = len(mean)
        self.heads = next(count for count in range(min(heads, d), 0, -1) if d % count == 0)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.norm = nn.LayerNorm(d)
        self.query = nn.Parameter(torch.zeros(d))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.q, self.k, self.v, self.out = (nn.Linear(d, d) for _ in range(4))
        width = round(mlp * d)
        self.mlp = (
            nn.Sequential(nn.LayerNorm(d), nn.Linear(d, width), nn.GELU(), nn.Linear(width, d)) if width else None
        )
        self.head = nn.Linear(d, classes)

    def forward(self, features: TokenFeatures) -> Tensor:
        """Answers (b, c)."""
        x = self.query + self.attend(self.norm((features.x.float() - self.mean) / self.std), features.valid)
        return self.head(x if self.mlp is None else x + self.mlp(x))

    def attend(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """What the query gets from tokens (b, t, d), (b, d). The keys' bias is equal for all tokens: it falls out."""
        b, _, d = x.shape
        size = d // self.heads
        asked = self.q(self.query).reshape(self.heads, size) * size**-0.5
        folded = torch.einsum("hs,hsd->hd", asked, self.k.weight.reshape(self.heads, size, d))
        similar = x @ folded.T  # (b, t, h)
        if valid is not None:
            similar = similar.masked_fill(~valid.unsqueeze(-1), -torch.inf)
        seen = torch.softmax(similar, 1).transpose(1, 2) @ x  # (b, h, d)
        values = torch.einsum("bhd,hsd->bhs", seen, self.v.weight.reshape(self.heads, size, d))
        return self.out(values.reshape(b, d) + self.v.bias)
