"""What is made again instead of being kept changes no number."""

from __future__ import annotations

import pytest
import torch
from timm.layers.mlp import Mlp

from mmssl.nn.mlp import LeanMlp


def pair(dtype=torch.float64, **said):
    torch.manual_seed(0)
    ours, plain = LeanMlp(6, 24, **said).to(dtype), Mlp(6, 24, **said).to(dtype)
    plain.load_state_dict(ours.state_dict())
    ours.least = 0  # these are narrower than what is worth it
    return ours, plain


def told(part, x, seed=1):
    """The answer and all gradients."""
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)
    answer = part(x)
    (answer * torch.linspace(-1, 1, answer.numel(), dtype=answer.dtype).view_as(answer)).sum().backward()
    return [answer.detach(), x.grad, *(p.grad for p in part.parameters())]


@pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6), (2, 3, 5, 6)])
def test_numbers_and_gradients_are_those_of_timm(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for one, other in zip(*(told(part, x) for part in pair()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_frozen_weights_and_inputs_get_no_gradient():
    ours, _ = pair()
    ours.fc2.weight.requires_grad_(False)
    ours(torch.randn(3, 6, dtype=torch.float64)).sum().backward()
    assert ours.fc2.weight.grad is None and ours.fc2.bias.grad is not None and ours.fc1.weight.grad is not None


def test_under_autocast_gradients_have_the_type_of_their_weights():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    found = []
    for part in pair(torch.float32):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(told(part, x))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_half_as_much_is_kept():
    def kept(part):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t) or t, lambda t: t):
            part(torch.randn(50, 6, dtype=torch.float64, requires_grad=True))
        own = {p.untyped_storage().data_ptr() for p in part.parameters()}
        return len({t.untyped_storage().data_ptr() for t in sizes if t.numel() == 50 * 24} - own)

    ours, plain = pair()
    assert (kept(ours), kept(plain)) == (1, 2)
    assert kept(pair()[0].to(torch.float64)) == 1 and kept(LeanMlp(6, 24).double()) == 2
