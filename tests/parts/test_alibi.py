"""Attention that falls with distance: the bias written out, and the transformer step by step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmssl.parts.encoders.alibi import Alibi, DistanceBias, slopes
from mmssl.types import Tokens, TokenSpec
from tests.small import tokens

SPEC = TokenSpec(192, 2, (4, 4), (8, 8), 3)


def embedded(dim=16, b=2, side=4, **more):
    torch.manual_seed(0)
    return tokens(b, side * side, grid=(side, side), x=torch.randn(b, side * side, dim), **more)


def plain(heads, side):
    """The bias between all patches of a square, one pair at a time."""
    bias = torch.zeros(heads, side * side, side * side)
    for h in range(heads):
        for i in range(side * side):
            for j in range(side * side):
                distance = math.sqrt((i // side - j // side) ** 2 + (i % side - j % side) ** 2)
                bias[h, i, j] = -(2 ** (-8 * (h + 1) / heads)) * distance
    return bias


def test_slopes_of_sixteen_heads():
    found = slopes(16)
    assert found[0] == pytest.approx(2**-0.5) and found[-1] == pytest.approx(2**-8)
    torch.testing.assert_close(found[1:] / found[:-1], torch.full((15,), 2**-0.5))


def test_bias_is_minus_slope_times_distance():
    whole = embedded(b=1, side=5)
    found = DistanceBias(16)(whole, whole, torch.float32)[0]
    torch.testing.assert_close(found, plain(16, 5))
    assert torch.equal(found, found.transpose(1, 2)) and (found.diagonal(dim1=1, dim2=2) == 0).all()
    assert (found <= 0).all() and found.min() == pytest.approx(-(2**-0.5) * math.sqrt(32))


def test_bias_is_gathered_at_the_tokens_at_hand():
    whole = embedded()
    some, others = torch.tensor([[3, 7, 1], [0, 5, 9]]), torch.tensor([[2, 15, 8, 4], [6, 1, 0, 11]])
    found = DistanceBias(4)(whole.take(some), whole.take(others), torch.float32)
    bias = plain(4, 4)
    for b in range(2):
        torch.testing.assert_close(found[b], bias[:, some[b]][:, :, others[b]])


def test_encoder_is_its_definition():
    torch.manual_seed(0)
    encoder = Alibi(SPEC, dim=16, depth=2, heads=4).eval()
    whole = embedded()
    found = encoder(whole, encoder.tap_names)
    x, bias = whole.x, plain(4, 4)
    for i, block in enumerate(encoder.blocks):
        assert block.attn.qkv.bias is None and block.attn.proj.bias is not None
        q, k, v = (F.layer_norm(x, (16,), block.norm1.weight, block.norm1.bias) @ block.attn.qkv.weight.T).chunk(3, -1)
        q, k, v = (y.reshape(2, 16, 4, 4).transpose(1, 2) for y in (q, k, v))
        read = torch.softmax(q @ k.transpose(-1, -2) / 2.0 + bias, -1) @ v
        x = x + block.attn.proj(read.transpose(1, 2).reshape(2, 16, 16))
        x = x + block.mlp(F.layer_norm(x, (16,), block.norm2.weight, block.norm2.bias))
        torch.testing.assert_close(found.taps[f"block.{i}"], x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.x, encoder.norm(x), rtol=1e-4, atol=1e-5)
    assert found.prefix is None and torch.equal(found.taps["embed"], whole.x)


def test_encoder_knows_distance_but_not_place():
    encoder = Alibi(SPEC, dim=16, depth=2, heads=4).eval()
    whole = embedded()
    moved = whole.but(pos=whole.pos + torch.tensor([3.0, -7.0]))
    torch.testing.assert_close(encoder(whole).x, encoder(moved).x)
    assert (encoder(whole).x - encoder(whole.but(pos=whole.pos * 3)).x).abs().max() > 1e-3
    assert encoder(embedded(side=6)).x.shape == (2, 36, 16)  # larger than it was made for


def test_encoder_runs_on_any_subset_and_keeps_off_padding():
    encoder = Alibi(SPEC, dim=16, depth=2, heads=4).eval()
    whole = embedded()
    some, order = torch.tensor([[3, 7, 1, 12], [0, 5, 9, 2]]), torch.tensor([2, 0, 3, 1])
    first, second = encoder(whole.take(some)), encoder(whole.take(some[:, order]))
    torch.testing.assert_close(first.x[:, order], second.x, rtol=1e-4, atol=1e-5)
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    padded = encoder(whole.take(some, None, valid))
    torch.testing.assert_close(padded.x[1, :2], encoder(whole.take(some[:, :2])).x[1], rtol=1e-4, atol=1e-5)


def test_bias_follows_the_precision():
    encoder = Alibi(SPEC, dim=16, depth=1, heads=4).to(torch.bfloat16)
    whole: Tokens = embedded()
    assert encoder(whole.but(x=whole.x.to(torch.bfloat16))).x.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert Alibi(SPEC, dim=16, depth=1, heads=4)(whole).x.isfinite().all()


def test_heads_have_to_divide():
    with pytest.raises(ValueError, match=r"encoder\.heads=5 does not divide encoder\.dim=16"):
        Alibi(SPEC, dim=16, depth=1, heads=5)
