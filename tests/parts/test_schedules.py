"""Schedules against plain formulas, step by step."""

from __future__ import annotations

import math

import pytest

from mmssl.parts.schedules import (
    constant,
    cosine,
    infinite,
    linear,
    ramp_cosine,
    warmup_cosine,
    warmup_linear,
    warmup_steps,
)


def mae_rate(epoch, warmup, epochs, peak, least=0.0):
    """`adjust_learning_rate` of MAE, whose epoch is fractional."""
    if epoch < warmup:
        return peak * epoch / warmup
    return least + (peak - least) * 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


@pytest.mark.parametrize(("warmup", "epochs", "per_epoch"), [(40, 800, 3), (40, 1600, 2), (5, 100, 7)])
def test_warmup_cosine_is_maes_at_every_step(warmup, epochs, per_epoch):
    steps = epochs * per_epoch
    for step in range(steps):
        found = warmup_cosine(step / steps, warmup=warmup / epochs)
        assert found == pytest.approx(mae_rate(step / per_epoch, warmup, epochs, 1.0), abs=1e-12), step


def test_warmup_cosine_default_is_maes_recipe():
    assert [warmup_cosine(p) for p in (0.0, 0.025, 0.05, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.0])


def test_warmup_cosine_ends():
    found = [warmup_cosine(p, warmup=0.2, start=0.1, final=0.3) for p in (0.0, 0.1, 0.2, 0.6, 1.0, 1.5)]
    assert found == pytest.approx([0.1, 0.55, 1.0, 0.65, 0.3, 0.3])
    assert warmup_cosine(0.0, warmup=0.0) == 1.0 and warmup_cosine(0.5, warmup=0.0) == pytest.approx(0.5)
    assert warmup_cosine(0.5, warmup=1.0) == 0.5 and warmup_cosine(1.0, warmup=1.0) == 1.0


def test_warmup_steps_is_simmims_at_every_step():
    """Warm-up from 5e-7 to 1e-4 in 10 of 800 epochs, a tenth from epoch 700 on."""
    per_epoch, base, first = 5, 1e-4, 5e-7
    for step in range(800 * per_epoch):
        epoch = step / per_epoch
        expected = first + (base - first) * epoch / 10 if epoch < 10 else base * (0.1 if epoch >= 700 else 1.0)
        found = base * warmup_steps(step / (800 * per_epoch), warmup=0.0125, start=0.005)
        assert found == pytest.approx(expected, rel=1e-9), step


def test_warmup_steps_drops_at_each_milestone():
    found = [warmup_steps(p, warmup=0.0, milestones=(0.5, 0.75), gamma=0.2) for p in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)]
    assert found == pytest.approx([1.0, 1.0, 0.2, 0.2, 0.04, 0.04])


def test_constant():
    assert constant(0.3) == 1.0 and constant(0.9, value=0.25) == 0.25


def test_linear_and_cosine_run_from_first_to_last():
    for schedule in (linear, cosine):
        assert schedule(0.0, first=0.996, last=1.0) == pytest.approx(0.996)
        assert schedule(0.5, first=0.996, last=1.0) == pytest.approx(0.998)
        assert schedule(1.0, first=0.996, last=1.0) == schedule(1.7, first=0.996, last=1.0) == pytest.approx(1.0)
    assert linear(0.25, first=0.0, last=4.0) == 1.0
    for step in range(100):  # DINO's momentum: 1 - (1 - m) (cos(pi t / T) + 1) / 2
        expected = 1 - (1 - 0.996) * (math.cos(math.pi * step / 100) + 1) / 2
        assert cosine(step / 100, first=0.996, last=1.0) == pytest.approx(expected, abs=1e-12)


def test_warmup_linear_rises_and_falls_in_straight_lines():
    values = [warmup_linear(p, warmup=0.1, start=0.2, final=0.1) for p in (0, 0.05, 0.1, 0.55, 1.0, 1.3)]
    assert values == pytest.approx([0.2, 0.6, 1.0, 0.55, 0.1, 0.1])
    assert [warmup_linear(p, warmup=0.0) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


def test_infinite_holds_a_level_and_then_decays():
    """The values of a run of 1000 steps at a rate of 1e-3, and of one that begins where another held the level."""
    steps = {0: 0.0, 25: 5e-4, 50: 1e-3, 100: 5.5e-4, 150: 1e-4, 500: 1e-4, 800: 1e-4, 900: 3.1623e-5, 1000: 1e-5}
    for step, rate in steps.items():
        assert 1e-3 * infinite(step / 1000) == pytest.approx(rate, rel=1e-4)
    for step in (0, 10, 149, 799, 800, 900, 1000, 1100):
        found = infinite(step / 1000, warmup=0.0, cooldown=0.0)
        assert found == pytest.approx(infinite(max(step, 150) / 1000))


def test_a_cosine_may_be_cut_short():
    """CroCo: 400 of a schedule of 800 epochs."""
    share = (400 - 40) / (800 - 40)
    for epoch in range(401):
        found = warmup_cosine(epoch / 400, warmup=40 / 400, cut=share)
        assert found == pytest.approx(mae_rate(epoch, 40, 800, 1.0), abs=1e-12)


def test_a_ramp_and_a_cosine_that_is_cut():
    """CAPI's momentum: 50,000 steps from 1 to 0.999, then towards 1, of which 0.8 is gone through."""
    for step in range(0, 500_001, 1000):
        found = ramp_cosine(step / 500_000, first=1.0, middle=0.999, last=1.0, warmup=0.1, cut=0.8)
        if step < 50_000:
            wanted = 1.0 - 0.001 * step / 50_000
        else:
            wanted = 1.0 - 0.0005 * (1.0 + math.cos(math.pi * 0.8 * (step - 50_000) / 450_000))
        assert found == pytest.approx(wanted, abs=1e-12)
