"""Walks, bandwidths, pairs without an edge and the loss over edges (MaskGAE, Bandana), against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mmssl.api import resolve
from mmssl.config import build
from mmssl.draws import Draws
from mmssl.modalities.graph.adapter import Graph
from mmssl.modalities.graph.edge_maskers import Bandwidths, Paths, WeighEdges
from mmssl.modalities.graph.edge_terms import Vacant
from mmssl.modalities.graph.encoders import GAT, GCN
from mmssl.modalities.graph.maskers import Edges, Nodes
from mmssl.modalities.graph.tokenizer import GraphTokenizer
from mmssl.parts.heads import MLP
from mmssl.parts.perceptron import Perceptron
from mmssl.types import TokenSpec, View
from tests.modalities.graph.small_graphs import directed, undirected

torch.set_num_threads(1)


def tokens(graphs: list[Any]) -> Any:
    width = graphs[0].x.shape[1]
    return GraphTokenizer({"features": width, "max_degree": 9, "density": 1.0})(View(Graph().collate(graphs), "graph"))


def draws(*ids: int) -> Draws:
    return Draws.of(3, 0, torch.tensor(ids))


def chain(n: int) -> Any:
    """A path of n nodes, edges both ways."""
    from torch_geometric.data import Data

    one = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    return Data(x=torch.randn(n, 4), edge_index=torch.cat([one, one.flip(0)], 1), num_nodes=n)


# walks


@pytest.mark.parametrize("symmetric", [False, True])
def test_walks_against_a_plain_loop(symmetric: bool) -> None:
    graphs, ids = [undirected(12, 20, 1), directed(20, 4, 2, 25), undirected(20, 40, 3)], (5, 0, 9)
    whole = tokens(graphs)
    found = Paths(ratio=0.4, length=3, symmetric=symmetric)(whole, draws(*ids), 0.0, None)
    edges, wanted, first = whole.edges.t().tolist(), set[int](), 0
    for graph, sample in zip(graphs, ids, strict=True):
        n = int(graph.num_nodes)
        luck = draws(sample).named("starts").uniform(n)[0].tolist()
        starts = sorted(range(n), key=luck.__getitem__)[: round(0.4 * n)]
        for start in starts:
            node = start + first
            for step in range(3):
                out = [k for k, (a, b) in enumerate(edges) if a == node and a != b]
                if not out:
                    break
                u = draws(sample).named(f"step/{step}").uniform(n)[0, start]
                taken = out[int(u * len(out))]
                wanted.add(taken)
                node = edges[taken][1]
        first += n
    if symmetric:
        taken = {tuple(sorted(edges[k])) for k in wanted}
        wanted = {k for k, edge in enumerate(edges) if tuple(sorted(edge)) in taken}
    assert set(found.targets[0, 0].nonzero().squeeze(1).tolist()) == wanted and len(wanted) > 10
    kept = {tuple(edge) for k, edge in enumerate(edges) if k not in wanted}
    assert found.visible[0].tolist() == [(a, b) in kept or (not symmetric and (b, a) in kept) for a, b in edges]


def test_a_walk_hides_at_most_its_steps() -> None:
    """On a path graph, one start: between one and three edges, one piece; both directions alike."""
    whole = tokens([chain(40)])
    for epoch in range(20):
        given = Draws.of(0, epoch, torch.tensor([1]))
        hidden = Paths(ratio=0.025, length=3)(whole, given, 0.0, None).hidden[0]
        places = sorted({int(whole.edges[:, k].min()) for k in hidden.nonzero().squeeze(1)})
        assert 1 <= len(places) <= 3 and places == list(range(places[0], places[-1] + 1))
        assert int(hidden.sum()) == 2 * len(places)


def test_graphs_without_edges_and_bad_shares() -> None:
    bare = undirected(4, 20)
    bare.edge_index = torch.zeros(2, 0, dtype=torch.int64)
    assert bool(Paths(ratio=0.9)(tokens([bare]), draws(0), 0.0, None).visible.all())
    assert int(Paths(ratio=0.9)(tokens([bare, chain(9)]), draws(0, 1), 0.0, None).hidden.sum()) > 0
    with pytest.raises(ValueError, match=r"masker\.ratio .* did you mean 0\.7"):
        Paths(ratio=70)
    with pytest.raises(ValueError, match=r"masker\.length is the number of steps"):
        Paths(length=0)


# bandwidths


def bands(whole: Any, ids: tuple[int, ...], **said: Any) -> torch.Tensor:
    found = Bandwidths(**said)(whole, draws(*ids), 0.0, None)
    assert bool(found.visible.all()) and torch.equal(found.targets[0, 0], whole.edges[0] != whole.edges[1])
    return found.weight


def test_bandwidths_of_what_a_node_receives_sum_to_one() -> None:
    whole = tokens([undirected(12, 20, 1), directed(20, 4, 2, 60)])
    apart, n = whole.edges[0] != whole.edges[1], len(whole.index)
    degree = torch.bincount(whole.edges[1, apart], minlength=n)
    weight = bands(whole, (4, 7), layers=2, temperature=[0.5, 0.9])
    for layer in weight:
        sums = torch.zeros(n).index_add(0, whole.edges[1, apart], layer[apart])
        torch.testing.assert_close(sums, (degree > 0).float())
        assert bool((layer[~apart] == 1).all())
    assert not torch.allclose(weight[0], weight[1])
    place = int(whole.edges[1, 0])  # of the first edge's node, by hand
    chosen = [k for k in range(len(apart)) if apart[k] and int(whole.edges[1, k]) == place]
    given = draws(4).named("layer/0")
    radius, angle = (given.named(name).uniform(40)[0] for name in ("radius", "angle"))
    luck = (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()
    torch.testing.assert_close(weight[0, chosen], torch.softmax(luck[chosen] / 0.5, 0))
    even = bands(whole, (4, 7), layers=1, temperature=1e6)[0, apart]
    torch.testing.assert_close(even, 1 / degree[whole.edges[1, apart]], rtol=1e-4, atol=0)
    sharp = bands(whole, (4, 7), layers=1, temperature=1e-4)[0, apart]
    torch.testing.assert_close(sharp, sharp.round(), atol=1e-3, rtol=0)
    alone = bands(tokens([undirected(12, 20, 1)]), (4,), layers=2, temperature=[0.5, 0.9])
    count = int((whole.sample[whole.edges[0, apart]] == 0).sum())
    torch.testing.assert_close(alone[:, :count], weight[:, :count])  # whatever else is in the batch
    with pytest.raises(ValueError, match=r"one for each of the 3 layers \(got \[1\.0\]\)"):
        Bandwidths(layers=3, temperature=[1.0])


def test_a_convolution_weighs_edges_as_dense_matrices_do() -> None:
    whole = tokens([undirected(12, 20, 1), undirected(9, 12, 2)])
    found = Bandwidths(layers=2)(whole, draws(1, 2), 0.0, None)
    seen = WeighEdges(TokenSpec(4, 0), "graph", 6)(whole, found, draws(1, 2))
    encoder = GCN(TokenSpec(4, 0), dim=6, expansion=2, activation="elu", joined=True).double().eval()
    h, layers, n = whole.raw.double(), [], len(whole.index)
    for layer, weight in zip(encoder.stack.layers, found.weight.double(), strict=True):
        a = torch.zeros(n, n, dtype=torch.float64)
        for (j, i), w in zip(whole.edges.t().tolist(), weight, strict=True):
            a[i, j] += w
        scale = a.sum(1).rsqrt()
        h = F.elu(scale[:, None] * a * scale @ h @ layer.matrix.t() + layer.conv.bias)
        layers.append(h)
    answer = encoder(seen.but(raw=whole.raw.double()))
    torch.testing.assert_close(answer.x, torch.cat(layers, 1))
    assert encoder.dim == 18 and encoder.tap_dims == {"block.0": 12, "block.1": 6}
    torch.testing.assert_close(answer.taps["block.1"], layers[1])
    with pytest.raises(ValueError, match="encoder=gcn"):
        GAT(TokenSpec(4, 0), dim=8, heads=2)(seen)
    with pytest.raises(ValueError, match=r"weights for 2 layers, but the encoder has 3; set masker\.layers"):
        GCN(TokenSpec(4, 0), dim=8, depth=3).double()(seen.but(raw=whole.raw.double()))
    with pytest.raises(ValueError, match="masker/bandwidths"):
        WeighEdges(TokenSpec(4, 0), "graph", 6)(whole, Edges()(whole, draws(1, 2), 0.0, None), draws(1, 2))


# pairs without an edge


def test_pairs_without_an_edge_are_drawn_evenly() -> None:
    graphs = [undirected(6, 8, 1), directed(9, 4, 2, 12), undirected(3, 60, 4)]
    whole = tokens(graphs)
    free: list[set[tuple[int, int]]] = []
    edges, first = set(map(tuple, whole.edges.t().tolist())), 0
    for graph in graphs:
        nodes = range(first, first + int(graph.num_nodes))
        free.append({(a, b) for a in nodes for b in nodes if a != b and (a, b) not in edges})
        first += int(graph.num_nodes)
    vacant = Vacant(whole.edges, whole.sample, 3)
    assert vacant.free.tolist() == [len(pairs) for pairs in free] and not free[2]
    wanted = torch.tensor([4000, 700, 5])
    drawn = [tuple(pair) for pair in vacant.draw(wanted, draws(1, 2, 3)).t().tolist()]
    assert vacant.count(wanted).tolist() == [4000, 700, 0] and len(drawn) == 4700
    assert set(drawn[:4000]) == free[0] and set(drawn[4000:]) <= free[1]
    counts = torch.tensor([drawn[:4000].count(pair) for pair in free[0]]).double()
    mean = 4000 / len(free[0])
    assert float(((counts - mean) ** 2 / mean).sum()) < 2.5 * len(free[0])  # chi square
    none = torch.zeros(3, dtype=torch.int64)
    assert vacant.draw(none, draws(1, 2, 3)).shape == (2, 0)


# the terms


def module(recipe: str, graphs: list[Any], *overrides: str) -> Any:
    tree = resolve(recipe, ["data=sample", "encoder.dim=8", "encoder.norm=null", "encoder.dropout=0", *overrides])
    made = build.module(tree, {"features": 4, "max_degree": 9, "density": 1.0, "samples": len(graphs)}).double()
    return made.eval()


def batch(graphs: list[Any], ids: list[int]) -> dict[str, Any]:
    return {
        "x": View(Graph().collate(graphs), "graph"), "id": torch.tensor(ids), "epoch": torch.zeros(len(ids)).long(),
    }  # fmt: skip


def zero(made: Any) -> Any:
    for parameter in made.objective.parameters():
        torch.nn.init.zeros_(parameter)
    return made


def test_maskgae_at_logits_of_zero() -> None:
    """2 ln 2, and the mean square of the degrees in the graph of hidden edges."""
    graphs = [undirected(12, 20, 1), undirected(20, 40, 3)]
    made = zero(module("graph/maskgae", graphs)).requires_grad_(False)
    step = made.begin(batch(graphs, [0, 1]))
    values = {name: (term(step), term.count(step)) for name, term in made.objective.items()}
    (sums, weights), counted = values["edges"]
    assert torch.equal(weights.long(), counted) and int(counted[0]) == int(step["x"].mask.hidden.sum())
    assert float((sums / weights).sum()) == pytest.approx(2 * math.log(2))
    hidden = step["x"].tokens.edges[:, step["x"].mask.hidden[0]]
    degrees = [sum(b == node for _, b in hidden.t().tolist()) for node in range(32)]
    (total, number), _ = values["degrees"]
    assert float(total / number) == pytest.approx(sum(d * d for d in degrees) / 32) and int(number) == 32
    assert len(step["x"].seen.edges[0]) == len(step["x"].tokens.edges[0]) - len(hidden[0])  # what is hidden is gone


def test_bandana_at_logits_of_zero() -> None:
    """Every layer's loss is ln 2 (mean bandwidth + 1)."""
    graphs = [undirected(12, 20, 1), undirected(20, 40, 3)]
    made = zero(module("graph/bandana", graphs)).requires_grad_(False)
    step = made.begin(batch(graphs, [0, 1]))
    sums, weights = made.objective["edges"](step)
    edges = step["x"].tokens.edges
    mean = float(step["x"].mask.weight[:, edges[0] != edges[1]].mean())
    assert float((sums / weights).sum()) == pytest.approx(math.log(2) * (mean + 1), rel=1e-6)


