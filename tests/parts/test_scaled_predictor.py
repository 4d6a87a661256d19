"""LocalMIM's decoders against maps that are laid out and convolved, and its loss over a coarser grid."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import avg_pool2d

from mmssl.config.compose import ConfigError
from mmssl.nn.patches import cut
from mmssl.parts.scaled_predictor import Scaled
from mmssl.types import TokenSpec
from tests.small import VIT, batch, module, tokens

SPEC = TokenSpec(5, 2, (4, 4), (8, 8), 3)
TAPS = ("embed", "block.0", "block.1")


def part(scale, out=32, **said):
    torch.manual_seed(0)
    return Scaled(SPEC, 16, out, TAPS, scale=scale, dim=16, heads=4, **said)


def sample(b=2):
    """What was seen of two samples, and all that was not, with a class token."""
    whole = tokens(b, 16, grid=(4, 4))
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(b)])
    seen = whole.take(order[:, :6]).but(x=torch.randn(b, 6, 16), prefix=torch.randn(b, 1, 16))
    layer = torch.randn(b, 7, 16)
    return seen.but(taps={"block.0": layer}), whole.take(order[:, 6:]), order


@pytest.mark.parametrize("scale", [4, 2, 1, 0.5])
def test_scaled_answers_are_those_of_a_whole_map(scale):
    net = part(scale)
    seen, asked, order = sample()
    x = net.norm(net._decode(seen, asked, 16))  # decoded as MAE does; only what follows is written out
    dense = torch.zeros_like(x)
    for i in range(2):
        dense[i, torch.cat([order[i, :6], order[i, 6:]])] = x[i]
    maps = dense.mT.reshape(2, 16, 4, 4)
    answer = net.head(maps if scale >= 1 else avg_pool2d(maps, 2))
    side = 4 if scale < 1 else int(4 * scale)
    assert answer.shape == (2, 32 // int(max(scale, 1)) ** 2, int(4 * scale), int(4 * scale))
    if scale < 1:
        answer = torch.stack([answer[:, :, r // 2, c // 2] for r in range(4) for c in range(4)], 2).reshape(2, 32, 4, 4)
    expected = cut(answer, (side // 4, side // 4)).gather(1, asked.index[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(net(seen, asked), expected, atol=1e-5, rtol=1e-5)
    some = asked.take(torch.tensor([[2, 0, 7]] * 2))
    if scale < 1:  # what is asked does not change what mask tokens there are
        chosen = expected.gather(1, torch.tensor([2, 0, 7]).view(1, 3, 1).expand(2, 3, 32))
        torch.testing.assert_close(net(seen, some), chosen, atol=1e-5, rtol=1e-5)


def test_a_layer_has_a_norm_of_its_own():
    net, (seen, asked, _) = part(1, layer=0.5), sample()
    assert net.taps == ("block.0",)
    normed = net.before(seen.taps["block.0"])
    net.taps, net.before = (), torch.nn.Identity()
    same = net(seen.but(x=normed[:, 1:], prefix=normed[:, :1]), asked)
    other = part(1, layer=0.5)
    other.load_state_dict(net.state_dict(), strict=False)
    torch.testing.assert_close(other(seen, asked), same)


def test_terms_at_four_scales_train_all():
    terms = {
        f"x{int(2 * scale)}": {
            "_target_": "term/predict", "loss": {"_target_": "loss/mse"}, "target": {"_target_": "target/hog", "cells": scale},
            "predictor": {"_target_": "predictor/scaled", "scale": scale, "dim": 16, "heads": 4} | said,
        }
        for scale, said in ((4, {"layer": 0.5}), (2, {"layer": "block.0"}), (1, {"layer": 1.0}), (0.5, {}))
    }  # fmt: skip
    net = module(objective=terms, encoder=VIT)
    net.training_step(batch()).backward()
    assert all(p.grad is not None for p in net.parameters())
    step = net.begin(batch())
    found = {name: term.predict(step)[0][1] for name, term in net.objective.items()}
    assert {name: value.shape[-1] for name, value in found.items()} == {"x8": 432, "x4": 108, "x2": 27, "x1": 27}
    # the sum over hidden tokens is that over coarse cells, weighed by the share of each that is hidden
    term = net.objective["x1"]
    query, prediction = term.predict(step)[0]
    error = (prediction - term.target(step["x"], query)).square().mean(-1)
    hidden, cells = step["x"].mask.hidden.reshape(4, 1, 4, 4).float(), torch.zeros(4, 16)
    share = avg_pool2d(hidden, 2)
    cells.scatter_(1, query.index, error.detach())
    by_cell = (torch.nn.functional.max_pool2d(cells.reshape(4, 1, 4, 4), 2) * share).sum() / share.sum()
    total, count = term(step)
    torch.testing.assert_close((total / count).detach(), by_cell)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="has to be 4, 2, 1 or"):
        part(3)
    with pytest.raises(ValueError, match="does not fit a target of 30"):
        part(4, out=30)
    with pytest.raises(ConfigError, match=r"there is no layer 'block.7'"):
        module(objective={"x": {
            "_target_": "term/predict", "target": {"_target_": "target/raw"}, "loss": {"_target_": "loss/mse"},
            "predictor": {"_target_": "predictor/scaled", "layer": "block.7", "dim": 16, "heads": 4},
        }})  # fmt: skip
