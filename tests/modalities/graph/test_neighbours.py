"""Seed nodes and their neighbourhoods: against torch-geometric's subgraphs and against the whole graph."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

import mmssl
from mmssl.data.module import Data
from mmssl.draws import Draws
from mmssl.modalities.graph import large as large_file
from mmssl.modalities.graph.adapter import Graph
from mmssl.modalities.graph.encoders import GAT, GCN, GIN
from mmssl.modalities.graph.large import Large, Seed
from mmssl.modalities.graph.own import OwnGraph
from mmssl.modalities.graph.tokenizer import GraphTokenizer
from mmssl.modalities.graph.views import Neighbours, sample_sources
from mmssl.types import View
from tests.modalities.graph.small_graphs import arrays_of, directed, write


def draws(sample: int, epoch: int = 0) -> Draws:
    return Draws.of(7, epoch, torch.tensor([sample]))


def edges_of(ego: Any) -> Counter[tuple[int, int]]:
    """Edges by the numbers of the large graph, with how often each stands there."""
    return Counter(map(tuple, ego.node[ego.edge_index].t().tolist()))


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_all_neighbours_are_torch_geometrics_subgraph(hops: int) -> None:
    from torch_geometric.utils import k_hop_subgraph

    graph = directed()
    large = Large.of(graph)
    most = int(torch.bincount(graph.edge_index[1]).max())
    for fanout in (most, -1):
        op = Neighbours(fanout=[fanout] * hops)
        for node in range(40):
            ego = op(Seed(large, node), draws(node))
            nodes, edges, _, _ = k_hop_subgraph(node, hops, graph.edge_index, num_nodes=40)
            assert int(ego.node[0]) == node and sorted(ego.node.tolist()) == nodes.tolist()
            assert edges_of(ego) == Counter(map(tuple, edges.t().tolist()))
            assert torch.equal(ego.x, graph.x[ego.node]) and ego.num_nodes == len(nodes)
    assert op(Seed(large, 39), draws(39)).edge_index.shape == (2, 0)


def test_attributes_follow_their_edges() -> None:
    graph = directed()
    graph.edge_attr = torch.arange(graph.edge_index.shape[1] * 2.0).view(-1, 2)
    ego = Neighbours(fanout=[-1, -1])(Seed(Large.of(graph), 5), draws(5))
    wanted = Counter(
        (*edge, *row) for edge, row in zip(graph.edge_index.t().tolist(), graph.edge_attr.tolist(), strict=True)
    )
    found = Counter(
        (*edge, *row) for edge, row in zip(ego.node[ego.edge_index].t().tolist(), ego.edge_attr.tolist(), strict=True)
    )
    assert len(found) > 10 and found <= wanted


def test_edges_among_nodes_with_hubs() -> None:
    """Rows too long to read are searched; the edges are those that lie inside, repeated ones as often."""
    hub = torch.stack([torch.arange(1, 400), torch.zeros(399, dtype=torch.int64)])
    edges = torch.cat([hub, hub[:, 4:9], hub[:, :3].flip(0), torch.tensor([[0, 6], [0, 7]])], 1)
    from torch_geometric.data import Data

    large = Large.of(Data(edge_index=edges, num_nodes=400))
    nodes = np.array([7, 0, 399, 5, 2, 6])
    assert large.degree(nodes)[1] > large_file._HUB * len(nodes)
    found, place = large.among(nodes)
    numbers = Counter(map(tuple, nodes[found].T.tolist()))
    assert numbers == Counter((a, b) for a, b in edges.t().tolist() if a in nodes and b in nodes)
    assert numbers[5, 0] == 2 and np.array_equal(large.sources[place], nodes[found[0]])


@pytest.mark.parametrize(("encoder", "hops"), [(GAT, 2), (GIN, 2), (GCN, 3)])
def test_a_seed_gets_what_it_gets_in_the_whole_graph(encoder: Any, hops: int) -> None:
    """Two layers in evaluation mode; a graph convolution needs one hop more, for the in-degrees at the border."""
    graph = directed()
    tokenizer = GraphTokenizer({"features": 5, "max_degree": 9, "density": 1.0}).double()
    network = encoder(tokenizer.spec, dim=8, depth=2).double().eval()
    whole = network(tokenizer(View(graph, "graph"))).x
    large, op = Large.of(graph), Neighbours(fanout=[-1] * hops)
    batch = Graph().collate([op(Seed(large, node), draws(node)) for node in range(40)])
    tokens = network(tokenizer(View(batch, "graph")))
    seeds = tokens.x[tokens.index == 0]
    assert torch.allclose(seeds, whole, atol=1e-6)
    if encoder is GCN:
        less = Graph().collate([Neighbours(fanout=[-1, -1])(Seed(large, node), draws(node)) for node in range(40)])
        tokens = network(tokenizer(View(less, "graph")))
        assert not torch.allclose(tokens.x[tokens.index == 0], whole, atol=1e-3)


def test_degrees_are_those_of_the_whole_graph() -> None:
    """Without features nodes are encoded by their in-degrees before anything was sampled."""
    graph = directed()
    del graph.x
    large = Large.of(graph)
    egos = [Neighbours(fanout=[2])(Seed(large, node), draws(node)) for node in range(40)]
    tokenizer = GraphTokenizer({"features": 0, "max_degree": large.max_degree, "density": 0.0})
    whole = tokenizer(View(graph, "graph")).raw
    for given in (egos, egos[:1]):
        raw = tokenizer(View(Graph().collate(given), "graph")).raw
        assert torch.equal(raw, whole[torch.cat([ego.node for ego in given])])


def test_subsets_are_drawn_alike() -> None:
    """All ten pairs of five in-edges come up equally often, whatever else is drawn."""
    from torch_geometric.data import Data

    edges = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 1], [0, 0, 0, 0, 0, 1, 2, 2, 2, 2]])
    large = Large.of(Data(edge_index=edges, num_nodes=10))
    seen = Counter[tuple[int, ...]]()
    for i in range(2000):
        found = sample_sources(large, np.array([1, 2, 0]), 2, draws(i))
        assert found[0] == 6 and len(found) == 5
        seen[tuple(sorted(set(found[3:].tolist())))] += 1
    assert set(seen) == set(itertools.combinations(range(1, 6), 2))
    assert max(abs(count - 200) for count in seen.values()) < 60  # 4.5 standard deviations


def test_fanout_bounds_every_hop() -> None:
    large = Large.of(directed(edges=600))
    for node in range(39):
        ego = Neighbours(fanout=[3, 2])(Seed(large, node), draws(node))
        first = len(sample_sources(large, np.array([node]), 3, draws(node).named("hop/0")))
        assert first == 3 and ego.num_nodes <= 1 + 3 + 6
    one, other = (Neighbours(fanout=[3, 2])(Seed(large, 0), draws(0, epoch)).node.tolist() for epoch in (0, 1))
    assert one != other


def data(root: Any, **said: Any) -> Data:
    said = {"batch_size": 8, "workers": 0} | said
    op = Neighbours(fanout=[2, 2])
    return Data(
        Graph(), 3, source=lambda adapter: OwnGraph(adapter, root=str(root)), views={"x": [op]}, view=[op], **said
    )


def same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert torch.equal(one["id"], two["id"]) and torch.equal(one["label"], two["label"])
    for key in ("x", "edge_index", "batch"):
        assert torch.equal(one["x"].data[key], two["x"].data[key]), key


def test_draws_alone_decide(tmp_path: Any) -> None:
    """A neighbourhood is the same in any batch, on any rank and in any worker."""
    root = write(tmp_path / "g", **arrays_of(directed(edges=400)))
    whole = list(data(root).train_dataloader())
    assert [len(batch["id"]) for batch in whole] == [8] * 5 and whole[0]["label"].shape == (8, 1)
    for one, two in zip(whole, data(root, workers=2).train_dataloader(), strict=True):
        same(one, two)
    parts = []
    for rank in range(2):
        held = data(root)
        held.set_share(rank, 2)
        parts.append(list(held.train_dataloader()))
    for batch, *pieces in zip(whole, *parts, strict=True):
        assert torch.equal(batch["x"].data.x, torch.cat([piece["x"].data.x for piece in pieces]))
    alone = data(root).batch([(0, int(whole[0]["id"][5]))])["x"].data
    first = whole[0]["x"].data
    assert torch.equal(alone.x, first.x[first.batch == 5])


def test_mapped_graphs_stay_mapped(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges are sorted once and kept; nothing is sent to a worker but paths; all is as in memory."""
    graph = directed(edges=400)
    graph.edge_attr = torch.randn(graph.edge_index.shape[1], 2)
    root = write(tmp_path / "g", **arrays_of(graph), edge_attr=graph.edge_attr.numpy())
    source = OwnGraph(Graph(), root=str(root))
    source.seeds()
    with monkeypatch.context() as patch:
        patch.setattr(large_file, "_sorted", lambda *_: pytest.fail("sorted twice"))
        mapped: Any = source.seeds()["train"]
    assert (
        not mapped.in_memory and isinstance(mapped.graph.x, np.memmap) and isinstance(mapped.graph.sources, np.memmap)
    )
    content = pickle.dumps(mapped.graph)
    assert len(content) < 2000
    inside = Large.of(graph)
    op = Neighbours(fanout=[2, 2])
    for node in range(40):
        egos = [op(Seed(held, node), draws(node)) for held in (inside, mapped.graph, pickle.loads(content))]
        for ego in egos[1:]:
            assert all(torch.equal(ego[key], egos[0][key]) for key in ("x", "edge_index", "edge_attr", "node"))
    before = mapped.fingerprint()
    write(tmp_path / "g", x=graph.x.numpy() + 1)
    assert source.seeds()["train"].fingerprint() != before
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "g" / "x.npy"))  # a file: nothing can be kept below it
    assert np.array_equal(source.seeds()["train"].graph.sources, inside.sources)  # pyright: ignore[reportAttributeAccessIssue]


