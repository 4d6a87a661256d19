"""GRACE's and BGRL's losses over nodes, against loops and the numbers of their papers' definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.api import resolve
from mmssl.config import build
from mmssl.draws import Draws
from mmssl.modalities.graph.adapter import Graph
from mmssl.parts.losses import cosine
from mmssl.parts.set_losses import NTXent
from mmssl.types import View
from tests.modalities.graph.small_graphs import undirected

SMALL = ["data=sample", "encoder.dim=8"]


def grace(u: Tensor, v: Tensor, t: float) -> float:
    """The loss of the paper's equation (1), averaged over both directions, one node at a time."""
    u, v = F.normalize(u, dim=1), F.normalize(v, dim=1)
    total, n = 0.0, len(u)
    for a, b in ((u, v), (v, u)):
        for i in range(n):
            across = sum(math.exp(float(a[i] @ b[j]) / t) for j in range(n))
            within = sum(math.exp(float(a[i] @ a[j]) / t) for j in range(n) if j != i)
            total -= math.log(math.exp(float(a[i] @ b[i]) / t) / (across + within))
    return total / (2 * n)


def batch(*graphs: Any, names: tuple[str, ...] = ("a", "b")) -> dict[str, Any]:
    """The same graphs as several views."""
    ids = torch.arange(len(graphs))
    views = {name: View(Graph().collate(list(graphs)), "graph") for name in names}
    return views | {"id": ids, "epoch": torch.zeros_like(ids)}


def module(name: str, width: int, *said: str) -> Any:
    tree = resolve(name, [*SMALL, *said])
    return build.module(tree, {"features": width, "max_degree": 9, "density": 1.0, "samples": 1})


def test_grace_by_hand() -> None:
    """Two nodes whose views are the identity at temperature 0.5: ln(1 + 2 / e^2)."""
    draws = Draws.of(0, 0, torch.arange(1))
    found = float(NTXent(temperature=0.5)(torch.eye(2).expand(2, 2, 2), draws))
    assert found == pytest.approx(0.2395448, abs=1e-6) == pytest.approx(math.log(1 + 2 / math.e**2))
    u, v = torch.randn(7, 5).double(), torch.randn(7, 5).double()
    assert float(NTXent(temperature=0.4)(torch.stack([u, v]), draws)) == pytest.approx(grace(u, v, 0.4), abs=1e-9)


def test_grace_compares_nodes() -> None:
    """The recipe's loss is that of all nodes of all graphs of a batch, behind ELU and two linear maps."""
    built = module("graph/grace", 6)
    graphs = [undirected(9, 20, 1, 6), undirected(13, 30, 2, 6)]
    made = batch(*graphs)
    made["b"].data.x = made["b"].data.x.flip(1)
    found = built.training_step(made)
    encoder, head = built.networks["main"], built.heads["proj"]
    linear = [part for part in head.modules() if isinstance(part, torch.nn.Linear)]
    assert [tuple(part.weight.shape) for part in linear] == [(128, 8), (8, 128)]
    answers = []
    for name in ("a", "b"):
        h = encoder(made[name]).x
        answers.append(linear[1](F.elu(linear[0](h))).detach())
    assert float(found.detach()) == pytest.approx(grace(*answers, 0.4), abs=1e-4)
    widths = [layer.conv.lin.weight.shape[0] for layer in encoder.encoder.stack.layers]
    assert widths == [16, 8]


def test_bgrl_by_hand() -> None:
    """Twice one minus the cosine, over nodes and both directions; equal answers and targets give 0."""
    built = module("graph/bgrl", 6, "seed=3")
    made = batch(undirected(12, 30, 1, 6))
    made["b"].data.x = made["b"].data.x.flip(1)
    found = built.training_step(made)
    student, teacher = built.networks["main"], built.teacher.of(built.networks["main"])
    predictor = built.objective["agree"].predictor
    q = {name: predictor(student(made[name]).x) for name in "ab"}
    t = {name: teacher(made[name]).x for name in "ab"}
    expected = 2 - F.cosine_similarity(q["a"], t["b"]).mean() - F.cosine_similarity(q["b"], t["a"]).mean()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    x = torch.randn(5, 4)
    assert float(cosine(x, x).abs().max()) < 1e-6
    found.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.encoder.parameters())
    assert built.teacher.momentum(0.0) == pytest.approx(0.99) and built.teacher.momentum(1.0) == 1.0
