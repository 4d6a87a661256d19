"""GraphMAE's parts against a plain reference: dense matrices, one loop per head, no sparse products."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.api import resolve
from mmssl.config import build
from mmssl.draws import Draws
from mmssl.modalities.graph import quick
from mmssl.modalities.graph import tokens as graph_tokens
from mmssl.modalities.graph.corruptors import Replace
from mmssl.modalities.graph.layers import Attention, Convolution, Isomorphism
from mmssl.modalities.graph.losses import scaled_cosine
from mmssl.modalities.graph.maskers import Nodes
from mmssl.modalities.graph.sparse import Adjacency, SparseRows, propagate, softmax
from mmssl.modalities.graph.tokenizer import GraphTokenizer
from mmssl.types import TokenSpec, View

torch.set_num_threads(1)
OFF = ["encoder.dropout=0", "encoder.attention_dropout=0"]


def graph(n: int = 30, width: int = 12, seed: int = 0) -> Any:
    """A random graph with few features that are not zero, edges both ways and one self loop."""
    from torch_geometric.data import Data

    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(0, n, (2, 3 * n), generator=generator)
    pairs = pairs[:, pairs[0] != pairs[1]]
    edges = torch.cat([pairs, pairs.flip(0), torch.tensor([[3], [3]])], 1).unique(dim=1)
    x = torch.rand(n, width, generator=generator) * (torch.rand(n, width, generator=generator) < 0.4)
    x[:, 0] += 0.1
    return Data(x=x, edge_index=edges)


def facts(data: Any) -> dict[str, Any]:
    """What a tokenizer needs to know."""
    return {"features": data.x.shape[1], "max_degree": 9, "density": 0.0}


def tokens(data: Any, sparse: bool = True) -> Any:
    """Tokens of one graph, features divided by their sums."""
    return GraphTokenizer(facts(data), normalize=True, sparse=sparse)(View(data, "graph"))


def module(data: Any, *overrides: str, sparse: bool = True, **changes: Any) -> Any:
    """The module of graph/graphmae in double precision, sized for one graph."""
    tree = resolve("graph/graphmae", ["data=sample", "encoder.dim=16", *overrides])
    tree["tokenizer"]["sparse"] = sparse
    return build.module(tree | changes, facts(data) | {"samples": 1}).double()


def step(built: Any, data: Any) -> dict[str, Tensor]:
    """Gradients of one training step, and the loss under the name `loss`."""
    data = copy.copy(data)
    data.x = data.x.double()
    loss = built.training_step(
        {"x": View(data, "graph"), "id": torch.zeros(1, dtype=torch.int64), "epoch": torch.zeros(1, dtype=torch.int64)}
    )
    built.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in built.named_parameters()} | {"loss": loss.detach()}


def looped(edges: Tensor, n: int) -> Tensor:
    """A dense adjacency matrix, rows are targets, with one self loop per node."""
    dense = torch.zeros(n, n, dtype=torch.bool)
    dense[edges[1], edges[0]] = True
    return dense | torch.eye(n, dtype=torch.bool)


def attention(conv: Any, h: Tensor, linked: Tensor) -> Tensor:
    """Graph attention, head by head, with a dense softmax."""
    outs = []
    for i in range(conv.heads):
        z = h @ conv.lin.weight[i * conv.out_channels : (i + 1) * conv.out_channels].t()
        logits = F.leaky_relu((z @ conv.att_dst[0, i])[:, None] + (z @ conv.att_src[0, i])[None], 0.2)
        outs.append(torch.softmax(logits.masked_fill(~linked, -torch.inf), 1) @ z)
    return torch.cat(outs, 1) + conv.bias


def test_a_step_is_the_papers_step() -> None:
    """Loss and every gradient of the recipe, with its mask, equal those of the algorithm written plainly."""
    data = graph()
    built = module(data, *OFF, "objective.features.predictor.dropout=0", "objective.features.predictor.attention_dropout=0",
                   "masker.noise=0.3")  # fmt: skip
    nn.init.normal_(built.corruptors["x"].mask_token)
    got = step(built, data)
    look = built.begin({"x": View(data, "graph"), "id": torch.zeros(1, dtype=torch.int64),
                        "epoch": torch.zeros(1, dtype=torch.int64)})["x"]  # fmt: skip
    hidden, source = look.mask.hidden[0], look.mask.source[0]
    x = data.x.double() / data.x.double().sum(1, keepdim=True)
    linked = looped(data.edge_index, len(x))
    token = built.corruptors["x"].mask_token
    rows = [token if hidden[i] and source[i] < 0 else x[source[i]] if source[i] >= 0 else x[i] for i in range(len(x))]
    h = torch.stack(rows)
    stack = built.networks["main"].encoder.stack
    for layer, act in zip(stack.layers, stack.activations, strict=True):
        h = F.prelu(attention(layer.conv, h, linked), act.weight)
    predictor = built.objective["features"].predictor
    rep = (h @ predictor.bridge.weight.t()) * (~hidden).unsqueeze(1)
    made = attention(predictor.layer.conv, rep, linked)[hidden]
    loss = ((1 - (F.normalize(made, dim=1) * F.normalize(x[hidden], dim=1)).sum(1)) ** 3).mean()
    built.zero_grad()
    loss.backward()
    assert torch.allclose(got.pop("loss"), loss.detach(), atol=1e-12)
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None and torch.allclose(got[name], parameter.grad, rtol=1e-8, atol=1e-10), name
    assert float(got["corruptors.x.mask_token"].abs().sum()) > 0


@pytest.mark.parametrize("kind", ["gat", "gcn", "gin"])
def test_sparse_features_change_no_number(kind: str) -> None:
    """With sparse and with dense features a step gives the same loss and the same gradients."""
    data = graph()
    drop = ["encoder.dropout=0", "objective.features.predictor.dropout=0",
            "objective.features.predictor.attention_dropout=0"]  # fmt: skip
    drop += ["encoder.attention_dropout=0"] if kind == "gat" else []
    said = [f"encoder={kind}", f"objective.features.predictor.kind={kind}", *drop]
    built = [module(data, *said, sparse=sparse) for sparse in (True, False)]
    built[1].load_state_dict(built[0].state_dict())
    found = [step(one, data) for one in built]
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=1e-12), name


def test_dropout_of_sparse_features_is_dropout_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same dropped cells, the first layer is that of dense features, and so are its gradients."""
    data = graph()
    whole = tokens(data)
    mask = Nodes(ratio=0.5, noise=0.2)(whole, Draws.of(0, 0, torch.zeros(1, dtype=torch.int64)), 0.0, None)
    corruptor = Replace(TokenSpec(data.x.shape[1], 0), "graph", 8)
    nn.init.normal_(corruptor.mask_token)
    seen = corruptor(whole, mask, Draws.of(0, 0, torch.zeros(1, dtype=torch.int64)))
    table = (torch.rand(seen.raw.shape) >= 0.3).float()
    entries = seen.features.entries

    def kept(rows: int, columns: int, p: float, like: Tensor) -> tuple[Tensor, float]:
        others = torch.ones(len(table), dtype=torch.bool).index_fill(0, seen.replaced, False)
        shown = {(len(entries.row), 1): table[entries.row, entries.col].unsqueeze(1), (30, 12): table,
                 (len(seen.replaced), 12): table[seen.replaced], (int(others.sum()), 12): table[others]}  # fmt: skip
        return shown[rows, columns].clone(), 1 / 0.7

    monkeypatch.setattr(quick, "kept", kept)
    monkeypatch.setattr(graph_tokens, "kept", kept)
    weight = torch.randn(8, data.x.shape[1], requires_grad=True)
    found = []
    for variant in (seen, seen.but(features=None), seen.but(features=None, token=None, replaced=None)):
        out = graph_tokens.project(variant, weight, 0.3, True)
        found.append([out, *torch.autograd.grad(out.sin().sum(), [weight, corruptor.mask_token], retain_graph=True)])
    assert len(seen.replaced) != 15
    for a, b, c in zip(*found, strict=True):
        assert torch.allclose(a, c, atol=1e-5) and torch.allclose(b, c, atol=1e-5)
    assert bool((table[seen.replaced] == 0).any())


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_that_of_torch_geometric(heads: int) -> None:
    """Values, and gradients of every parameter, on all nodes and on some of them, in both orders of multiplication."""
    data = graph()
    layer = Attention(12, 8, heads).double().eval()
    nn.init.normal_(layer.conv.bias)
    x = torch.randn(30, 12, dtype=torch.float64)
    edges = torch.cat([data.edge_index, torch.arange(30).expand(2, -1)], 1)
    expected = layer.conv(x, edges)
    links = Adjacency.of(edges[1], edges[0], (30, 30))
    assert torch.allclose(layer(F.linear(x, layer.matrix), links), expected, atol=1e-12)
    wanted = torch.autograd.grad(expected[5:9].sin().sum(), list(layer.parameters()))
    for some in (torch.arange(5, 9), torch.arange(30)):  # fewer rows behind the sum, and fewer before it
        keep = (edges[1] >= some[0]) & (edges[1] <= some[-1])
        part = Adjacency.of(edges[1, keep] - some[0], edges[0, keep], (len(some), 30))
        out = layer.at(x, x[some], part)
        assert torch.allclose(out, expected[some], atol=1e-12)
        rows = out if len(some) == 4 else out[5:9]
        for a, b in zip(torch.autograd.grad(rows.sin().sum(), list(layer.parameters())), wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-12)