def test_the_loss_over_edges_is_cross_entropy_of_two_classes() -> None:
    graphs = [undirected(12, 20, 1)]
    made = module("graph/bandana", graphs).requires_grad_(False)
    step, term = made.begin(batch(graphs, [3])), made.objective["edges"]
    sums, weights = term(step)
    look = step["x"]
    edges = look.tokens.edges[:, look.tokens.edges[0] != look.tokens.edges[1]]
    none = Vacant(look.tokens.edges, look.tokens.sample, 1)
    drawn = none.draw(torch.tensor([edges.shape[1]]), look.draws.named("absent"))
    losses = []
    for i in range(3):
        z = look.seen.taps[f"block.{i}"]
        pos, neg = (torch.log_softmax(term.head(z[a] * z[b]), -1) for a, b in (edges, drawn))
        weight = look.mask.weight[i, : edges.shape[1]]
        losses.append(-(weight * pos[:, 0]).mean() - neg[:, 1].mean())
    assert float((sums / weights).sum()) == pytest.approx(float(sum(losses)) / 3)
    term.aligned = False
    other = term(step)[0]
    assert float(other[1]) == float(sums[1]) and abs(float(other[0] - sums[0])) > 1e-3


@pytest.mark.parametrize("recipe", ["graph/maskgae", "graph/bandana"])
def test_graphs_in_several_batches_train_what_one_batch_trains(recipe: str) -> None:
    """Ranks hold different graphs: sums and numbers of theirs add up to those of the global batch."""
    graphs = [undirected(8 + 3 * i, 30, i) for i in range(5)]
    made = module(recipe, graphs)
    parts = [range(3), range(3, 5)]
    for term in made.objective.values():
        whole = [value.reshape(-1) for value in term(made.begin(batch(graphs, [*range(5)])))]
        pieces = [term(made.begin(batch([graphs[i] for i in ids], [*ids]))) for ids in parts]
        for k in range(2):
            torch.testing.assert_close(whole[k], sum(piece[k].reshape(-1) for piece in pieces))


