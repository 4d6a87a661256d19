"""Augmentations of graphs, and the encoder that GRACE and BGRL share, against plain references."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mmssl.draws import Draws
from mmssl.modalities.graph.adapter import Graph
from mmssl.modalities.graph.encoders import GCN
from mmssl.modalities.graph.tokenizer import GraphTokenizer
from mmssl.modalities.graph.views import DropColumns, DropEdges, NormalizeFeatures
from mmssl.types import TokenSpec, View
from tests.modalities.graph.small_graphs import directed, undirected


def draws(sample: int, epoch: int = 0) -> Draws:
    return Draws.of(7, epoch, torch.tensor([sample]))


def luck(sample: int, name: str, count: int) -> list[float]:
    return draws(sample).named(name).uniform(count)[0].tolist()


def tokens(*graphs: Any) -> Any:
    width = graphs[0].x.shape[1]
    return GraphTokenizer({"features": width, "max_degree": 9, "density": 1.0})(
        View(Graph().collate(list(graphs)), "graph")
    )


def test_edges_are_dropped_one_by_one() -> None:
    """An edge stays where its own number is not below the ratio; its attribute goes with it; the sample is untouched."""
    graph = directed()
    graph.edge_attr = torch.arange(graph.edge_index.shape[1])
    before = graph.edge_index.clone()
    made = DropEdges(ratio=0.4)(graph, draws(3))
    numbers = luck(3, "edges", before.shape[1])
    kept = [i for i, number in enumerate(numbers) if number >= 0.4]
    assert made.edge_index.tolist() == before[:, kept].tolist() and made.edge_attr.tolist() == kept
    assert torch.equal(graph.edge_index, before) and made.x is graph.x and made.num_nodes == graph.num_nodes
    assert 0 < len(kept) < before.shape[1]
    assert torch.equal(DropEdges(ratio=0.0)(graph, draws(3)).edge_index, before)


def test_both_directions_fare_alike_where_asked() -> None:
    graph = undirected(60, 300)
    for symmetric in (True, False):
        made = DropEdges(ratio=0.5, symmetric=symmetric)(graph, draws(1)).edge_index.t().tolist()
        kept = {tuple(edge) for edge in made}
        alone = [edge for edge in kept if edge[::-1] not in kept]
        assert bool(alone) != symmetric
        assert abs(len(kept) / graph.edge_index.shape[1] - 0.5) < 0.1
    bare = copy.copy(graph)
    bare.edge_index = graph.edge_index[:, :0]
    assert DropEdges(ratio=0.5, symmetric=True)(bare, draws(1)).edge_index.shape == (2, 0)


def test_columns_are_dropped_in_all_nodes_of_a_graph() -> None:
    graph = undirected(width=30)
    made = DropColumns(ratio=0.3)(graph, draws(5)).x
    for column, number in enumerate(luck(5, "columns", 30)):
        expected = torch.zeros(20) if number < 0.3 else graph.x[:, column]
        assert torch.equal(made[:, column], expected)
    assert 0 < int((made.abs().sum(0) == 0).sum()) < 30 and bool(graph.x.abs().sum(0).all())


def test_draws_are_those_of_the_sample_alone() -> None:
    """The same sample in the same epoch is augmented alike, whatever else is in the batch; another is not."""
    graph = undirected(40, 100, width=50)
    for operation, field in ((DropEdges(ratio=0.5), "edge_index"), (DropColumns(ratio=0.5), "x")):
        alone = operation(graph, draws(2))[field]
        whole = Draws.of(7, 0, torch.tensor([9, 2, 4])).each()
        assert torch.equal(operation(graph, whole[1])[field], alone)
        for other in (operation(graph, whole[0])[field], operation(graph, draws(2, 1))[field]):
            assert other.shape != alone.shape or not torch.equal(other, alone)


def test_features_are_divided_by_their_sums() -> None:
    graph = undirected()
    graph.x[4] = 0.0
    made = NormalizeFeatures()(graph, draws(0)).x
    for i in range(20):
        total = sum(abs(value) for value in graph.x[i].tolist())
        assert made[i].tolist() == pytest.approx([value / total if total else 0.0 for value in graph.x[i].tolist()])
    # dropped columns stay dropped: rows need not sum to one any more
    dropped = DropColumns(ratio=0.5)(NormalizeFeatures()(graph, draws(0)), draws(0)).x
    assert bool((dropped.abs().sum(1) < 0.999).any())


def test_what_cannot_be_augmented_is_said() -> None:
    bare = undirected()
    bare.x = None
    with pytest.raises(ValueError, match=r"view/drop_columns: the graphs have no node features"):
        DropColumns(ratio=0.1)(bare, draws(0))
    assert NormalizeFeatures()(bare, draws(0)) is bare
    for made in (DropEdges, DropColumns):
        with pytest.raises(ValueError, match=r"ratio is a share .* did you mean 0\.3"):
            made(ratio=30)


def test_convolutions_of_grace_and_bgrl() -> None:
    """Twice the width inside, a batch norm with a momentum, PReLU: torch-geometric's layers and torch's norm."""
    from torch_geometric.nn import GCNConv

    graph = tokens(undirected(25, 60, 1, 6), undirected(13, 20, 2, 6))
    encoder = GCN(TokenSpec(6, 0), dim=8, depth=2, expansion=2, dropout=0.0, norm="batch", norm_momentum=0.99).double()
    first, last = (layer.conv for layer in encoder.stack.layers)
    assert first.lin.weight.shape == (16, 6) and last.lin.weight.shape == (8, 16)
    plain: Any = [GCNConv(6, 16).double(), GCNConv(16, 8).double()]
    for mine, theirs in zip(plain, (first, last), strict=True):
        mine.load_state_dict(theirs.state_dict())
    norms = [nn.BatchNorm1d(width, momentum=0.99).double() for width in (16, 8)]
    h = graph.raw.double()
    for conv, norm in zip(plain, norms, strict=True):
        h = torch.nn.functional.prelu(norm(conv(h, graph.edges)), torch.tensor([0.25], dtype=torch.float64))
    out = encoder(graph.but(raw=graph.raw.double())).x
    assert torch.allclose(out, h, atol=1e-12)
    for mine, norm in zip(encoder.stack.norms, norms, strict=True):
        assert torch.allclose(mine.running_var, norm.running_var, atol=1e-12) and mine.momentum == 0.99
    with pytest.raises(ValueError, match=r"encoder\.expansion"):
        GCN(TokenSpec(6, 0), dim=8, expansion=0.1)
