"""Heads against plain layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmssl.parts.heads import MLP, Prototypes


def test_the_perceptron_of_moco():
    """Bias-free, batch norm and ReLU between, a norm without weights at the end."""
    torch.manual_seed(0)
    head = MLP(5, dims=[7, 6, 3], bias=False, last_norm="plain").double()
    x = torch.randn(8, 5, dtype=torch.float64)
    weights = [p for name, p in head.named_parameters() if p.dim() == 2]
    assert len(weights) == 3 and len(list(head.parameters())) == 3 + 4  # two norms with weights
    y = x
    for i, weight in enumerate(weights):
        y = y @ weight.T
        y = (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt()
        y = y if i == 2 else y.relu()
    torch.testing.assert_close(head(x), y)
    assert head.dim == 3


def test_biases_may_be_left_out_of_the_last_layer_only():
    head = MLP(5, dims=[7, 3], last_bias=False)
    assert head.layers[0].bias is not None and head.layers[-1].bias is None


def test_an_activation_may_come_first():
    head = MLP(5, dims=[3], norm=None, first="prelu")
    x = torch.randn(4, 5)
    torch.testing.assert_close(head(x), head.layers(torch.where(x > 0, x, 0.25 * x)))


def test_tokens_are_rows():
    head = MLP(5, dims=[3], norm=None)
    x = torch.randn(2, 4, 5)
    torch.testing.assert_close(head(x)[1, 2], head(x[1, 2]))


@pytest.mark.parametrize("rows", ["normed", "reset", "free"])
def test_prototypes(rows):
    torch.manual_seed(0)
    head = Prototypes(5, dims=[7, 4], count=9, rows=rows)
    x = torch.randn(6, 5)
    if rows == "free":
        head.gain.data.mul_(2.0)
    out = head(x)
    hidden = F.gelu(x @ head.layers[0].weight.T + head.layers[0].bias)
    z = hidden @ head.layers[2].weight.T + head.layers[2].bias
    weight = head.prototypes.weight
    unit = weight / weight.norm(dim=1, keepdim=True)
    expected = (z / z.norm(dim=1, keepdim=True)) @ unit.T * (2 if rows == "free" else 1)
    torch.testing.assert_close(out, expected)
    if rows == "reset":
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(9))


def test_normed_prototypes_keep_their_length_while_they_train():
    head = Prototypes(5, dims=[4], count=9)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    for _ in range(3):
        head(torch.randn(6, 5)).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(F.normalize(head.prototypes.weight, dim=1).norm(dim=1), torch.ones(9))
    assert head(torch.randn(6, 5)).abs().max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MLP(4, dims=[]), "widths of the layers, at least one"),
        (lambda: MLP(4, dims=[3], norm="instance"), "norm has to be batch, plain"),
        (lambda: MLP(4, dims=[3], activation="swish"), "activation has to be one of relu, gelu"),
        (lambda: MLP(4, dims=[3], first="swish"), "first has to be one of relu, gelu"),
        (lambda: Prototypes(4, count=1), "count is the number of prototypes"),
        (lambda: Prototypes(4, rows="fixed"), "rows has to be normed, reset or free"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
