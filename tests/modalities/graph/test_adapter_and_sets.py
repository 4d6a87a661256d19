"""What generic code knows of graphs, the named sets, and the pictures."""

from __future__ import annotations

import io
import os
import pickle
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch_geometric.data import Batch, Data

from mmssl.modalities.graph.adapter import Graph
from mmssl.modalities.graph.large import Large, Seed
from mmssl.modalities.graph.pictures import draw, layout, neighbourhood
from mmssl.modalities.graph.sets import TU, GraphSample, Planetoid, refuse_code
from mmssl.modalities.graph.tokenizer import GraphTokenizer
from mmssl.types import View
from tests.modalities.graph.small_graphs import directed, undirected

GREY = np.array([205, 205, 210])


def test_collate_is_torch_geometrics_batch() -> None:
    graphs = [undirected(6, 9, 1), directed(5, 4, 2, 8), undirected(9, 12, 3)]
    for graph in graphs:
        graph.edge_attr = torch.randn(graph.edge_index.shape[1], 2)
    made, wanted = Graph().collate(graphs), Batch.from_data_list(graphs)
    for key in ("x", "edge_index", "edge_attr", "batch", "ptr"):
        assert torch.equal(made[key], wanted[key]), key
    assert made.num_graphs == 3 and made.num_nodes == 20
    one = Graph().collate(graphs[:1])
    assert one is not graphs[0] and one.x is graphs[0].x and one.get("batch") is None
    for other in (undirected(4, 4, width=3), Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=2)):
        with pytest.raises(ValueError, match=r"differ in their number of node features \((3, 4|4, none)\)"):
            Graph().collate([graphs[0], other])


def test_facts_by_hand() -> None:
    """In-degrees with self loops as the data have them; shares over all nodes."""
    one = Data(
        x=torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 3.0]]), edge_index=torch.tensor([[0, 1, 2, 2], [2, 2, 2, 0]])
    )
    two = Data(x=torch.tensor([[0.0, 5.0]]), edge_index=torch.zeros(2, 0, dtype=torch.int64))
    assert Graph().facts(iter([one, two])) == {
        "features": 2, "edge_features": 0, "max_degree": 3, "density": 4 / 8, "nodes": [1, 3], "edges": [0, 4], "counted": 2,
    }  # fmt: skip
    one.edge_attr = torch.zeros(4, 3)
    assert Graph().facts([one])["edge_features"] == 3 and Graph().facts([one, two])["edge_features"] == 0
    with pytest.raises(ValueError, match="gave no readable graph"):
        Graph().facts([])
    with pytest.raises(ValueError, match=r"data\.channels=3 means nothing for graphs"):
        Graph().convert(one, 3)


def test_baseline_against_dense_matrices() -> None:
    """Two smoothings by D^-1/2 (A + I) D^-1/2, with one self loop a node and repeated edges counted."""
    graph = directed()
    dense = torch.zeros(40, 40, dtype=torch.float64)
    for source, target in graph.edge_index.t().tolist():
        dense[target, source] += source != target
    dense += torch.eye(40)
    scale = dense.sum(1).rsqrt()
    matrix = scale[:, None] * dense * scale[None]
    wanted = (matrix @ matrix @ graph.x.double()).float()
    seeds = [Graph().baseline(Seed(Large.of(graph), node)) for node in range(40)]
    assert all(seed.shape == (1, 5) for seed in seeds) and torch.allclose(torch.cat(seeds), wanted, atol=1e-5)
    graph.train_mask = torch.ones(40, dtype=torch.bool)
    assert torch.allclose(Graph().baseline(graph), wanted, atol=1e-5)


