"""SCGC: neighbours as soft positives, clusters with learned centres, the perceptron over nodes, against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.modalities.graph.adapter import Graph
from mmssl.modalities.graph.neighbour_contrast import NeighbourContrast, NodeMLP, reached
from mmssl.modalities.graph.tokenizer import GraphTokenizer
from mmssl.parts.deep_clusters import Clusters, sharpened
from mmssl.types import TokenSpec, View
from tests.modalities.graph.small_graphs import directed, undirected

torch.set_num_threads(1)


class Plans:
    """As much of a plan as these terms ask for."""

    def __init__(self, width: int) -> None:
        self.width = width

    def named(self, patterns: list[str]) -> list[str]:
        return list(patterns)

    def answer(self, *_: Any) -> int:
        return self.width


class Given(dict[str, Any]):
    """A step whose only look has these features."""

    def __init__(self, whole: Any, z: Tensor) -> None:
        super().__init__(x=self)
        self.tokens, self.z, self.masked, self.row = whole, z, False, None

    def answer(self, *_: Any) -> Tensor:
        return self.z


def tokens(graphs: list[Any]) -> Any:
    width = graphs[0].x.shape[1]
    return GraphTokenizer({"features": width, "max_degree": 9, "density": 1.0})(View(Graph().collate(graphs), "graph"))


def contrast(**said: Any) -> Any:
    return NeighbourContrast(Plans(3), **said)  # pyright: ignore[reportArgumentType]


def clusters(width: int = 2, **said: Any) -> Any:
    return Clusters(Plans(width), **({"pool": "token"} | said))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("cumulative", [False, True])
def test_the_contrast_against_a_plain_loop(cumulative: bool) -> None:
    graphs = [undirected(9, 14, 1), directed(12, 4, 2, 15)]
    whole, reach, tau = tokens(graphs), 3, 0.7
    z = torch.randn(21, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total, number = contrast(reach=reach, tau=tau, cumulative=cumulative)(Given(whole, z))
    wanted, first = 0.0, 0
    for graph in graphs:
        n = int(graph.num_nodes)
        a = torch.eye(n, dtype=torch.float64)
        for i, j in graph.edge_index.t().tolist():
            a[i, j] = a[j, i] = 1
        a = a / a.sum(1, keepdim=True)
        powers = [torch.linalg.matrix_power(a, k) for k in range(1, reach + 1)]
        w = sum(powers) if cumulative else powers[-1]
        for i in range(n):
            e = [
                math.exp(0.0 if i == j else tau * float(F.cosine_similarity(z[first + i], z[first + j], dim=0)))
                for j in range(n)
            ]
            wanted -= math.log(sum(x * float(y) for x, y in zip(e, w[i], strict=True)) / sum(e) + 1e-8)  # pyright: ignore
        first += n
    assert float(total) == pytest.approx(wanted, rel=1e-6) and int(number) == 21


def test_even_weights_leave_nothing_to_learn() -> None:
    """Three nodes that all know one another: ln 3 for any features."""
    graph = undirected(3, 60, 4)
    term, whole = contrast(tau=2.0), tokens([graph])
    for seed in range(3):
        z = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))
        total, number = term(Given(whole, z))
        assert float(total / number) == pytest.approx(1.098612, abs=1e-5)
    torch.testing.assert_close(reached(graph.edge_index, 3, 1, False), torch.full((3, 3), 1 / 3))
    kept = term._last[1]
    term(Given(whole, z))
    assert term._last[1] is kept  # of the same edges once


def test_shares_and_targets_of_clusters() -> None:
    term = clusters(count=2).eval()
    term.centres.data = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(term.shares(torch.zeros(1, 2)), torch.tensor([[2 / 3, 1 / 3]]))
    q = torch.tensor([[0.6, 0.4], [0.8, 0.2]])
    wanted = torch.tensor([[0.4909, 0.5091], [0.8727, 0.1273]])
    torch.testing.assert_close(sharpened(q), wanted, atol=5e-5, rtol=0)
    z = torch.randn(6, 2, requires_grad=True)
    total, number = term(Given(tokens([undirected(6, 8, 1)]), z))
    shares = term.shares(z)
    p = sharpened(shares.detach())
    kl = F.kl_div(shares.log(), p, reduction="batchmean")
    torch.testing.assert_close(total / number, kl)
    total.backward()
    assert z.grad is not None and term.centres.grad is not None


def test_centres_begin_where_k_means_finds_them() -> None:
    middle = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    z = middle.repeat(4, 1) + 0.1 * torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    term, whole = clusters(count=3, restarts=2).train(), tokens([undirected(12, 20, 1)])
    term(Given(whole, z))
    assert float(torch.cdist(middle, term.centres.detach()).amin(1).max()) < 0.2 and bool(term.begun)
    again = clusters(count=3, restarts=2).train()
    again.load_state_dict(term.state_dict())
    again.centres.data += 1.0
    moved = again.centres.detach().clone()
    again(Given(whole, z))
    assert torch.equal(again.centres, moved)  # a resumed run does not begin anew
    with pytest.raises(ValueError, match="which has 12 rows"):
        clusters(count=13).train()(Given(whole, z))


def test_a_perceptron_reads_nodes_alone() -> None:
    whole = tokens([undirected(12, 20, 1)])
    part = NodeMLP(TokenSpec(4, 0), dims=[5, 3])
    first, last = part.layers
    inner = whole.raw @ first.weight.t() + first.bias  # pyright: ignore
    found = part(whole, ("block.0",))
    torch.testing.assert_close(found.taps["block.0"], inner)
    torch.testing.assert_close(found.x, last(inner.relu()))
    assert part.dim == 3 and part.tap_dims == {"block.0": 5, "block.1": 3}


def test_refusals() -> None:
    with pytest.raises(ValueError, match="from 1 on"):
        contrast(reach=0)
    with pytest.raises(ValueError, match="tau has to be above 0"):
        contrast(tau=0.0)
    with pytest.raises(ValueError, match="number of clusters, from 2 on"):
        clusters(count=1)
    with pytest.raises(ValueError, match=r"encoder\.dims"):
        NodeMLP(TokenSpec(4, 0), dims=[])
