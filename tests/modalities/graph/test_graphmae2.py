"""GraphMAE2's parts: random re-masking against a plain decoder, its latent term, and what it has in common with GraphMAE."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.api import resolve
from mmssl.config import build
from mmssl.draws import Draws
from mmssl.modalities.graph.adapter import Graph
from mmssl.modalities.graph.corruptors import Replace
from mmssl.modalities.graph.predictors import Graph as Decoder
from mmssl.modalities.graph.tokenizer import GraphTokenizer
from mmssl.types import TokenSpec, View
from tests.modalities.graph.small_graphs import undirected

OFF = ["encoder.dropout=0", "encoder.attention_dropout=0", "objective.features.predictor.dropout=0",
       "objective.features.predictor.attention_dropout=0"]  # fmt: skip


def module(name: str, *said: str) -> Any:
    tree = resolve(name, ["data=sample", "encoder.dim=8", "encoder.heads=2", *OFF, *said])
    return build.module(tree, {"features": 6, "max_degree": 9, "density": 1.0, "samples": 1}).double()


def batch() -> dict[str, Any]:
    graphs = [undirected(14, 30, 1, 6), undirected(11, 25, 2, 6)]
    for graph in graphs:
        graph.x = graph.x.abs().double()
    return {"x": View(Graph().collate(graphs), "graph"), "id": torch.arange(2), "epoch": torch.zeros(2).long()}


def encoded(n: int = 21, width: int = 8) -> tuple[Any, Any]:
    """Tokens as an encoder leaves them, with draws, and a query of some nodes."""
    graph = undirected(n, 40, 3, 6)
    made: Any = GraphTokenizer({"features": 6, "max_degree": 9, "density": 1.0})(View(graph, "graph"))
    seen = made.but(x=torch.randn(n, width).double(), draws=Draws.of(4, 0, torch.tensor([7])))
    return seen, made.take(torch.tensor([[1, 4, 5, 9, 20]]))


@pytest.mark.parametrize("kind", ["gat", "gcn", "gin"])
def test_random_remasking_is_a_plain_decoder(kind: str) -> None:
    """Each decoding: the bridge, the token in int(share * nodes) random rows, torch-geometric's layer on all nodes."""
    seen, query = encoded()
    decoder: Any = Decoder(TokenSpec(6, 0), 8, 6, (), kind=kind, dropout=0.0, attention_dropout=0.0, remask=0.5,
                           decodings=3).double()  # fmt: skip
    answers = decoder(seen, query)
    assert answers.shape == (3, 5, 6)
    masks = []
    for k in range(3):
        luck = Draws.of(4, 0, torch.tensor([7])).named(f"remask/{k}").uniform(21)[0]
        rows = sorted(range(21), key=luck.tolist().__getitem__)[: int(0.5 * 21)]
        h = decoder.bridge(seen.x).clone()
        h[rows] = decoder.token
        layer = copy.deepcopy(decoder.layer.conv)
        expected = layer(h, seen.edges)[query.index]
        assert torch.allclose(answers[k], expected, atol=1e-10)
        masks.append(set(rows))
    assert masks[0] != masks[1] != masks[2]
    evaluated = decoder.eval()(seen, query)
    assert evaluated.shape == (5, 6)
    if kind != "gin":  # whose batch norm now has other statistics
        assert torch.allclose(evaluated, answers.mean(0), atol=1e-10)


def test_without_remasking_all_decodings_are_one() -> None:
    """With a share of 0 the sum over three decodings is three times the loss of one."""
    losses = []
    for decodings in (1, 3):
        said = ["objective.features.predictor.remask=0", f"objective.features.predictor.decodings={decodings}"]
        built = module("graph/graphmae2", *said, f"objective.features.weight={decodings}", "objective.latent.weight=0")
        losses.append(float(built.training_step(batch()).detach()))
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-9)


def test_without_the_latent_term_and_with_fixed_remasking_it_is_graphmae() -> None:
    fixed = ["objective.features.predictor.remask=null", "objective.features.predictor.decodings=1",
             "objective.features.weight=1", "objective.latent.weight=0", "corruptor.init=zero"]  # fmt: skip
    second, first = module("graph/graphmae2", *fixed), module("graph/graphmae", "masker.noise=0")
    weights = {name: value for name, value in second.state_dict().items() if name in first.state_dict()}
    first.load_state_dict(weights)
    found = []
    for built in (first, second):
        loss = built.training_step(batch())
        loss.backward()
        shared = {name: p.grad for name, p in built.named_parameters() if name in dict(first.named_parameters())}
        found.append({"loss": loss.detach()} | shared)
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=1e-12), name


def test_the_latent_term_by_hand() -> None:
    """Scaled cosine error with power 1 over all nodes; the teacher sees the whole graph through the projector's twin."""
    built = module("graph/graphmae2", "objective.features.weight=0", "objective.latent.weight=1", "seed=2")
    made = batch()
    step = built.begin(made)
    loss = built.training_step(made)

    def projected(head: Any, x: Tensor) -> Tensor:
        first, act, last = [part for part in head.layers if not isinstance(part, torch.nn.Identity)]
        assert (first.out_features, last.out_features) == (256, 8)
        return last(F.prelu(first(x), act.weight))

    network, head, predictor = built.networks["main"], built.heads["proj"], built.objective["latent"].predictor
    answer = projected(head, step["x"].seen.x)
    answer = predictor.layers(F.prelu(answer, predictor.first.weight))
    target = projected(built.teacher.of(head), built.teacher.of(network)(made["x"]).x)
    expected = (1 - F.cosine_similarity(answer, target)).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-9)


def test_the_teacher_follows_or_stays() -> None:
    """A momentum of 1 leaves it bit for bit at its start, 0 makes it the student."""
    for value in (1.0, 0.0):
        built = module("graph/graphmae2", f"teacher.momentum.value={value}")
        twin = built.teacher.of(built.networks["main"])
        start = copy.deepcopy(twin.state_dict())
        with torch.no_grad():
            for p in built.networks["main"].parameters():
                p.add_(torch.randn_like(p))
        built.teacher.follow(0.5)
        wanted = start if value == 1.0 else built.networks["main"].state_dict()
        assert all(torch.equal(wanted[name], held) for name, held in twin.state_dict().items())
        assert all(part.p == 0 for part in twin.modules() if isinstance(part, torch.nn.Dropout))


def test_what_does_not_go_together_is_refused() -> None:
    seen, query = encoded()
    decoder = Decoder(TokenSpec(6, 0), 8, 6, (), remask=0.5).double()
    with pytest.raises(ValueError, match=r"predictor\.remask .* corruptor/replace"):
        decoder(seen.but(draws=None), query)
    for said, match in (({"decodings": 3}, r"predictor\.decodings=3"), ({"remask": 50.0}, r"did you mean 0\.5")):
        with pytest.raises(ValueError, match=match):
            Decoder(TokenSpec(6, 0), 8, 6, (), **said)
    with pytest.raises(ValueError, match=r"corruptor\.init"):
        Replace(TokenSpec(6, 0), "graph", 8, init="ones")
    token = Replace(TokenSpec(4000, 0), "graph", 8, init="xavier").mask_token
    assert float(token.detach().std()) == pytest.approx((2 / 4001) ** 0.5, rel=0.05)