def test_baseline_of_a_small_graph_by_hand() -> None:
    """Nodes, edges, mean and deviation of the in-degrees, their shares, mean features."""
    graph = Data(x=torch.tensor([[2.0], [4.0]]), edge_index=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    wanted = [2, 3, 1.5, 1.5, 0.5, 0, 0, 0.5, 0, 0, 0, 0, 0, 0, 0, 3]
    assert torch.allclose(Graph().baseline(graph), torch.tensor(wanted))


def test_decode_gives_back_what_was_saved() -> None:
    graph = directed()
    content = io.BytesIO()
    attributes = np.arange(112, dtype=np.int32)
    np.savez(content, x=graph.x.numpy().astype(np.float16), edge_index=graph.edge_index.numpy().astype(np.uint8),
             edge_attr=attributes, y=np.array(["a"]))  # fmt: skip
    read = Graph().decode(content.getvalue())
    assert torch.equal(read.x, graph.x.half().float()) and torch.equal(read.edge_index, graph.edge_index)
    assert torch.equal(read.edge_attr, torch.arange(112.0).view(-1, 1)) and read.num_nodes == 40
    content = io.BytesIO()
    np.savez(content, edge_index=np.array([[0, 4], [4, 0]]))
    assert Graph().decode(content.getvalue()).num_nodes == 5
    content = io.BytesIO()
    np.savez(content, nodes=np.zeros(3))
    with pytest.raises(ValueError, match=r"needs the array `edge_index` \(2, edges\).*found nodes"):
        Graph().decode(content.getvalue())


@pytest.fixture(scope="module")
def cora() -> GraphSample:
    return GraphSample(Graph())


def test_the_sample_is_cora(cora: GraphSample) -> None:
    """Published counts: 2,708 nodes, 5,278 edges, 1,433 words, 7 classes, the public split."""
    splits = cora.splits()
    graph = splits["train"].read(0)
    assert graph.num_nodes == 2708 and graph.x.shape == (2708, 1433) and graph.edge_index.shape == (2, 2 * 5278)
    assert graph.is_undirected() and not graph.has_self_loops() and int(graph.x.sum()) == 49216
    counts = {name: int((dataset.labels >= 0).sum()) for name, dataset in splits.items() if dataset.labels is not None}
    assert counts == {"train": 140, "val": 500, "test": 1000}
    assert splits["train"].labels is not None and splits["train"].classes is not None
    assert torch.bincount(splits["train"].labels[0].clamp(min=-1) + 1).tolist() == [2568, *[20] * 7]
    assert len(splits["train"].classes) == 7
    seeds = cora.seeds()
    assert {name: len(dataset) for name, dataset in seeds.items()} == {"train": 2708, "val": 500, "test": 1000}
    for name, dataset in seeds.items():
        assert dataset.labels is not None and int((dataset.labels >= 0).sum()) == counts[name]
        assert dataset.labels.shape == (len(dataset), 1)


def tu(folder: Any, labelled: bool = True) -> Any:
    """Ten graphs in the text format of the collection: rings and stars of 3 + i nodes, numbered from 1."""
    edges, owner, kinds, nodes, start = [], [], [], [], 1
    for i in range(10):
        n = 3 + i
        pairs = [(0, j) for j in range(1, n)] if i % 2 else [(j, (j + 1) % n) for j in range(n)]
        edges += [f"{start + a}, {start + b}\n{start + b}, {start + a}\n" for a, b in pairs]
        owner += [f"{i + 1}\n"] * n
        nodes += [f"{j % 3}\n" for j in range(n)]
        kinds.append(f"{1 if i % 2 else -1}\n")
        start += n
    folder.mkdir(parents=True)
    for name, lines in {"A": edges, "graph_indicator": owner, "graph_labels": kinds}.items():
        (folder / f"TOY_{name}.txt").write_text("".join(lines))
    if labelled:
        (folder / "TOY_node_labels.txt").write_text("".join(nodes))
    return folder


@pytest.mark.parametrize("place", ["", "raw", "TOY/raw"])
def test_tu_text_files(tmp_path: Any, place: str) -> None:
    """All graphs train, a part of each class without its label, which is the test split."""
    tu(tmp_path / "root" / place, labelled=place != "raw")
    splits: Any = TU(Graph(), root=str(tmp_path / "root"), name="TOY", test_share=0.4).splits()
    train, test = splits["train"], splits["test"]
    assert len(train) == 10 and len(test) == 4 and torch.bincount(test.labels).tolist() == [2, 2]
    assert (train.labels == -1).sum() == 4 and sorted(train.labels[train.labels >= 0].tolist()) == [0] * 3 + [1] * 3
    for i in range(10):
        graph = train.read(i)
        assert graph.num_nodes == 3 + i and int(graph.edge_index.max()) == 2 + i and int(graph.edge_index.min()) == 0
        assert graph.edge_index.shape[1] == 2 * (2 + i if i % 2 else 3 + i)
        if place == "raw":
            assert graph.x is None
        else:
            assert torch.equal(graph.x, torch.eye(3)[torch.arange(3 + i) % 3])
    with pytest.raises(ValueError, match=r"holds no TOI: expected TOI_A\.txt"):
        TU(Graph(), root=str(tmp_path / "root"), name="TOI").splits()


def test_broken_tu_files_are_named(tmp_path: Any) -> None:
    root = tu(tmp_path / "root")
    (root / "TOY_A.txt").write_text("1, 2\n2, x\n")
    with pytest.raises(ValueError, match=r"the files TOY_\*\.txt in .* cannot be read"):
        TU(Graph(), root=str(root), name="TOY").splits()


def old_pickle(value: Any) -> bytes:
    """As the libraries of 2016 name their classes."""
    content = pickle.dumps(value, protocol=3)
    return content.replace(b"scipy.sparse._csr\n", b"scipy.sparse.csr\n").replace(b"numpy._core.", b"numpy.core.")


def planetoid(folder: Any, n: int = 600, held: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """A citation network in Planetoid's files: a ring, six labelled nodes, the last ten nodes test."""
    x = (np.arange(n)[:, None] % np.array([2, 3, 5]) == 0).astype(np.float32)
    y = np.arange(n) % 3
    one_hot = np.eye(3, dtype=np.int32)[y]
    ring = defaultdict(list, {i: [(i - 1) % n, (i + 1) % n] for i in range(n)})
    known = n - held
    parts = {
        "x": scipy.sparse.csr_matrix(x[:6]), "tx": scipy.sparse.csr_matrix(x[known:]), "graph": ring, "y": one_hot[:6],
        "allx": scipy.sparse.csr_matrix(x[:known]), "ty": one_hot[known:], "ally": one_hot[:known],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        (folder / f"ind.cora.{name}").write_bytes(old_pickle(part))
    (folder / "ind.cora.test.index").write_text("".join(f"{i}\n" for i in range(known, n)))
    return x, y


def test_planetoid_files(tmp_path: Any) -> None:
    x, y = planetoid(tmp_path / "Cora" / "raw")
    source = Planetoid(Graph(), root=str(tmp_path), name="Cora")
    splits: Any = source.splits()
    graph = splits["train"].read(0)
    assert np.array_equal(graph.x, x) and graph.edge_index.shape == (2, 1200) and graph.is_undirected()
    for split, places in {"train": range(6), "val": range(6, 506), "test": range(590, 600)}.items():
        wanted = torch.full((600,), -1).index_copy(0, torch.tensor(places), torch.from_numpy(y[list(places)]))
        assert torch.equal(splits[split].labels[0], wanted)
    assert {name: len(dataset) for name, dataset in source.seeds().items()} == {"train": 600, "val": 500, "test": 10}
    (tmp_path / "Cora" / "raw" / "ind.cora.ty").unlink()
    with pytest.raises(ValueError, match=r"lacks ind\.cora\.ty; copy all eight files"):
        source.splits()
    with pytest.raises(ValueError, match=r"'corra' is none of Planetoid's graphs; did you mean 'cora'"):
        Planetoid(Graph(), root=".", name="corra")


class Hostile:
    """Unpickling it makes a folder."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_hostile_pickles_are_refused(tmp_path: Any) -> None:
    """Nothing of them is run, wherever it stands."""
    for value in (Hostile(tmp_path / "made"), {"deep": [Hostile(tmp_path / "made")]}):
        planetoid(tmp_path)
        (tmp_path / "ind.cora.graph").write_bytes(pickle.dumps(value))
        with pytest.raises(ValueError, match=r"ind\.cora\.graph is a pickle that calls (posix|nt)\.mkdir"):
            Planetoid(Graph(), root=str(tmp_path), name="cora").splits()
        assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(Hostile(tmp_path / "made")))
    assert (tmp_path / "made").exists()  # it would have been run
    good = tmp_path / "good"
    good.write_bytes(old_pickle(defaultdict(list, {0: [1]})))
    refuse_code(good)
    good.write_bytes(good.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"is not a file of Planetoid, or is cut off"):
        refuse_code(good)


def test_pictures() -> None:
    """Shape, and grey in place of a hidden node's colour."""
    graph = undirected(8, 14)
    whole = draw(graph)
    assert whole.shape == (160, 160, 3) and whole.dtype == np.uint8 and np.array_equal(whole, Graph().picture(graph))
    tokens = GraphTokenizer(Graph().facts([graph, graph]))(View(Graph().collate([graph, graph]), "graph"))
    shown = torch.arange(16) % 8 != 2
    masked = GraphTokenizer(Graph().facts([graph])).restore(tokens, shown)
    assert len(masked) == 2 and masked[1].hidden.tolist() == [i == 2 for i in range(8)]
    picture = Graph().picture(masked[0])
    spots = (160 * (0.06 + 0.88 * layout(graph.edge_index, 8))).long().tolist()
    for node, (x, y) in enumerate(spots):
        assert np.array_equal(picture[y, x], GREY if node == 2 else whole[y, x])
        assert not np.array_equal(whole[y, x], GREY)
    assert 0 < (picture != whole).any(-1).mean() < 0.05
    none = GraphTokenizer(Graph().facts([graph])).restore(tokens, None)
    assert np.array_equal(Graph().picture(none[0]), whole)


def test_pictures_of_large_graphs_and_seeds() -> None:
    """A neighbourhood of at most 60 nodes; of a seed its own."""
    graph = undirected(300, 900)
    nodes, edges = neighbourhood(graph.edge_index, 300)
    assert 2 < len(nodes) <= 60 and int(edges.max()) < len(nodes) and len(nodes.unique()) == len(nodes)
    assert Graph().picture(graph).shape == (160, 160, 3)
    seeds = [Graph().picture(Seed(Large.of(graph), node)) for node in (0, 0, 1)]
    assert np.array_equal(seeds[0], seeds[1]) and not np.array_equal(seeds[0], seeds[2])
