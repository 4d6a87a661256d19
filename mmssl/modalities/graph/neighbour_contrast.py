"""A contrast whose positives are the nodes within reach, and an encoder that reads nodes alone: SCGC."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.modalities.graph.tokens import project
from mmssl.parts.norms import check_temperature
from mmssl.plan import Plan
from mmssl.registry import register
from mmssl.step import Step
from mmssl.types import Tokens, TokenSpec


@register("encoder/node_mlp")
class NodeMLP(nn.Module):
    """A perceptron over each node's features, without edges: the encoder of SCGC's autoencoder.

    Args:
        spec: sizes of the tokens.
        dims: widths of the layers, a ReLU behind each but the last, which is that of the features.

    Raises:
        ValueError: for no layer.
    """

    accepts = "graph"

    def __init__(self, spec: TokenSpec, *, dims: Sequence[int] = (500, 500, 2000, 10)) -> None:
        super().__init__()
        if not dims or min(dims) < 1:
            raise ValueError(f"encoder.dims are the widths of the layers, at least one (got {list(dims)})")
        self.dim, self.tap_names = dims[-1], tuple(f"block.{i}" for i in range(len(dims)))
        self.tap_dims = dict(zip(self.tap_names, dims, strict=True))
        self.layers = nn.ModuleList(nn.Linear(width, out) for width, out in pairwise([spec.raw, *dims]))

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Packed tokens with `x` (n, dim) and the layers asked for."""
        first: nn.Linear = self.layers[0]  # pyright: ignore[reportAssignmentType]
        x, kept = project(tokens, first.weight, 0.0, self.training) + first.bias, dict[str, Tensor]()
        kept["block.0"] = x
        for i, layer in enumerate(self.layers[1:], 1):
            x = layer(x.relu())
            kept[f"block.{i}"] = x
        return tokens.but(x=x, taps={name: tap for name, tap in kept.items() if name in taps})


@register("term/neighbours")
class NeighbourContrast(nn.Module):
    """Nodes within reach should be alike, all others of the graph not (SCGC, Kulatilleke et al. 2022).

    W is the r-th power of the adjacency matrix with self loops, both directions, rows divided by their sums; or the sum
    of its powers 1 to r. With the cosines S of all pairs of nodes of a graph, a node's own set to 0, and
    E = exp(tau S), the loss of node i is -log(sum_j E_ij W_ij / sum_j E_ij + 1e-8), averaged over nodes.

    Args:
        plan: sizes of features.
        reach: r.
        tau: factor of the cosines, above 0.
        cumulative: whether powers are summed (SCGC*'s influence).
        head: name of a head behind the features; null for none.
        look: which look.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look or head, a reach below 1, or a factor not above 0.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        reach: int = 1,
        tau: float = 0.25,
        cumulative: bool = False,
        head: str | None = None,
        look: str = "x",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_temperature(tau, "term/neighbours: tau")
        if reach < 1:
            raise ValueError(f"a term's `reach` is a power of the adjacency matrix, from 1 on (got {reach})")
        self.look, self.head, self.weight = plan.named([look])[0], head, weight
        self.reach, self.tau, self.cumulative = reach, tau, cumulative
        plan.answer(self.look, head, "seen", "token")
        self._last: tuple[Tensor, Tensor] | None = None
        self.signals: dict[str, Tensor] = {}

    def count(self, step: Step) -> Tensor:
        """Number of nodes."""
        index = step[self.look].tokens.index
        return index.new_tensor(len(index))

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum over nodes, and their number."""
        look = step[self.look]
        z = F.normalize(look.answer(self.head, "seen", "token"), dim=-1)
        cosine = (z @ z.t()).fill_diagonal_(0.0)
        sample = look.tokens.sample
        assert sample is not None, "term/neighbours compares nodes of packed graphs"
        power = torch.where(sample.unsqueeze(1) == sample, torch.exp(self.tau * cosine), 0.0)
        near = (power * self._weights(look.tokens).to(power.dtype)).sum(1) / power.sum(1)
        return -(near + 1e-8).log().sum(), z.new_tensor(float(len(z)))

    def _weights(self, tokens: Tokens) -> Tensor:
        """W (n, n); that of the same edges as in the last step is not made again."""
        assert tokens.edges is not None
        if self._last is None or self._last[0] is not tokens.edges:
            self._last = (tokens.edges, reached(tokens.edges, len(tokens.index), self.reach, self.cumulative))
        return self._last[1]


@torch.no_grad()
def reached(edges: Tensor, nodes: int, reach: int, cumulative: bool) -> Tensor:
    """The power of the row-normalised adjacency matrix with self loops, or the sum of powers, (n, n) float."""
    one = torch.eye(nodes, device=edges.device)
    one[edges[0], edges[1]] = 1.0
    one[edges[1], edges[0]] = 1.0
    one = one / one.sum(1, keepdim=True)
    power, total = one, one
    for _ in range(reach - 1):
        power = one @ power
        total = total + power
    return total if cumulative else power
