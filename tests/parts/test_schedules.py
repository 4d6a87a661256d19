"""Schedules against plain formulas, step by step."""

from __future__ import annotations

import math

import pytest

from mmssl.parts.schedules import constant, cosine, linear, warmup_cosine, warmup_linear, warmup_steps


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