def test_convolution_and_isomorphism_are_those_of_torch_geometric() -> None:
    """The two other layers, on edges that lead one way only."""
    data = graph()
    edges = torch.cat([data.edge_index[:, :40], torch.arange(30).expand(2, -1)], 1)
    x = torch.randn(30, 12, dtype=torch.float64)
    links = Adjacency.of(edges[1], edges[0], (30, 30))
    for layer in (Convolution(12, 7).double(), Isomorphism(12, 9, 7, "batch", "prelu").double().eval()):
        assert torch.allclose(layer(F.linear(x, layer.matrix), links), layer.conv(x, edges), atol=1e-12)


def test_sparse_products_and_softmax() -> None:
    """Against dense matrices, with gradients; a row without entries is zero."""
    row, col = torch.tensor([0, 2, 2, 0]), torch.tensor([1, 0, 3, 2])
    links = Adjacency.of(row, col, (3, 4))
    values = torch.randn(4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, h: propagate(v, h, links), (values, x))
    dense = torch.zeros(3, 4, dtype=torch.float64)
    dense[links.row, links.col] = values.detach()
    assert torch.allclose(propagate(values, x, links), dense @ x)
    logits = torch.tensor([[1.0], [500.0], [2.0], [499.0]])
    weights = softmax(logits[[0, 3, 1, 2]], links)
    assert torch.allclose(weights[:2], torch.softmax(logits[[0, 3]], 0)) and torch.isfinite(weights).all()
    picked = SparseRows.of(dense).pick(torch.tensor([2, -1, 2, 0]))
    back = torch.zeros(4, 4, dtype=torch.float64)
    back[picked.entries.row, picked.entries.col] = picked.values
    assert torch.equal(back, torch.stack([dense[2], torch.zeros(4), dense[2], dense[0]]).double())