def test_seeds_and_whole_graph_agree(tmp_path: Any) -> None:
    """Facts that parts are built from, labels, and the raw-input baseline."""
    root = write(tmp_path / "g", **arrays_of(directed()))
    seeds, whole = data(root), data(root, batch_size="full")
    keys = ("features", "edge_features", "max_degree", "density", "nodes", "edges", "counted")
    assert {key: seeds.facts()[key] for key in keys} == {key: whole.facts()[key] for key in keys}
    assert seeds.facts()["splits"] == {"train": 40, "val": 10, "test": 10}
    dense = whole.adapter.baseline(whole.splits["train"].read(0))
    for split in ("train", "val", "test"):
        held: Any = seeds.splits[split]
        numbers = [held.read(i).node for i in range(len(held))]
        assert torch.equal(held.labels[:, 0], whole.splits[split].labels[0, numbers])  # pyright: ignore[reportOptionalSubscript]
        made = torch.cat([seeds.adapter.baseline(held.read(i)) for i in range(len(held))])
        assert torch.allclose(made, dense[numbers], atol=1e-5)
    assert "[node 21]" in seeds.splits["val"].name(1)


def test_whole_graphs_pass_untouched_and_bare_seeds_are_refused() -> None:
    graph = directed()
    assert Neighbours()(graph, draws(0)) is graph
    with pytest.raises(ValueError, match=r"no view operation takes their neighbourhoods: put .*view/neighbours"):
        Graph().collate([Seed(Large.of(graph), 0)])


@pytest.mark.parametrize("fanout", [[], [0], [3, -2], [1.5], "10"])
def test_wrong_fanouts_are_refused(fanout: Any) -> None:
    with pytest.raises(ValueError, match=r"view/neighbours: fanout needs a whole number"):
        Neighbours(fanout=fanout)


def test_a_run_on_seed_nodes(runs: Any) -> None:
    """The recipe on the shipped sample with a number as batch size: trains, scores, and takes the features of seeds."""
    run = mmssl.pretrain(
        "graph/graphmae",
        ["data=sample", "data.batch_size=64", "trainer.max_steps=3", "encoder.dim=16", "evaluation.limit=300",
         "evaluation.protocols.linear=null"],
    )  # fmt: skip
    summary = run.summary
    assert summary["status"] == "completed"
    score = summary["eval"]["knn"]
    assert score["n_test"] == 300 and 0 < score["value"] <= 1 and score["raw_input"] > 1 / 7
