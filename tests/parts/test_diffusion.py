"""UMD: shares of a batch, noise and its targets, and blocks under a condition."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.joining import join, split
from mmssl.nn.adaln import AdaBlock, Condition
from mmssl.parts.diffusion import Diffuse, Share, kept_signal, known_mse
from mmssl.parts.encoders.adaln import AdaViT
from mmssl.parts.maskers import Random
from mmssl.types import TokenSpec
from tests.small import batch, module, tokens
from tests.test_ranks_train import HALVES

SPEC = TokenSpec(5, 2, (4, 4))


def draws(count):
    return Draws.of(0, 0, torch.arange(count))


def test_the_signal_of_the_paper():
    cosine = kept_signal(1000, "cosine")
    assert float(cosine[0]) == pytest.approx(0.99996, abs=1e-5)
    assert float(cosine[499]) == pytest.approx(0.49384, abs=1e-5)
    assert float(cosine[999]) == pytest.approx(2.4e-9, rel=0.02)
    linear, left = kept_signal(1000, "linear"), 1.0
    for i in range(1000):
        left *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        if i in (0, 500, 999):
            assert float(linear[i]) == pytest.approx(left, rel=1e-4)


def test_two_shares_divide_a_batch():
    whole = tokens(7, 16, grid=(4, 4))
    first, rest = (
        Share(masker=Random(ratio=0.5), share=0.3, rest=rest)(whole, draws(7), 0.0, None) for rest in (False, True)
    )
    assert sorted([*first.row.tolist(), *rest.row.tolist()]) == list(range(7)) and len(first.row) == 2
    for mask in (first, rest):
        assert (mask.visible.sum(1) == 8).all() and mask.visible_count == 8
        own = Random(ratio=0.5)(whole, draws(7), 0.0, None)  # each sample's mask is its own draw
        assert torch.equal(mask.visible, own.visible[mask.row]) and torch.equal(mask.targets, own.targets[mask.row])
    kept = [Random(ratio=ratio)(tokens(1, 256), draws(1), 0.0, None).visible_count for ratio in (0.75, 0.375)]
    assert kept == [64, 160]


def test_values_are_noised_and_dropped():
    whole, part = tokens(4, 16, grid=(4, 4)), Diffuse(SPEC, "sequence", 8)
    mask = Share(masker=Random(ratio=0.5))(whole, draws(4), 0.0, None)
    found, noise = part(whole, mask, draws(4)), part.noise(whole, draws(4))
    assert found.condition.shape == (2, 1) and (found.condition >= 0).all() and (found.condition < 1000).all()
    for i, sample in enumerate(mask.row):
        signal = float(part.signal[int(found.condition[i])])
        expected = math.sqrt(signal) * whole.raw[sample] + math.sqrt(1 - signal) * noise[sample]
        torch.testing.assert_close(found.raw[i], expected[mask.visible[i]], atol=1e-6, rtol=1e-5)
    many = part.noise(tokens(64, 16, 50, grid=(4, 4)), draws(64))
    assert abs(float(many.mean())) < 0.02 and float(many.std()) == pytest.approx(1, abs=0.02)


def test_targets_are_values_and_noise():
    part = module(**HALVES)
    step = part.begin(batch(4))
    term, look = part.objective["noised"], step["noised"]
    hidden, visible = (term.query(look, at)[0] for at in ("hidden", "visible"))
    clean, noise = look.tokens.raw, look.spec.corruptor.noise(look.tokens, look.draws.named("corrupt"))
    at_hidden, at_visible = term.target(look, hidden), term.target(look, visible)
    assert at_hidden[..., 192:].isnan().all() and at_visible[..., :192].isnan().all()
    for i, sample in enumerate(look.mask.row):
        assert torch.equal(at_hidden[i, :, :192], clean[sample, hidden.index[i]])
        assert torch.equal(at_visible[i, :, 192:], noise[sample, visible.index[i]])
    (first, there), (_, here) = term.predict(step)
    assert torch.equal(first.index, hidden.index) and there.shape == (2, 12, 384)
    sums, counts = term(step)
    both = [
        (there[..., :192] - at_hidden[..., :192]).square().mean(-1),
        (here[..., 192:] - at_visible[..., 192:]).square().mean(-1),
    ]
    torch.testing.assert_close(sums, torch.stack([x.sum() for x in both]))
    assert counts.tolist() == [24, 8]
    total, count = part.objective["clean"](step)
    query, answer = part.objective["clean"].predict(step)[0]
    torch.testing.assert_close(total, (answer[..., :192] - query.raw).square().mean(-1).sum())
    assert int(count) == 24 and not list(part.objective["noised"].predictor or ())


def test_a_term_borrows_the_predictor_of_another():
    part = module(**HALVES)
    part.training_step(batch()).backward()
    missing = [name for name, p in part.named_parameters() if p.grad is None]
    assert not missing and not list(part.objective["noised"].parameters())
    wrong = copy.deepcopy(HALVES)
    wrong["objective"]["noised"]["of"] = "clear"
    with pytest.raises(ConfigError, match="did you mean 'clean'"):
        module(**wrong)
    wrong["objective"]["noised"] |= {"of": "clean", "predictor": {"_target_": "predictor/linear"}}
    with pytest.raises(ConfigError, match="leave one of them out"):
        module(**wrong)


def test_fresh_blocks_do_nothing():
    x, told = torch.randn(2, 5, 16), torch.randn(2, 1, 16)
    block = AdaBlock(16, 4, 2.0)
    assert torch.equal(block(x, told), x)
    torch.nn.init.normal_(block.modulation.weight)
    torch.nn.init.normal_(block.modulation.bias)
    shift, scale, gate, shift2, scale2, gate2 = F.linear(told, block.modulation.weight, block.modulation.bias).chunk(
        6, -1
    )
    y = x + gate * block.attn(F.layer_norm(x, (16,), eps=1e-6) * (1 + scale) + shift)
    y = y + gate2 * block.mlp(F.layer_norm(y, (16,), eps=1e-6) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(x, told), y)
    encoder = AdaViT(SPEC, dim=16, depth=2, heads=4)
    given = tokens(2, 16, grid=(4, 4)).but(x=torch.randn(2, 16, 16))
    found = encoder(given)
    torch.testing.assert_close(found.x, F.layer_norm(given.x + encoder.position.table, (16,), eps=1e-6))
    assert found.prefix.shape == (2, 1, 16)


def test_conditions_are_sinusoids():
    part, step = Condition(8), torch.tensor([[0.0], [500.0]])
    waves = [[f(t * 10000 ** (-i / 3)) for f in (math.sin, math.cos) for i in range(4)] for t in (0.0, 500.0)]
    torch.testing.assert_close(part(step, 2)[:, 0], part.mlp(torch.tensor(waves)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(part(None, 3), part(step[:1].expand(3, 1), 3))


def test_conditions_go_with_their_samples():
    first, second = (tokens(b, 4).but(condition=torch.arange(float(b)).unsqueeze(1)) for b in (2, 3))
    whole = join([first, second])
    assert whole.condition[:, 0].tolist() == [0, 1, 0, 1, 2]
    assert [x.condition[:, 0].tolist() for x in split(whole, [first, second])] == [[0, 1], [0, 1, 2]]
    assert second.take(second.index[:2], torch.tensor([2, 0])).condition[:, 0].tolist() == [2, 0]


def test_known_values_alone_count():
    target = torch.tensor([[1.0, torch.nan, 3.0], [torch.nan, torch.nan, torch.nan]])
    prediction = torch.tensor([[2.0, 5.0, 5.0], [1.0, 2.0, 3.0]], requires_grad=True)
    found = known_mse(prediction, target)
    assert found.tolist() == [2.5, 0.0]
    found.sum().backward()
    assert prediction.grad.tolist() == [[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="has to be above 0 and below 1"):
        Share(masker=Random(), share=1.0)
    with pytest.raises(ValueError, match="leaves none"):
        Share(masker=Random(), share=0.3)(tokens(2, 4), draws(2), 0.0, None)
    with pytest.raises(ValueError, match="cosine or linear"):
        kept_signal(1000, "sqrt")
    with pytest.raises(ValueError, match="has to divide encoder"):
        AdaViT(SPEC, dim=16, depth=1, heads=3)
