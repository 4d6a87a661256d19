"""Losses against their definitions: one number per token."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.parts.losses import cosine, l1, mse, smooth_l1

A = torch.tensor([[[1.0, 2.0], [0.0, -3.0]], [[3.0, 4.0], [0.5, 0.5]]])
B = torch.tensor([[[0.0, 0.0], [4.0, 0.0]], [[6.0, 8.0], [-1.0, 1.0]]])


def huber(d, beta):
    return 0.5 * d * d / beta if abs(d) < beta else abs(d) - 0.5 * beta


CASES = {
    "mse": (mse, lambda a, b: sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)),
    "l1": (l1, lambda a, b: sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)),
    "smooth": (smooth_l1, lambda a, b: sum(huber(x - y, 1.0) for x, y in zip(a, b, strict=True)) / len(a)),
    "smooth 2": (
        lambda a, b: smooth_l1(a, b, beta=2.0),
        lambda a, b: sum(huber(x - y, 2.0) for x, y in zip(a, b, strict=True)) / len(a),
    ),
    "cosine": (
        cosine,
        lambda a, b: 1 - sum(x * y for x, y in zip(a, b, strict=True)) / max(math.hypot(*a) * math.hypot(*b), 1e-8),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_equals_its_definition(name):
    loss, plain = CASES[name]
    found = loss(A, B)
    assert found.shape == (2, 2)
    for i in range(2):
        for j in range(2):
            assert float(found[i, j]) == pytest.approx(plain(A[i, j].tolist(), B[i, j].tolist()), abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_loss_of_equals_is_zero(name):
    torch.testing.assert_close(CASES[name][0](A, A), torch.zeros(2, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_targets_decide_the_precision(name):
    loss = CASES[name][0]
    assert loss(A.bfloat16(), B).dtype == torch.float32
    torch.testing.assert_close(loss(A.bfloat16(), B), loss(A, B))  # these numbers are exact in bfloat16


def test_a_constant_error_is_its_own_l1():
    assert torch.equal(l1(B + 2.0, B), torch.full((2, 2), 2.0))


def test_cosine_ignores_length():
    torch.testing.assert_close(cosine(3.0 * A, B), cosine(A, 0.1 * B))
