"""The protocol that reproduces MaskGAE and Bandana: a training step, how pairs are ranked, which epoch of a probe counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.reproduce import edges
from mmssl.api import resolve
from mmssl.config import build
from mmssl.modalities.graph.adapter import Graph
from mmssl.modalities.graph.edge_terms import Vacant
from mmssl.types import View
from tests.modalities.graph.small_graphs import undirected

torch.set_num_threads(1)


def area(found: list[float], others: list[float]) -> float:
    """Share of (edge, no edge) where the edge ranks higher; equal ones count half."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in found for b in others]
    return sum(wins) / len(wins)


def test_pairs_are_ranked_by_the_product_or_by_the_head() -> None:
    graph = undirected(20, 50, 1)
    tree = resolve("graph/bandana", ["data=sample", "encoder.dim=8"])
    module: Any = build.module(tree, {"features": 4, "max_degree": 9, "density": 1.0, "samples": 1})
    view = View(Graph().collate([graph]), "graph")
    with torch.no_grad():
        for weight in module.networks["main"].parameters():
            weight.add_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
        z = module.eval().kept(view).x[:, -8:]  # all layers side by side, the last at the end
        head = module.objective["edges"].head
        pairs = torch.randint(20, (2, 30), generator=torch.Generator().manual_seed(1))
        product = [float(torch.dot(z[a], z[b])) for a, b in pairs.t().tolist()]
        answers = [torch.softmax(head((z[a] * z[b])[None])[0], 0)[0].item() for a, b in pairs.t().tolist()]
    by_product, by_head = area(product[:15], product[15:]), area(answers[:15], answers[15:])
    assert edges._ranked(module, view, pairs, product=True)[0] == pytest.approx(by_product)
    assert edges._ranked(module, view, pairs)[0] == pytest.approx(by_head)
    assert abs(by_product - by_head) > 0.01


def test_links_of_bandana_are_ranked_by_the_product_as_in_the_released_code() -> None:
    assert edges.SETTINGS["graph-bandana/cora-links"].product and not edges.SETTINGS["graph-bandana/cora"].product
    assert all(one.later == name.startswith("graph-bandana") for name, one in edges.SETTINGS.items())


def test_of_equally_good_epochs_the_first_or_the_last_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(90, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(90) % 3
    x[:, :3] += 1.2 * torch.nn.functional.one_hot(y, 3)
    labels = {
        name: torch.where((torch.arange(90) % 9 // 3) == i, y, -1) for i, name in enumerate(("train", "val", "test"))
    }
    scores: list[float] = []
    plain = edges._share

    def told(right: torch.Tensor, goal: torch.Tensor) -> float:
        scores.append(plain(right, goal))
        return scores[-1]

    monkeypatch.setattr(edges, "_share", told)
    found = {}
    for later in (False, True):
        scores.clear()
        found[later] = edges.node_probe(x, labels, decay=0.0, later=later, restarts=1)["value"]
        val, test = scores[::2], scores[1::2]
        ties = [i for i, value in enumerate(val) if value == max(val)]
        assert len(val) == 100 and len(ties) > 1
        assert found[later] == pytest.approx(100 * test[ties[-1 if later else 0]])
    assert found[False] != found[True]


def test_a_training_step_and_what_is_probed_against_dense_matrices() -> None:
    """Bandana's loss with batch norms in training, its gradients, and features of the whole graph behind it."""
    graph = undirected(20, 50, 1)
    tree = resolve("graph/bandana", ["data=sample", "encoder.dim=8", "encoder.dropout=0"])
    module: Any = build.module(tree, {"features": 4, "max_degree": 9, "density": 1.0, "samples": 1}).double().train()
    view = View(Graph().collate([graph]), "graph")
    batch = {"x": view, "id": torch.tensor([0]), "epoch": torch.tensor([2])}
    look, term = module.begin(batch)["x"], module.objective["edges"]
    source, target = look.tokens.edges
    asked = source != target
    count = torch.bincount(look.tokens.sample[source[asked]], minlength=1)
    none = Vacant(look.tokens.edges, look.tokens.sample, 1).draw(count, look.draws.named("absent"))
    stack = module.networks["main"].encoder.stack

    def layer(h: torch.Tensor, i: int, weight: torch.Tensor, training: bool) -> torch.Tensor:
        a = torch.zeros(20, 20, dtype=torch.float64).index_put((target, source), weight.double())
        scale = a.sum(1).rsqrt()
        h = scale[:, None] * a * scale @ h @ stack.layers[i].matrix.t() + stack.layers[i].conv.bias
        norm = stack.norms[i]
        mean = h.mean(0) if training else norm.running_mean
        variance = h.var(0, correction=0) if training else norm.running_var
        return torch.nn.functional.elu((h - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias)

    h, wanted = graph.x.double(), torch.zeros((), dtype=torch.float64)
    for i in range(3):
        h = layer(h, i, look.mask.weight[i], True)
        found, other = (torch.log_softmax(term.head(h[a] * h[b]), 1) for a, b in (look.tokens.edges[:, asked], none))
        wanted = wanted - (look.mask.weight[i, asked] * found[:, 0]).mean() / 3 - other[:, 1].mean() / 3
    weights = [*stack.parameters(), *term.head.parameters()]
    loss = module.training_step(batch)
    torch.testing.assert_close(loss, wanted)
    for one, of in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(wanted, weights), strict=True):
        torch.testing.assert_close(one, of)
    with torch.no_grad():
        h, layers = graph.x.double(), list[torch.Tensor]()
        for i in range(3):
            h = layer(h, i, torch.ones(len(source)), False)
            layers.append(h)
        torch.testing.assert_close(module.eval().kept(view).x, torch.cat(layers, 1))
