"""Normalisers of targets against plain formulas."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mmssl.parts.norms import Center, Layer, Sinkhorn, Standard, Unit
from mmssl.parts.schedules import ramp


def rows(n=6, d=5, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_layer_standard_and_unit():
    x = rows()
    mean, wide = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
    torch.testing.assert_close(Layer(5)([x], 0.0)[0], (x - mean) / (wide * 4 / 5 + 1e-5).sqrt())
    torch.testing.assert_close(Standard(5)([x], 0.0)[0], (x - mean) / (wide + 1e-6).sqrt())
    torch.testing.assert_close(Unit(5)([3 * x], 0.0)[0], x / x.norm(dim=-1, keepdim=True))


def test_the_centre_is_used_before_it_moves():
    a, b, norm = rows(), rows(seed=1), Center(5, temperature=0.5, momentum=0.9).double()
    first = norm([a, b], 0.0)
    torch.testing.assert_close(first[1], torch.softmax(b / 0.5, -1))
    norm.follow([a, b])
    torch.testing.assert_close(norm.center, 0.1 * torch.cat([a, b]).mean(0))
    torch.testing.assert_close(norm([a], 0.0)[0], torch.softmax((a - norm.center) / 0.5, -1))


def test_the_temperature_may_follow_a_schedule():
    norm = Center(5, temperature=partial(ramp, first=0.04, last=0.07, until=0.1))
    x = rows().float()
    torch.testing.assert_close(norm([x], 0.05)[0], torch.softmax(x / 0.055, -1))
    torch.testing.assert_close(norm([x], 0.5)[0], torch.softmax(x / 0.07, -1))


def plain_sinkhorn(logits, temperature, iterations):
    """SwAV's, as its specification says: prototypes in rows, samples in columns."""
    q = torch.exp(logits / temperature).T
    k, b = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True) * k
        q /= q.sum(0, keepdim=True) * b
    return (q * b).T


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn(iterations):
    a, b = rows(7), rows(4, seed=1)
    together = Sinkhorn(5, temperature=0.3, iterations=iterations)([a, b], 0.0)
    torch.testing.assert_close(torch.cat(together), plain_sinkhorn(torch.cat([a, b]), 0.3, iterations))
    each = Sinkhorn(5, temperature=0.3, iterations=iterations, each=True)([a, b], 0.0)
    torch.testing.assert_close(each[1], plain_sinkhorn(b, 0.3, iterations))


def test_sinkhorns_golden_values():
    same = Sinkhorn(5)([torch.ones(8, 5)], 0.0)[0]
    torch.testing.assert_close(same, torch.full((8, 5), 0.2))
    q = Sinkhorn(5, temperature=0.5, iterations=200)([rows(20)], 0.0)[0]
    torch.testing.assert_close(q.sum(1), torch.ones(20, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(q.sum(0), torch.full((5,), 4.0, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    cosines = torch.nn.functional.normalize(rows().float(), dim=1)
    assert torch.isfinite(Sinkhorn(5, temperature=0.03)([cosines + 100], 0.0)[0]).all()  # without overflow


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(Center, temperature=0.0), "norm/center: temperature has to be above 0"),
        (partial(Center, momentum=9.0), "momentum has to lie between 0 and 1"),
        (partial(Sinkhorn, temperature=-1), "norm/sinkhorn: temperature has to be above 0"),
        (partial(Sinkhorn, iterations=0), "iterations has to be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(5)
