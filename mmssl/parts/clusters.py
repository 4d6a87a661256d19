"""Clusters of the teacher's tokens that are learned as training goes on, and targets that are shares in them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl import ranks
from mmssl.parts.norms import check_temperature
from mmssl.parts.sample_terms import entropies
from mmssl.parts.targets import full, gathered
from mmssl.registry import register
from mmssl.step import Look, Plan, Step
from mmssl.types import Tokens


@register("head/clusters")
class Clusters(nn.Module):
    """Products of features of length 1 with the centres of clusters, which a loss of their own trains (CAPI, 2025).

    It has no twin in the teacher: it reads the teacher's features, and learns by `term/cluster`. Give it a rate of its
    own by `optim.rules`: `"heads.NAME.*": {lr: 0.5}`.

    Args:
        width: width of the features.
        count: number of clusters.
        temperature: of the shares.
        iterations: normalisations over samples and clusters in turn; clusters come last.
        eps: added to sums.

    Raises:
        ValueError: for fewer than two clusters, no iteration or a temperature not above 0.
    """

    alone = True

    def __init__(
        self, width: int, *, count: int = 16384, temperature: float = 0.06, iterations: int = 3, eps: float = 1e-8
    ) -> None:
        super().__init__()
        if count < 2 or iterations < 1:
            raise ValueError(
                f"head/clusters: count has to be at least 2 and iterations at least 1 (got {count} and {iterations})"
            )
        check_temperature(temperature, "head/clusters: temperature")
        self.dim, self.temperature, self.iterations, self.eps = count, temperature, iterations, eps
        self.centres = nn.Linear(width, count)
        nn.init.normal_(self.centres.weight)
        nn.init.zeros_(self.centres.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (..., count) of features (..., width)."""
        return self.centres(F.normalize(x, dim=-1, eps=1e-7))

    @torch.no_grad()
    def assign(self, logits: Tensor) -> Tensor:
        """Shares (b, n, count) of logits: at each place alone, clusters are shared out evenly among all samples.

        So no cluster can be one of places. Sums run over the samples of all ranks (Sinkhorn's iterations).
        """
        m = full(logits) / self.temperature
        top = ranks.gather(m.amax(0, keepdim=True)).amax(0)
        m = torch.exp(m - top + 50)  # far from where float32 ends at either side
        for _ in range(self.iterations):
            m = m / (ranks.total(m.sum(0)) + self.eps)
            m = m / (m.sum(-1, keepdim=True) + self.eps)
        return m


def clustered(look: Look, head: str) -> tuple[Tensor, Tensor]:
    """Logits of the teacher's tokens, with a gradient to the head alone, and their shares; made once a step.

    Raises:
        ValueError: for samples of unequal length.
    """

    def make() -> tuple[Tensor, Tensor]:
        module: Any = look.step.heads[head]
        features = look.taught
        if features.packed or features.valid is not None or features.x is None:
            raise ValueError("clusters are shared out place by place: samples have to be of one length")
        with torch.set_grad_enabled(module.training):  # targets ask without gradient, perhaps before the term
            logits = module(features.x)
        return logits, module.assign(logits.detach())

    return look.step.once(("clusters", look.spec.name, head), make)


@register("term/cluster")
class Cluster(nn.Module):
    """Trains `head/clusters`: its logits should be its own shares, by cross entropy over all tokens (CAPI).

    No gradient reaches anything but the head.

    Args:
        plan: sizes.
        head: name of the head.
        look: whose tokens, as the teacher sees them.
        temperature: of the logits.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look or another head.
    """

    def __init__(
        self, plan: Plan, *, head: str, look: str = "x", temperature: float = 0.12, weight: float = 1.0
    ) -> None:
        super().__init__()
        check_temperature(temperature, "term/cluster: temperature")
        self.look, self.head, self.temperature, self.weight = plan.named([look])[0], head, temperature, weight
        plan.ask(self.look, "taught")
        _known(plan, head, self.look)
        self.compares = True
        self.signals: dict[str, Tensor] = {}

    def count(self, step: Step) -> Tensor:
        """What `forward` divides by: the number of tokens."""
        index = step[self.look].tokens.index
        return index.new_tensor(index.numel())

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum of the loss over tokens, and their number."""
        logits, shares = clustered(step[self.look], self.head)
        losses = -(shares * torch.log_softmax(full(logits) / self.temperature, -1)).sum(-1)
        self.signals["entropy"], self.signals["usage"] = entropies(shares)
        return losses.sum(), losses.new_tensor(float(losses.numel()))


@register("target/clusters")
class ClusterShares(nn.Module):
    """The shares that the teacher's tokens have in learned clusters (CAPI); `term/cluster` has to train the head.

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
        head: name of the head, `head/clusters`.
    """

    asks = ("taught",)

    def __init__(self, plan: Plan, look: str, *, head: str) -> None:
        super().__init__()
        self.head, self.dim = head, _known(plan, head, look)

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Shares (r, t, clusters) of the tokens asked for."""
        return gathered(look, query, look.taught.but(x=clustered(look, self.head)[1]))


def _known(plan: Plan, head: str, look: str) -> int:
    """The number of clusters of a head.

    Raises:
        ValueError: for another kind of head.
    """
    module: Any = plan.head(head, plan.dims[look])
    if not hasattr(module, "assign"):
        raise ValueError(f"heads.{head} is {type(module).__name__}, which has no clusters; make it head/clusters")
    return int(module.dim)
