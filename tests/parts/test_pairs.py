"""The contrast of two streams: a head for each look, targets with gradient, and a scale that is learned."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmssl.parts.pairs import Clip, FeedForward
from tests.small import batch, module

PLAIN = {"masker": None, "corruptor": None, "views": {"a": [], "b": []}}
HEADS = {"one": {"_target_": "head/feedforward", "dim": 6}, "two": {"_target_": "head/feedforward", "dim": 6}}
TERM = {
    "_target_": "term/match", "head": {"a": "one", "b": "two"}, "detach": False, "loss": {"_target_": "loss/clip"},
}  # fmt: skip


def made(heads=HEADS, **term):
    return module(heads=heads, objective={"contrast": TERM | term}, **PLAIN)


def answers(part, given):
    net = part.networks["main"]
    return [
        F.normalize(part.heads[head](net(given[look]).x.mean(1)), dim=1) for look, head in (("a", "one"), ("b", "two"))
    ]


def test_feedforward_is_its_layers():
    torch.manual_seed(0)
    head, x = FeedForward(8, dim=3), torch.randn(5, 8)
    norm, up, _, down, last = head.layers
    expected = last(
        down(F.gelu(up((x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + norm.eps).sqrt())))
    )
    torch.testing.assert_close(head(x), expected)
    assert (up.out_features, head.dim, FeedForward(8).dim) == (32, 3, 8) and last.bias is not None


def test_clip_is_a_cross_entropy_over_scaled_cosines():
    torch.manual_seed(0)
    p, t, loss = torch.randn(5, 4), torch.randn(5, 4), Clip()
    assert float(loss.scale.detach()) == pytest.approx(math.log(1 / 0.07))
    logits = F.normalize(p, dim=1) @ F.normalize(t, dim=1).T / 0.07
    torch.testing.assert_close(loss(p, t), F.cross_entropy(logits, torch.arange(5), reduction="none"))
    assert (
        float(loss(torch.ones(16, 4), torch.ones(16, 4)).mean().detach())
        == pytest.approx(math.log(16))
        == loss.chance(16, 4)
    )
    with torch.no_grad():
        loss.scale.fill_(math.log(3))
    torch.testing.assert_close(loss(p, t), F.cross_entropy(logits * 0.07 * 3, torch.arange(5), reduction="none"))
    with pytest.raises(ValueError, match=r"loss/clip compares samples"):
        loss(p[:1], t[:1])
    with pytest.raises(ValueError, match=r"loss/clip: temperature has to be above 0"):
        Clip(temperature=0.0)


def test_two_looks_are_contrasted_both_ways_with_gradient_everywhere():
    part, given = made(), batch(names=("a", "b"))
    total, rows = part.objective["contrast"](part.begin(given))
    a, b = answers(part, given)
    scale = part.objective["contrast"].loss.scale
    logits, own = a @ b.T * scale.exp(), torch.arange(4)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(total / rows, expected, rtol=1e-5, atol=1e-6)
    names = [name for name, _ in part.named_parameters()]
    assert "objective.contrast.loss.scale" in names
    params = [p for n, p in part.named_parameters() if n.startswith(("networks", "heads", "objective"))]
    found = torch.autograd.grad(total / rows, params, allow_unused=True)
    wanted = torch.autograd.grad(expected, params, allow_unused=True)
    for name, x, y in zip(names, found, wanted, strict=True):
        assert (x is None) == (y is None)
        if y is not None:
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-6, msg=name)
    assert wanted[names.index("objective.contrast.loss.scale")].abs() > 0
    assert part.objective["contrast"].signals["chance"] == pytest.approx(math.log(4))


def test_detached_targets_give_half_of_the_gradient():
    given = batch(names=("a", "b"))
    part = made(looks=["a"], targets=["b"], detach=True)
    total, _ = part.objective["contrast"](part.begin(given))
    total.backward()
    assert part.heads["one"].layers[1].weight.grad is not None and part.heads["two"].layers[1].weight.grad is None
    part = made(looks=["a"], targets=["b"])
    total, _ = part.objective["contrast"](part.begin(given))
    total.backward()
    assert part.heads["two"].layers[1].weight.grad.abs().max() > 0


def test_a_targets_normaliser_takes_part_in_the_gradient():
    part = made(looks=["a"], targets=["b"], normalize={"_target_": "norm/unit"}, loss={"_target_": "loss/mse"})
    part.objective["contrast"](part.begin(batch(names=("a", "b"))))[0].backward()
    assert part.heads["two"].layers[1].weight.grad.abs().max() > 0


def test_the_scale_is_optimised_without_decay():
    part = made()
    optimizer = part.configure_optimizers()
    scale = part.objective["contrast"].loss.scale
    group = next(g for g in optimizer.param_groups if any(p is scale for p in g["params"]))
    assert group["weight_decay"] == 0


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"head": {"a": "one"}}, r"names a head for looks \['a'\], but its looks are \['a', 'b'\]"),
        ({"head": {"a": "one", "b": "two", "c": "two"}}, r"names a head for looks \['a', 'b', 'c'\]"),
        ({"head": {"a": "one", "b": "tow"}}, r"names head 'tow'"),
        ({"target": {"_target_": "target/initial"}}, r"detach: false.*never trained"),
    ],
)
def test_heads_and_looks_have_to_fit(term, message):
    with pytest.raises(ValueError, match=message):
        made(**term)


def test_heads_of_other_widths_are_refused():
    with pytest.raises(ValueError, match=r"answers are .* wide and targets"):
        made(heads=HEADS | {"two": {"_target_": "head/feedforward", "dim": 7}})
