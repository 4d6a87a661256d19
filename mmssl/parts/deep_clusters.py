"""Clusters whose centres are learned: deep embedded clustering."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmssl import ranks
from mmssl.parts.sample_terms import check_pool, entropies, rows
from mmssl.plan import Plan
from mmssl.registry import register
from mmssl.step import Step


@register("term/deep_clusters")
class Clusters(nn.Module):
    """Pulls features towards the centres they are surest of (deep embedded clustering, Xie et al. 2016; SCGC).

    q_ik = 1 / (1 + |z_i - c_k|^2), over its sum over k. The target is p_ik = q_ik^2 / sum_i q_ik, over its sum over k,
    without gradient; the loss of a row is KL(p || q). Centres begin as those of k-means over the features of the first
    training step, so that the encoder has to be trained before (a stage) and the batch has to be large: best all data.

    Args:
        plan: sizes of features.
        count: number of clusters.
        look: which look.
        pool: how tokens become rows: mean, max, cls, ...; `token` for one row per token.
        restarts: k-means runs, of which the one of least inertia is taken.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look or pool, or fewer than two clusters; when first called, for fewer rows.
    """

    begun: Tensor

    def __init__(
        self, plan: Plan, *, count: int, look: str = "x", pool: str = "mean", restarts: int = 20, weight: float = 1.0
    ) -> None:
        super().__init__()
        check_pool(pool)
        if count < 2:
            raise ValueError(f"a term's `count` is the number of clusters, from 2 on (got {count})")
        self.look, self.pool, self.restarts, self.weight = plan.named([look])[0], pool, restarts, weight
        self.centres = nn.Parameter(torch.empty(count, plan.answer(self.look, None, "seen", pool)))
        nn.init.xavier_normal_(self.centres)
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self._checked, self.compares = False, True
        self.signals: dict[str, Tensor] = {}

    def count(self, step: Step) -> Tensor:
        """What `forward` divides by."""
        return rows(step[self.look], self.pool)

    def shares(self, z: Tensor) -> Tensor:
        """How much each row (n, d) belongs to each cluster, (n, k)."""
        q = 1.0 / (1.0 + (z.unsqueeze(1) - self.centres.to(z.dtype)).square().sum(-1))
        return q / q.sum(1, keepdim=True)

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum of the loss over rows, and their number."""
        z = step[self.look].answer(None, "seen", self.pool)
        self._begin(z.detach())
        q = self.shares(z)
        p = sharpened(q.detach())
        self.signals["entropy"], self.signals["usage"] = entropies(q)
        return (torch.special.xlogy(p, p) - p * q.log()).sum(), z.new_tensor(float(len(z)))

    @torch.no_grad()
    def _begin(self, z: Tensor) -> None:
        """Sets the centres in the first training step, on every rank alike."""
        if self._checked or not self.training or _sizes_only(z):
            return
        self._checked = True
        if bool(self.begun):
            return
        from sklearn.cluster import KMeans

        everyone = ranks.gather(z).float().cpu().numpy()
        if len(everyone) < len(self.centres):
            raise ValueError(
                f"a term begins {len(self.centres)} clusters from the first batch, which has {len(everyone)} rows; "
                "raise data.batch_size, or lower the term's `count`"
            )
        made: Any = KMeans  # whose annotations say str for numbers
        found = made(len(self.centres), n_init=self.restarts, random_state=0).fit(everyone).cluster_centers_
        self.centres.copy_(torch.from_numpy(found))
        self.begun.fill_(True)


def sharpened(q: Tensor) -> Tensor:
    """The target of shares q (n, k): surer, and of clusters of even weight in the global batch."""
    weight = q.square() / ranks.total(q.sum(0))
    return weight / weight.sum(1, keepdim=True)


def _sizes_only(z: Tensor) -> bool:
    """Whether a tensor has no values, as those of `mmssl plan`."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(z, FakeTensor)
