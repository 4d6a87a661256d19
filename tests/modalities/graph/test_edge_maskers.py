"""Masked edges against plain loops, and masked nodes on two ranks."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from mmssl.draws import Draws
from mmssl.modalities.graph.adapter import Graph
from mmssl.modalities.graph.corruptors import DropEdges, Replace
from mmssl.modalities.graph.encoders import GAT
from mmssl.modalities.graph.maskers import Edges, Nodes
from mmssl.modalities.graph.tokenizer import GraphTokenizer
from mmssl.types import Mask, TokenSpec, View
from tests.gloo import leave
from tests.modalities.graph.small_graphs import directed, undirected


def tokens(graphs: list[Any]) -> Any:
    width = graphs[0].x.shape[1]
    return GraphTokenizer({"features": width, "max_degree": 9, "density": 1.0})(View(Graph().collate(graphs), "graph"))


def mask(graphs: list[Any], ids: list[int], **said: Any) -> Mask:
    return Edges(**said)(tokens(graphs), Draws.of(3, 0, torch.tensor(ids)), 0.0, None)


def luck(sample: int, count: int) -> list[float]:
    return Draws.of(3, 0, torch.tensor([sample])).named("edges").uniform(count)[0].tolist()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_against_a_plain_loop(exact: bool, symmetric: bool) -> None:
    """Every graph by itself: units in order, a number each, the smallest or those below the ratio hidden."""
    graphs = [undirected(12, 20, 1), directed(9, 4, 2, 15), undirected(20, 40, 3)]
    found = mask(graphs, [5, 0, 9], ratio=0.6, exact=exact, symmetric=symmetric)
    wanted: list[bool] = []
    for graph, sample in zip(graphs, [5, 0, 9], strict=True):
        edges = [(a, b) for a, b in graph.edge_index.t().tolist() if a != b]
        units = [tuple(sorted(edge)) for edge in edges] if symmetric else list(range(len(edges)))
        order = sorted(set(units))
        number = dict(zip(order, luck(sample, len(order)), strict=True))
        if exact:
            chosen = set(sorted(order, key=number.__getitem__)[: int(0.6 * len(order))])
        else:
            chosen = {unit for unit in order if number[unit] < 0.6}
        wanted += [unit in chosen for unit in units]
    nodes = sum(graph.num_nodes for graph in graphs)
    assert found.targets[0, 0].tolist() == wanted + [False] * nodes  # self loops stand last
    assert any(wanted)
    if symmetric:
        assert torch.equal(found.targets[0], found.hidden)
        return
    edges = tokens(graphs).edges.t().tolist()
    kept = {(a, b) for (a, b), gone in zip(edges, found.targets[0, 0].tolist(), strict=True) if not gone}
    assert found.visible[0].tolist() == [(a, b) in kept or (b, a) in kept for a, b in edges]


def test_the_batch_does_not_matter() -> None:
    graphs = [undirected(12, 20, 1), undirected(30, 90, 2), undirected(20, 40, 3)]
    for exact in (False, True):
        together = mask(graphs, [4, 5, 6], ratio=0.5, exact=exact).hidden[0]
        first, count = graphs[0].edge_index.shape[1], graphs[1].edge_index.shape[1]
        alone = mask(graphs[1:2], [5], ratio=0.5, exact=exact).hidden[0]
        other = mask([graphs[1], graphs[0]], [5, 8], ratio=0.5, exact=exact).hidden[0]
        assert torch.equal(together[first : first + count], alone[:count])
        assert torch.equal(other[:count], alone[:count]) and 0 < int(alone.sum()) < count


def test_shares_and_pairs() -> None:
    """About the ratio with coins, exactly int(ratio * pairs) by count; both directions of an edge fare alike."""
    graph = undirected(300, 4000)
    edges, pairs = graph.edge_index, graph.edge_index.shape[1] // 2
    coins, counted = mask([graph], [0], ratio=0.7).hidden[0], mask([graph], [0], ratio=0.7, exact=True).hidden[0]
    assert int(counted.sum()) == 2 * int(0.7 * pairs)
    assert abs(float(coins.sum()) / (2 * pairs) - 0.7) < 4 * (0.21 / pairs) ** 0.5
    for hidden in (coins, counted):
        both = {(a, b): h for (a, b), h in zip(edges.t().tolist(), hidden.tolist(), strict=False)}
        assert all(both[a, b] == both[b, a] for a, b in both)
    single = mask([graph], [0], ratio=0.7, symmetric=False).targets[0, 0]
    both = {(a, b): h for (a, b), h in zip(edges.t().tolist(), single.tolist(), strict=False)}
    leaked = sum(h and not both[b, a] for (a, b), h in both.items()) / sum(both.values())
    assert abs(leaked - 0.3) < 0.03  # the reverse of a hidden direction shows in 30 %
    other = Edges(ratio=0.7)(tokens([graph]), Draws.of(3, 1, torch.tensor([0])), 0.0, None).hidden[0]
    assert 0.35 < float((other != coins)[: 2 * pairs].float().mean()) < 0.49  # 2 * 0.7 * 0.3


def test_graphs_without_edges_hide_nothing() -> None:
    bare = undirected(4, 20)
    bare.edge_index = torch.zeros(2, 0, dtype=torch.int64)
    for exact in (False, True):
        assert bool(mask([bare], [0], ratio=0.9, exact=exact).visible.all())
        full = mask([bare, undirected(12, 20), bare], [0, 1, 2], ratio=0.9, exact=exact)
        assert int(full.hidden.sum()) > 0
    with pytest.raises(ValueError, match=r"masker\.ratio .* did you mean 0\.7"):
        Edges(ratio=70)


def test_dropping_edges_is_a_graph_without_them() -> None:
    """The encoder sees what it sees in a graph that never had the hidden edges; self loops and attributes stay."""
    graphs = [undirected(12, 20, 1), undirected(20, 40, 3)]
    for graph in graphs:
        graph.edge_attr = torch.randn(graph.edge_index.shape[1], 3)
    whole = tokens(graphs)
    whole = whole.but(edge_weight=torch.rand(2, whole.edges.shape[1]))
    found = Edges(ratio=0.5)(whole, Draws.of(3, 0, torch.arange(2)), 0.0, None)
    seen = DropEdges(TokenSpec(4, 0), "graph", 8)(whole, found, Draws.of(0, 0, torch.arange(2)))
    kept = [i for i in range(whole.edges.shape[1]) if bool(found.visible[0, i])]
    assert torch.equal(seen.edges, whole.edges[:, kept]) and torch.equal(seen.edge_attr, whole.edge_attr[kept])
    assert torch.equal(seen.edge_weight, whole.edge_weight[:, kept]) and torch.equal(seen.raw, whole.raw)
    assert int((seen.edges[0] == seen.edges[1]).sum()) == 32 and len(whole.edges[0]) > len(seen.edges[0])
    fewer, start = [copy.copy(graph) for graph in graphs], 0
    for graph in fewer:
        count = graph.edge_index.shape[1]
        graph.edge_index = graph.edge_index[:, found.visible[0, start : start + count]]
        graph.edge_attr, start = None, start + count
    encoder = GAT(TokenSpec(4, 0), dim=8, heads=2).eval()
    seen, whole = seen.but(edge_weight=None), whole.but(edge_weight=None)  # this encoder reads none
    assert torch.allclose(encoder(seen).x, encoder(tokens(fewer)).x, atol=1e-6)
    assert not torch.allclose(encoder(seen).x, encoder(whole).x, atol=1e-3)
    hostile = Mask(torch.zeros_like(found.visible), found.targets)
    loops = DropEdges(TokenSpec(4, 0), "graph", 8)(whole, hostile, Draws.of(0, 0, torch.arange(2))).edges
    assert loops is not None and torch.equal(loops, torch.arange(32).expand(2, -1))
    with pytest.raises(ValueError, match=r"the mask has 32 places, .*set masker\._target_=masker/edges"):
        nodes = Nodes()(whole, Draws.of(3, 0, torch.arange(2)), 0.0, None)
        DropEdges(TokenSpec(4, 0), "graph", 8)(whole, nodes, Draws.of(0, 0, torch.arange(2)))


# nodes on two ranks

SHARES = ([0, 1, 2], [3, 4])  # graphs of unequal size, and not equally many


def masked(ids: list[int]) -> dict[str, Tensor]:
    """The mask of some graphs of a global batch, and what the corruptor makes of them."""
    whole = tokens([undirected(8 + 3 * i, 30, i) for i in ids])
    draws = Draws.of(3, 0, torch.tensor(ids))
    found = Nodes(ratio=0.5, noise=0.3)(whole, draws, 0.0, None)
    corruptor = Replace(TokenSpec(4, 0), "graph", 8)
    torch.nn.init.constant_(corruptor.mask_token, 7.0)
    assert found.source is not None
    return {
        "visible": found.visible, "targets": found.targets, "source": found.source,
        "raw": corruptor(whole, found, draws).raw.detach().t(),
    }  # fmt: skip


def _process(number: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=2)
    torch.save(masked(SHARES[number]), f"{folder}/{number}.pt")
    leave(folder, number, 2)


def test_nodes_on_two_ranks_are_those_on_one(tmp_path: Any) -> None:
    """Counted over the global batch: the same nodes are hidden, and take features from the same others."""
    mp.spawn(_process, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    parts = [torch.load(tmp_path / f"{number}.pt") for number in range(2)]
    wanted = masked(SHARES[0] + SHARES[1])
    for name, value in wanted.items():
        assert torch.equal(torch.cat([part[name] for part in parts], -1), value), name
    first = parts[0]["visible"].shape[1]
    assert bool((parts[0]["source"] >= first).any()) and bool((wanted["source"] >= 0).any())
