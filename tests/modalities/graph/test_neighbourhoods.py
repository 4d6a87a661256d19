"""Hidden neighbourhoods against balls that are grown one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.graph.adapter import Graph
from mmssl.modalities.graph.maskers import Edges, Neighbourhoods
from mmssl.modalities.graph.tokenizer import GraphTokenizer
from mmssl.types import Mask, View
from tests.modalities.graph.small_graphs import directed, undirected


def tokens(graphs: list[Any]) -> Any:
    width = graphs[0].x.shape[1]
    return GraphTokenizer({"features": width, "max_degree": 9, "density": 1.0})(View(Graph().collate(graphs), "graph"))


def mask(graphs: list[Any], ids: list[int], **said: Any) -> Mask:
    return Neighbourhoods(**said)(tokens(graphs), Draws.of(3, 0, torch.tensor(ids)), 0.0, None)


def grown(graph: Any, sample: int, ratio: float, radius: int) -> set[int]:
    """Balls around centres in a random order, walked breadth first, until int(ratio * nodes) are hidden."""
    n, near = graph.num_nodes, {i: set[int]() for i in range(graph.num_nodes)}
    for a, b in graph.edge_index.t().tolist():
        near[a].add(b)
        near[b].add(a)

    def numbers(name: str) -> list[float]:
        return Draws.of(3, 0, torch.tensor([sample])).named(name).uniform(n)[0].tolist()

    first, luck, most, hidden = numbers("centres"), numbers("rim"), int(ratio * n), set[int]()
    for centre in sorted(range(n), key=first.__getitem__):
        found, front = {centre: 0}, [centre]
        for step in range(1, radius + 1):
            front = [b for a in front for b in near[a] if b not in found]
            found |= {b: step for b in front}
            front = list(dict.fromkeys(front))
        for node in sorted(found, key=lambda node: (found[node], luck[node])):
            # a node within reach of an earlier centre belongs to that, and was hidden with it
            if len(hidden) < most:
                hidden.add(node)
    return hidden


@pytest.mark.parametrize("radius", [0, 1, 2, 30])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.77])
def test_against_balls_grown_one_by_one(radius: int, ratio: float) -> None:
    graphs, ids = [undirected(30, 35, 1), directed(17, 4, 2, 20), undirected(40, 90, 3)], [5, 0, 9]
    found = mask(graphs, ids, ratio=ratio, radius=radius)
    start = 0
    for graph, sample in zip(graphs, ids, strict=True):
        own = found.hidden[0, start : start + graph.num_nodes].nonzero().flatten().tolist()
        assert set(own) == grown(graph, sample, ratio, radius)
        assert len(own) == int(ratio * graph.num_nodes)
        start += graph.num_nodes
    assert torch.equal(found.targets[0], found.hidden) and found.visible.shape == (1, start)


def test_the_batch_does_not_matter() -> None:
    graphs = [undirected(12, 20, 1), undirected(30, 90, 2), undirected(20, 40, 3)]
    together = mask(graphs, [4, 5, 6]).hidden[0]
    assert torch.equal(together[12:42], mask(graphs[1:2], [5]).hidden[0])
    assert torch.equal(together[12:42], mask([graphs[1], graphs[0]], [5, 8]).hidden[0, :30])
    other = Neighbourhoods()(tokens(graphs), Draws.of(3, 1, torch.tensor([4, 5, 6])), 0.0, None)
    assert not torch.equal(other.hidden[0], together)


def test_what_is_hidden_hangs_together() -> None:
    """On a ring of 100 nodes with balls of 5 the hidden nodes are few runs, not many single nodes."""
    from torch_geometric.data import Data

    ring = torch.stack([torch.arange(100), (torch.arange(100) + 1) % 100])
    graph = Data(x=torch.ones(100, 2), edge_index=torch.cat([ring, ring.flip(0)], 1))
    hidden = mask([graph], [0], ratio=0.3, radius=2).hidden[0]
    borders = int((hidden != hidden.roll(1)).sum()) // 2
    assert int(hidden.sum()) == 30 and borders <= 9
    alone = mask([graph], [0], ratio=0.3, radius=0).hidden[0]
    assert int((alone != alone.roll(1)).sum()) // 2 > 15


def test_graphs_without_edges_or_with_one_node() -> None:
    bare = undirected(4, 20)
    bare.edge_index = torch.zeros(2, 0, dtype=torch.int64)
    found = mask([bare, undirected(1, 0), bare], [0, 1, 2], ratio=0.5).hidden[0]
    assert [int(part.sum()) for part in found.split([4, 1, 4])] == [2, 0, 2]
    with pytest.raises(ValueError, match=r"masker\.ratio .* did you mean 0\.4"):
        Neighbourhoods(ratio=40)
    with pytest.raises(ValueError, match=r"masker\.radius"):
        Neighbourhoods(radius=-1)


def test_a_mask_of_edges_has_no_places_of_nodes() -> None:
    """What a term would ask for is refused at once, with the remedy; the flags themselves are there."""
    found = Edges(ratio=0.5)(tokens([undirected()]), Draws.of(0, 0, torch.tensor([0])), 0.0, None)
    for name in ("target_index", "visible_index"):
        with pytest.raises(ValueError, match=r"masker/edges hides edges, but a term asks .*masker/nodes"):
            getattr(found, name)
    assert bool(found.hidden.any()) and found.targets.shape[-1] == found.visible.shape[-1]
