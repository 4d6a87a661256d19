"""data2vec 2.0's decoder against its layers written out, place by place."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from mmssl.parts.conv_predictors import Conv
from mmssl.types import TokenSpec
from tests.small import tokens


def part(grid=(4, 4), width=8, out=5, **said):
    torch.manual_seed(0)
    return Conv(TokenSpec(3, 2, grid), width, out, (), **{"depth": 2, "groups": 2, "noise": 0.0} | said)


def sample(grid=(4, 4), seen=(0, 3, 5, 9), width=8, b=2, **more):
    n = math.prod(grid)
    whole = tokens(b, n, grid=grid if len(grid) == 2 else None).but(grid=grid)
    kept = whole.take(torch.tensor([list(seen)] * b))
    x = torch.randn(b, len(seen), width, generator=torch.Generator().manual_seed(1))
    return whole, kept.but(x=x, prefix=torch.randn(b, 1, width), **more)


def asked(whole, *places):
    return whole.take(torch.tensor([list(places)] * len(whole.index)))


def written_out(net, x, grid):
    """Layer by layer and place by place: (n, width) of one sample to (n, out)."""
    kernel = net.layers[0].kernel_size[0]
    places = list(product(*(range(side) for side in grid)))
    values = dict(zip(places, x, strict=True))
    for layer in net.layers:
        groups, new = layer.groups, {}
        for place in places:
            total = layer.bias.clone()
            for step in product(*(range(kernel) for _ in grid)):
                other = tuple(p + s - kernel // 2 for p, s in zip(place, step, strict=True))
                if other in values:
                    inputs = values[other].reshape(groups, -1)
                    weight = layer.weight[(slice(None), slice(None), *step)].reshape(groups, -1, inputs.shape[1])
                    total = total + torch.einsum("goi,gi->go", weight, inputs).flatten()
            normed = (total - total.mean()) / (total.var(correction=0) + 1e-5).sqrt()
            new[place] = normed * 0.5 * (1 + torch.erf(normed / math.sqrt(2)))
        same = layer.in_channels == layer.out_channels
        values = {place: value + values[place] if same else value for place, value in new.items()}
    return torch.stack([values[place] @ net.head.weight.T + net.head.bias for place in places])


@pytest.mark.parametrize(
    ("grid", "said"),
    [((4, 4), {}), ((3, 5), {"dim": 12, "depth": 3}), ((9,), {"kernel": 5, "groups": 4}), ((2, 2, 3), {"depth": 1})],
)
def test_conv_equals_its_layers_written_out(grid, said):
    net = part(grid, **said)
    places, n = (0, 3, 5, 8), math.prod(grid)
    whole, kept = sample(grid, places)
    full = torch.zeros(2, n, 8)
    full[:, list(places)] = kept.x
    wanted = [1, 4, 8, 0]
    found = net(kept, asked(whole, *wanted))
    for i in range(2):
        torch.testing.assert_close(found[i], written_out(net, full[i], grid)[wanted], rtol=1e-4, atol=1e-5)


def test_a_sequence_needs_no_grid():
    torch.manual_seed(0)
    net = Conv(TokenSpec(3, 1), 8, 5, (), depth=2, groups=2, noise=0.0)
    whole = tokens(2, 9).but(count=9)
    kept = whole.take(torch.tensor([[0, 3, 5, 8]] * 2)).but(x=torch.randn(2, 4, 8))
    full = torch.zeros(9, 8)
    full[[0, 3, 5, 8]] = kept.x[0]
    torch.testing.assert_close(
        net(kept, asked(whole, 2, 8))[0], written_out(net, full, (9,))[[2, 8]], rtol=1e-4, atol=1e-5
    )
    # without a count the farthest place of either decides
    loose = kept.but(count=None)
    torch.testing.assert_close(net(loose, asked(whole.but(count=None), 2, 8)), net(kept, asked(whole, 2, 8)))


def test_hidden_places_hold_fresh_noise_in_training_and_nothing_in_evaluation():
    net = part(noise=0.01)
    whole, kept = sample(b=400)
    query = asked(whole, 1, 2)
    first, second = net.canvas(kept, query), net.canvas(kept, query)
    hidden = [place for place in range(16) if place not in (0, 3, 5, 9)]
    for full in (first, second):
        assert torch.equal(full[:, [0, 3, 5, 9]], kept.x)
        assert abs(float(full[:, hidden].std()) - 0.01) < 2e-4 and abs(float(full[:, hidden].mean())) < 2e-4
    assert not torch.isclose(first[:, hidden], second[:, hidden]).all(-1).any()
    net.eval()
    state = torch.get_rng_state()
    assert not net.canvas(kept, query)[:, hidden].any()
    assert torch.equal(torch.get_rng_state(), state)  # whatever evaluates does not disturb training


def test_padding_is_not_seen():
    net = part()
    whole, kept = sample(seen=(0, 3, 5, 9))
    padded = kept.but(valid=torch.tensor([[True, True, True, False]] * 2))
    short = kept.take(torch.tensor([[0, 1, 2]] * 2))
    torch.testing.assert_close(net(padded, asked(whole, 1, 9)), net(short, asked(whole, 1, 9)))
    assert not torch.isclose(net(kept, asked(whole, 1, 9)), net(short, asked(whole, 1, 9))).all()


def test_answers_far_from_what_was_seen_do_not_depend_on_it():
    """Two layers of 3 x 3 reach two places: the rest is convolved noise."""
    net, (whole, kept) = part((8, 8)), sample((8, 8), (0, 1))
    other = kept.but(x=kept.x + 1.0)
    near, far = asked(whole, 8, 18), asked(whole, 24, 63)
    assert not torch.isclose(net(kept, near), net(other, near)).any()
    assert torch.equal(net(kept, far), net(other, far))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"groups": 3}, r"predictor\.groups=3 has to divide the encoder's width 8 and predictor\.dim=8"),
        ({"dim": 9, "groups": 4}, r"choose a divisor of 1"), ({"kernel": 4}, r"predictor\.kernel has to be odd"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(said, message):
    with pytest.raises(ValueError, match=message):
        part(**said)