def test_refusals() -> None:
    graphs = [undirected(12, 20, 1)]
    made = module("graph/bandana", graphs)
    made.looks["x"].masker = Nodes()
    with pytest.raises(ValueError, match=r"a term asks for edges.*masker/paths"):
        made.objective["edges"](made.begin(batch(graphs, [0])))
    with pytest.raises(ValueError, match=r"names 'block\.9'"):
        module("graph/maskgae", graphs, "objective.edges.layers=[block.9]")
    with pytest.raises(ValueError, match=r"have \[8, 16\] features"):
        module("graph/maskgae", graphs, "objective.edges.layers=[block.0,block.1]")
    with pytest.raises(ValueError, match="1 or 2 logits"):
        module("graph/maskgae", graphs, "objective.edges.head.dims=[8,3]")
    with pytest.raises(ValueError, match=r"dropout is a share"):
        MLP(4, dims=[3, 1], norm=None, dropout=1.0)
    with pytest.raises(ValueError, match=r"some of the encoder's 6 features, at least one \(got 9\)"):
        Perceptron(TokenSpec(4, 0), 6, 1, (), last=9)


def test_perceptrons() -> None:
    head = MLP(6, dims=[5, 2], norm=None, dropout=0.3)
    assert [type(part).__name__ for part in head.layers] == ["Dropout", "Linear", "ReLU", "Linear"]
    part = Perceptron(TokenSpec(4, 0), 6, 2, (), dims=[5], last=3).eval()
    whole = tokens([undirected(12, 20, 1)]).but(x=torch.randn(12, 6))
    first, last = part.layers[0], part.layers[3]
    wanted = last(first(whole.x[:, 3:]).relu())
    torch.testing.assert_close(part(whole, whole.take(torch.arange(12)[None])), wanted)
