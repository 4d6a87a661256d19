"""Terms over samples: which looks meet which targets, what they cost, and the golden values of their methods."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from mmssl.parts.losses import InfoNCE, Relation, SoftCrossEntropy
from mmssl.types import View
from tests.small import PIXELS, batch, gradients, images, module

EMA = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.9}}
PLAIN = {"masker": None, "corruptor": None}
PROJ = {"proj": {"_target_": "head/mlp", "dims": [16, 8], "norm": "layer"}}
MATCH = {"_target_": "term/match", "head": "proj", "loss": {"_target_": "loss/cosine"}}
NTXENT = {"_target_": "term/set", "head": "proj", "loss": {"_target_": "set/ntxent"}}


def made(names=("a", "b"), heads=PROJ, teacher=None, **objective):
    return module(views={name: [] for name in names}, objective=objective, heads=heads, teacher=teacher, **PLAIN)


def crops(small=2, count=4):
    """Two large views and some small ones."""
    names = ("a", "b", *(f"l{i}" for i in range(small)))
    given = batch(count, names=names)
    sizes = {name: View(images(count, 16, seed=7 + i), "image") for i, name in enumerate(names[2:])}
    return names, given | sizes


def encoders(part):
    calls = Counter()
    nets = {"student": part.networks["main"]} | (
        {"twin": part.teacher.of(part.networks["main"])} if part.teacher else {}
    )
    for name, network in nets.items():
        network.encoder.register_forward_pre_hook(lambda *_, n=name: calls.update([n]))
    return calls


def test_byol_is_two_cosines():
    predictor = {"_target_": "head/mlp", "dims": [8], "norm": None}
    part = made(teacher=EMA, match=MATCH | {"predictor": predictor})
    part.teacher.of(part.heads["proj"]).layers[0].weight.data.mul_(1.3)
    given = batch(names=("a", "b"))
    total, rows = part.objective["match"](part.begin(given))
    student, twin = part.networks["main"], part.teacher.of(part.networks["main"])
    p = [part.objective["match"].predictor(part.heads["proj"](student(given[v]).x.mean(1))) for v in "ab"]
    t = [part.teacher.of(part.heads["proj"])(twin(given[v]).x.mean(1)) for v in "ab"]
    expected = sum(1 - F.cosine_similarity(p[i], t[1 - i], dim=1).sum() / 4 for i in range(2)) / 2
    torch.testing.assert_close(total / rows, expected, rtol=1e-5, atol=1e-6)
    total.backward()
    assert all(x.grad is None for x in part.teacher.parameters())


def test_simsiam_stops_the_gradient_and_encodes_once():
    part = made(match=MATCH)
    calls = encoders(part)
    given = batch(names=("a", "b"))
    total, _ = part.objective["match"](part.begin(given))
    assert calls == {"student": 1}
    total.backward()
    found = gradients(part.networks)
    z = [part.heads["proj"](part.networks["main"](given[v]).x.mean(1)) for v in "ab"]
    part.zero_grad()
    (sum((1 - F.cosine_similarity(z[i], z[1 - i].detach(), dim=1)).sum() for i in range(2)) / 2 * 2).backward()
    for name, expected in gradients(part.networks).items():
        if expected is not None:
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("small", "terms"), [(8, 18), (0, 2)])
def test_dino_pairs_every_view_with_the_other_globals(small, terms):
    names, given = crops(small)
    head = {"proj": {"_target_": "head/prototypes", "dims": [16, 8], "count": 12}}
    term = MATCH | {
        "looks": list(names), "targets": ["a", "b"], "loss": {"_target_": "loss/soft_ce"},
        "normalize": {"_target_": "norm/center", "temperature": 0.5},
    }  # fmt: skip
    part = made(names, head, EMA, match=term)
    calls = encoders(part)
    match = part.objective["match"]
    assert len(match.pairs) == terms and all(q != v and q in "ab" for q, v in match.pairs)
    total, rows = match(part.begin(given))
    assert rows == 4 * terms and calls == {"student": 2 if small else 1, "twin": 1}  # one call per resolution
    twin, head = part.teacher.of(part.networks["main"]), part.teacher.of(part.heads["proj"])
    with torch.no_grad():
        t = {q: torch.softmax(head(twin(given[q]).x.mean(1)) / 0.5, -1) for q in "ab"}
        s = {
            v: torch.log_softmax(part.heads["proj"](part.networks["main"](given[v]).x.mean(1)) / 0.1, -1) for v in names
        }
        expected = sum(-(t[q] * s[v]).sum(1).mean() for v in names for q in "ab" if q != v) / terms
    torch.testing.assert_close(total / rows, expected, rtol=1e-5, atol=1e-6)
    raw = torch.cat([head(twin(given[q]).x.mean(1)) for q in "ab"])
    torch.testing.assert_close(match.normalize.center, 0.1 * raw.mean(0).detach(), rtol=1e-4, atol=1e-7)


def test_golden_values():
    k = 65536
    assert float(SoftCrossEntropy()(torch.zeros(2, k), torch.full((2, k), 1 / k))[0]) == pytest.approx(
        11.0904, abs=1e-4
    )
    nce = InfoNCE(temperature=0.2)(torch.ones(4096, 2), torch.ones(4096, 2)).mean()
    assert 2 * 2 * 0.2 * float(nce) == pytest.approx(6.6542, abs=1e-4)  # MoCo v3
    assert InfoNCE().chance(4096, 2) == pytest.approx(math.log(4096))


def test_info_nce_and_relation_are_plain_softmaxes():
    torch.manual_seed(0)
    p, t = torch.randn(5, 4), torch.randn(5, 4)
    cosines = F.normalize(p, dim=1) @ F.normalize(t, dim=1).T
    expected = -torch.log_softmax(cosines / 0.3, 1).diagonal()
    torch.testing.assert_close(InfoNCE(temperature=0.3)(p, t), expected)
    goal = torch.softmax(F.normalize(t, dim=1) @ F.normalize(t, dim=1).T / 0.1, 1)
    expected = -(goal * torch.log_softmax(cosines / 0.2, 1)).sum(1)
    torch.testing.assert_close(Relation(temperature=0.2, target_temperature=0.1)(p, t), expected)


def test_a_frozen_network_may_be_the_target():
    term = MATCH | {
        "head": None,
        "pairs": "same",
        "target": {"_target_": "target/initial"},
        "loss": {"_target_": "loss/mse"},
    }
    part = made(match=term, heads={})
    value, _ = part.objective["match"](part.begin(batch(names=("a", "b"))))
    assert float(value.detach()) == pytest.approx(0, abs=1e-9)  # nothing has moved yet


def test_chunks_give_the_same_gradients():
    """A gradient cache: chunks are encoded twice, and nothing else changes."""
    given = batch(6, names=("a", "b"))
    given |= {name: View(given[name].data.double(), "image") for name in "ab"}
    whole, cached = (made(set=NTXENT).double() for _ in range(2))
    cached.chunk = 5
    calls = encoders(cached)
    for part in (whole, cached):
        part.training_step(given).backward()
    assert calls["student"] == 6  # 12 rows are three chunks, each encoded twice
    expected = gradients(whole)
    for name, gradient in gradients(cached).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_joint_heads_see_all_looks_at_once():
    norms = {}
    for joint in (True, False):
        heads = {"proj": {"_target_": "head/mlp", "dims": [16, 8], "joint": joint}}
        part = made(heads=heads, set=NTXENT)
        seen = []
        part.heads["proj"].register_forward_hook(lambda _, given, out, seen=seen: seen.append(len(given[0])))
        part.training_step(batch(names=("a", "b")))
        norms[joint] = seen
    assert norms == {True: [8], False: [4, 4]}


def test_signals_say_how_answers_spread_and_what_chance_is():
    part = made(set=NTXENT)
    part.training_step(batch(names=("a", "b")))
    assert 0 < float(part.latest["set/spread"]) < 1.5
    assert float(part.latest["set/chance"]) == pytest.approx(math.log(7))


def test_several_looks_of_one_prediction_are_averaged_together():
    term = PIXELS | {"look": ["a", "b"], "reduce": "sample"}
    part = module(views={"a": [], "b": []}, objective={"pixels": term})
    step = part.begin(batch(names=("a", "b")))
    total, rows = part.objective["pixels"](step)
    expected = 0.0
    for name in "ab":
        query, answer = part.objective["pixels"].predict(step, name)[0]
        target = part.objective["pixels"].target(step[name], query)
        expected += (answer - target).square().mean((1, 2)).sum()
    torch.testing.assert_close(total, expected)
    assert float(rows) == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"looks": ["a", "c"]}, "names look 'c', but the run has a, b"),
        ({"head": "pro"}, "names head 'pro', but the run has proj"),
        ({"pool": "avg"}, "`pool` has to be one of mean"),
        ({"pairs": "some"}, "`pairs` has to be cross, same or all"),
        ({"looks": ["a"], "targets": ["a"]}, "leaves no pair"),
        ({"head": "proj", "target": {"_target_": "target/initial"}}, "answers are 8 wide and targets 32; give the term a predictor"),
        ({"pool": "cls", "head": "proj", "predictor": {"_target_": "head/mlp", "dims": [9]}}, "answers are 9 wide and targets 8"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        made(match=MATCH | change)


def test_a_head_that_nobody_names_is_refused():
    with pytest.raises(ValueError, match=r"heads\.other: no term names this head"):
        made(heads=PROJ | {"other": {"_target_": "head/mlp", "dims": [4]}}, set=NTXENT)


def test_chunks_of_a_batch_norm_are_refused():
    norm = {"_target_": "encoder/timm", "name": "resnet10t", "pretrained": False}
    with pytest.raises(ValueError, match=r"trainer\.chunk: an encoder with batch norm"):
        module(
            encoder=norm, views={"a": [], "b": []}, heads=PROJ, objective={"set": NTXENT}, trainer={"chunk": 2}, **PLAIN
        )
