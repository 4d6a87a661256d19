"""Losses over the set of all answers, against plain loops and the golden values of their specifications."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.draws import Draws
from mmssl.parts.set_losses import Barlow, Invariance, KoLeo, NTXent, SIGReg, VICReg

DRAWS = Draws.of(0, 0, torch.arange(1))


def answers(views=2, n=6, d=5, seed=0):
    return torch.randn(views, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("views", [2, 3])
def test_ntxent_is_a_plain_double_loop(views):
    z = answers(views)
    unit = z / z.norm(dim=-1, keepdim=True)
    rows = [(v, i) for v in range(views) for i in range(6)]
    total = 0.0
    for v, i in rows:
        terms = {(w, j): math.exp(float(unit[v, i] @ unit[w, j]) / 0.3) for w, j in rows if (w, j) != (v, i)}
        total -= sum(math.log(terms[w, i] / sum(terms.values())) for w in range(views) if w != v) / (views - 1)
    assert float(NTXent(temperature=0.3)(z, DRAWS)) == pytest.approx(total / len(rows), rel=1e-12)


def test_ntxent_golden_values():
    same = torch.ones(2, 256, 4, dtype=torch.float64)
    assert float(NTXent(temperature=0.1)(same, DRAWS)) == pytest.approx(6.2364, abs=1e-4)
    assert NTXent().chance(2, 256, 4) == pytest.approx(6.2364, abs=1e-4)
    eye = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    assert float(NTXent(temperature=0.5)(eye, DRAWS)) == pytest.approx(0.2395448, abs=1e-7)  # GRACE's check
    assert float(NTXent(temperature=1.0)(eye, DRAWS)) == pytest.approx(0.551445, abs=1e-6)  # SCARF's
    z = answers()
    value = NTXent()(z, DRAWS)
    torch.testing.assert_close(NTXent()(z.flip(0), DRAWS), value)
    torch.testing.assert_close(NTXent()(7 * z, DRAWS), value)


def test_barlow_is_a_plain_double_loop():
    z = answers(n=9)
    a, b = ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() for x in z)
    total = 0.0
    for i in range(5):
        for j in range(5):
            c = float((a[:, i] * b[:, j]).mean())
            total += (c - 1) ** 2 if i == j else 0.0051 * c**2
    assert float(Barlow()(z, DRAWS)) == pytest.approx(total, rel=1e-12)
    torch.testing.assert_close(Barlow()(z.flip(0), DRAWS), Barlow()(z, DRAWS))


def test_barlow_golden_values():
    white = torch.linalg.qr(answers(1, 40, 5)[0] - answers(1, 40, 5)[0].mean(0))[0] * 40**0.5
    assert float(Barlow(eps=0)(torch.stack([white, white]), DRAWS)) == pytest.approx(0, abs=1e-12)
    apart = answers(2, 200_000, 4)
    assert float(Barlow()(apart, DRAWS)) == pytest.approx(4, abs=0.05)


def test_vicreg_is_the_plain_formula():
    z = answers(n=7)
    total = 25 * float(((z[0] - z[1]) ** 2).mean())
    for x in z:
        total += 25 * 0.5 * sum(max(0.0, 1 - math.sqrt(float(x[:, j].var()) + 1e-4)) for j in range(5)) / 5
        c = torch.cov(x.T)
        total += sum(float(c[i, j]) ** 2 for i in range(5) for j in range(5) if i != j) / 5
    assert float(VICReg()(z, DRAWS)) == pytest.approx(total, rel=1e-12)


def test_vicreg_golden_values():
    assert float(VICReg()(torch.ones(2, 8, 5, dtype=torch.float64), DRAWS)) == pytest.approx(24.75, abs=1e-9)
    x = answers(1, 40, 5)[0]
    white = torch.linalg.qr(x - x.mean(0))[0] * 39**0.5
    assert float(VICReg()(torch.stack([white, white]), DRAWS)) == pytest.approx(0, abs=1e-12)


def test_koleo_is_minus_the_log_distance_to_the_nearest():
    z = answers(2, 5)
    total = 0.0
    for x in z / z.norm(dim=-1, keepdim=True):
        for i in range(5):
            total -= math.log(min(float((x[i] - x[j]).norm()) for j in range(5) if j != i) + 1e-8)
    assert float(KoLeo()(z, DRAWS)) == pytest.approx(total / 10, rel=1e-6)
    opposite = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)
    assert float(KoLeo()(opposite, DRAWS)) == pytest.approx(-0.6931, abs=1e-4)


def test_invariance_is_the_distance_from_the_mean_view():
    z = answers(3)
    expected = sum(float((z[v] - (z[0] + z[1] + z[2]) / 3).square().sum()) for v in range(3)) / z.numel()
    assert float(Invariance()(z, DRAWS)) == pytest.approx(expected, rel=1e-12)


def test_sigreg_golden_values():
    flat = torch.zeros(1, 50, 3, dtype=torch.float64)
    assert float(SIGReg()(flat, DRAWS)) == pytest.approx(0.40205 * 50, rel=1e-4)
    assert float(SIGReg(scale_by_n=False)(flat, DRAWS)) == pytest.approx(0.40205, rel=1e-4)
    for n in (20, 200):
        z = torch.randn(200, n, 16, generator=torch.Generator().manual_seed(n))
        assert float(SIGReg()(z, DRAWS)) == pytest.approx(1.0525, rel=0.05)


def test_sigreg_is_the_statistic_of_the_projections():
    z = answers(2, 9, 4)
    a = DRAWS.named("sigreg").normal(4, 256)[0].double()
    a = a / a.norm(dim=0)
    t = torch.linspace(0, 3, 17, dtype=torch.float64)
    total = 0.0
    for x in z:
        for k in range(256):
            phi = torch.stack([torch.exp(1j * s * (x @ a[:, k])).mean() for s in t])
            gap = (phi - torch.exp(-t.square() / 2)).abs().square() * torch.exp(-t.square() / 2)
            total += 2 * float(torch.trapezoid(gap, t)) * 9
    assert float(SIGReg()(z, DRAWS)) == pytest.approx(total / 512, rel=1e-10)


def test_sigreg_draws_new_directions_each_step():
    z = answers(1, 8, 16).float()
    first, again, other = (SIGReg(directions=4)(z, Draws.of(0, 0, torch.arange(3), step=s).batch()) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("loss", [NTXent(), Barlow(), VICReg(), KoLeo(), SIGReg()], ids=lambda x: type(x).__name__)
def test_a_batch_of_one_is_refused(loss):
    with pytest.raises(
        ValueError, match=r"compares samples, but the batch holds 1; set data\.batch_size to at least 2"
    ):
        loss(answers(2, 1), DRAWS)


@pytest.mark.parametrize("loss", [NTXent(), Barlow(), VICReg()], ids=lambda x: type(x).__name__)
def test_a_single_view_is_refused(loss):
    with pytest.raises(ValueError, match=r"compares views, but its term names 1 look; give looks: \[a, b\]"):
        loss(answers(1, 4), DRAWS)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_temperature_of_nothing_is_refused(value):
    with pytest.raises(ValueError, match="temperature has to be above 0"):
        NTXent(temperature=value)
