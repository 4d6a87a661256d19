"""Batch norm over ranks: on one rank it is torch's; over ranks tests/test_ranks_train.py holds it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmssl import ranks
from mmssl.nn.norm import BatchNorm


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_several_ranks_take_the_same_path_as_torch(monkeypatch, shape, affine):
    """The path of several ranks, taken by one."""
    torch.manual_seed(0)
    ours, theirs = BatchNorm(4, affine=affine).double(), nn.BatchNorm1d(4, affine=affine).double()
    x = torch.randn(shape, dtype=torch.float64)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    for _ in range(2):
        b = theirs(other)
        monkeypatch.setattr(ranks, "world", lambda: 2)
        monkeypatch.setattr(ranks, "total", lambda t: t)
        a = ours(one)
        monkeypatch.undo()
        torch.testing.assert_close(a, b)
    a.square().sin().sum().backward()
    b.square().sin().sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match=r"batch of one.*set data\.batch_size to at least 2"):
        BatchNorm(4)(torch.randn(1, 4))
    BatchNorm(4).eval()(torch.randn(1, 4))
