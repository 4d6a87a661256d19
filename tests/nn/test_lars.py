"""LARS against its definition, one tensor and one step at a time."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from mmssl.nn.lars import LARS


def reference(w, gradients, lr, momentum=0.9, trust=0.001, decay=0.0):
    """Plain Python numbers: adapted for matrices, plain momentum for vectors."""
    shape, w = w.shape, w.double().flatten().tolist()
    buffer = [0.0] * len(w)
    for gradient in gradients:
        g = gradient.double().flatten().tolist()
        ratio = 1.0
        if len(shape) > 1:
            g = [gi + decay * wi for gi, wi in zip(g, w, strict=True)]
            norms = math.sqrt(sum(x * x for x in w)), math.sqrt(sum(x * x for x in g))
            ratio = trust * norms[0] / norms[1] if min(norms) > 0 else 1.0
        buffer = [momentum * b + ratio * gi for b, gi in zip(buffer, g, strict=True)]
        w = [wi - lr * b for wi, b in zip(w, buffer, strict=True)]
    return torch.tensor(w).reshape(shape)


@pytest.mark.parametrize("shape", [(4, 3), (7,), (2, 3, 2), ()])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_equal_the_definition(shape, decay):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape))
    start = weight.detach().clone()
    optimizer = LARS([weight], lr=0.5, momentum=0.8, trust=0.02, weight_decay=decay)
    gradients = [torch.randn(shape) for _ in range(5)]
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(weight.grad, gradient)
    torch.testing.assert_close(weight.detach(), reference(start, gradients, 0.5, 0.8, 0.02, decay).float())


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_a_zero_norm_takes_a_plain_step(zero):
    weight = torch.nn.Parameter(torch.zeros(2, 2) if zero == "weight" else torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2) if zero == "gradient" else torch.full((2, 2), 0.25)
    expected = weight.detach() - 2.0 * weight.grad
    LARS([weight], lr=2.0).step()
    assert torch.equal(weight.detach(), expected)


def test_the_first_step_is_a_share_of_the_weight():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(20, 20))
    start = weight.detach().clone()
    for scale in (1.0, 1000.0):  # however large the gradient is
        weight.data.copy_(start)
        weight.grad = scale * torch.randn(20, 20)
        LARS([weight], lr=3.0, trust=0.001).step()
        assert float((weight.detach() - start).norm() / start.norm()) == pytest.approx(0.003, rel=1e-4)


def test_groups_have_their_own_rate():
    a, b, c = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = LARS([{"params": [a], "lr": 1.0}, {"params": [b, c]}], lr=0.1, momentum=0.0)
    a.grad = b.grad = torch.ones(2)
    optimizer.step()
    assert a.tolist() == [0.0, 0.0] and b.tolist() == pytest.approx([0.9, 0.9]) and c.tolist() == [1.0, 1.0]


def test_state_is_saved_and_restored():
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 3), [torch.randn(3, 3) for _ in range(4)]
    first, second = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    one, two = LARS([first]), LARS([second])
    for gradient in gradients[:2]:
        first.grad = gradient
        one.step()
    second.data.copy_(first.data)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for gradient in gradients[2:]:
        first.grad = second.grad = gradient
        one.step(), two.step()
    assert torch.equal(first, second)


def test_closure_runs_with_gradient():
    weight = torch.nn.Parameter(torch.ones(2, 2))

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss.detach()

    assert float(LARS([weight]).step(closure)) == 4.0 and weight.grad is not None