def test_quick_functions_are_those_of_torch() -> None:
    """PReLU and thin products with all gradients; dropout keeps the share, the mean and the shape."""
    act = nn.PReLU().double()
    nn.init.constant_(act.weight, -0.4)
    x = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    columns = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(quick.prelu(act, x), act(x)) and torch.equal(quick.thin(x, columns), x @ columns)
    got = torch.autograd.grad(quick.thin(quick.prelu(act, x), columns).sin().sum(), [x, act.weight, columns])
    wanted = torch.autograd.grad((act(x) @ columns).sin().sum(), [x, act.weight, columns])
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, wanted, strict=True))
    for shape in ((401, 501), (200_003,)):
        dropped = quick.drop(torch.ones(shape), 0.2, True)
        assert dropped.shape == shape and sorted(dropped.unique().tolist()) == pytest.approx([0.0, 1.25], abs=1e-4)
        assert float(dropped.mean()) == pytest.approx(1.0, abs=0.005)
    assert quick.drop(x, 0.2, False) is x and quick.drop(x, 0.0, True) is x


def test_scaled_cosine_by_hand() -> None:
    """Golden numbers: cosines 0.96 and -1; an orthogonal and an equal pair give 0.5 for any power."""
    x, y = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [-1.0, 0.0]])
    for alpha, expected in ((1, 1.02), (2, 2.0008), (3, 4.000032)):
        assert math.isclose(float(scaled_cosine(x.double(), y.double(), alpha=alpha).mean()), expected, rel_tol=1e-9)
        half = scaled_cosine(torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 2.0]]), alpha=alpha)
        assert math.isclose(float(half.mean()), 0.5)
    zero = torch.zeros(1, 2, requires_grad=True)
    gone = scaled_cosine(zero, torch.tensor([[3.0, 4.0]]), alpha=1)
    gone.sum().backward()
    assert float(gone.detach()) == 1.0 and zero.grad is not None
    assert torch.allclose(zero.grad, -1e12 * torch.tensor([[0.6, 0.8]]))  # of a unit vector over the smallest norm
    with pytest.raises(ValueError, match=r"loss\.alpha"):
        scaled_cosine(x, y, alpha=0.5)


def nodes(count: int, ratio: float, noise: float, samples: int = 1) -> Any:
    """The mask of a batch of empty graphs of equal size."""
    from torch_geometric.data import Batch, Data

    empty = torch.zeros(2, 0, dtype=torch.int64)
    batch = Batch.from_data_list([Data(x=torch.ones(count // samples, 1), edge_index=empty) for _ in range(samples)])
    made = GraphTokenizer({"features": 1, "max_degree": 0, "density": 1.0})(View(batch, "graph"))
    return Nodes(ratio=ratio, noise=noise)(made, Draws.of(3, 0, torch.arange(samples)), 0.0, None)


@pytest.mark.parametrize(
    ("count", "ratio", "noise", "expected"),
    [(2708, 0.5, 0.05, (1286, 67, 1)), (3327, 0.5, 0.1, (1496, 166, 1)), (19717, 0.75, 0.0, (14787, 0, 0)),
     (10, 0.5, 0.1, (4, 0, 1))],
)  # fmt: skip
def test_counts_of_hidden_nodes(count: int, ratio: float, noise: float, expected: tuple[int, int, int]) -> None:
    """Cora, CiteSeer, PubMed, and a graph so small that no node gets another's features."""
    mask = nodes(count, ratio, noise)
    hidden = mask.hidden[0]
    assert torch.equal(mask.targets[0, 0], hidden)
    assert int(hidden.sum()) == sum(expected) == mask.target_count and mask.visible_count == count - sum(expected)
    if noise == 0:
        assert mask.source is None
        return
    source, own = mask.source[0], torch.arange(count)
    assert bool((source[~hidden] == -1).all())
    left = hidden & (source == own)
    taken = hidden & (source >= 0) & ~left
    assert (int((hidden & (source < 0)).sum()), int(taken.sum()), int(left.sum())) == expected
    assert len(source[taken].unique()) == int(taken.sum())


def test_nodes_are_counted_over_the_whole_batch() -> None:
    """Not per graph: graphs of 3 nodes have 0 to 3 hidden, and the mask is a function of the sample ids."""
    mask = nodes(300, 0.5, 0.1, samples=100)
    per_graph = mask.hidden[0].view(100, 3).sum(1)
    assert int(per_graph.sum()) == 150 and set(per_graph.tolist()) == {0, 1, 2, 3}
    assert torch.equal(mask.hidden, nodes(300, 0.5, 0.1, samples=100).hidden)
    share = torch.stack([nodes(40, 0.5, 0.0, samples=1).hidden[0]]).float().mean()
    assert float(share) == 0.5
    with pytest.raises(ValueError, match=r"masker\.ratio .* did you mean 0\.5"):
        Nodes(ratio=50.0)


def test_replacing_keeps_what_is_shown() -> None:
    """Token rows are the learned vector, noise rows another node's features, all else the node's own."""
    data = graph()
    whole = tokens(data)
    mask = Nodes(ratio=0.5, noise=0.4)(whole, Draws.of(1, 0, torch.zeros(1, dtype=torch.int64)), 0.0, None)
    corruptor = Replace(TokenSpec(12, 0), "graph", 8)
    assert not bool(corruptor.mask_token.any())
    nn.init.normal_(corruptor.mask_token)
    seen = corruptor(whole, mask, Draws.of(1, 0, torch.zeros(1, dtype=torch.int64)))
    assert mask.source is not None
    for i in range(30):
        source = int(mask.source[0, i])
        expected = whole.raw[i] if mask.visible[0, i] else corruptor.mask_token if source < 0 else whole.raw[source]
        assert torch.equal(seen.raw[i], expected)
    assert seen.edges is whole.edges


def test_parameters_of_cora() -> None:
    """Encoder, bridge, decoder and token have the paper's sizes."""
    tree = resolve("graph/graphmae", ["data=cora", "data.root=."])
    built = build.module(tree, {"features": 1433, "max_degree": 168, "density": 0.0127, "samples": 1})

    def count(part: nn.Module) -> int:
        return sum(p.numel() for p in part.parameters())

    predictor = built.objective["features"].predictor
    assert count(built.networks["main"].encoder) == 998_914
    assert (count(predictor.bridge), count(predictor.layer)) == (262_144, 737_995)
    assert count(built.corruptors["x"]) == 1_433
