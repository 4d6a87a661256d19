"""Foretold losses: the ranking against loops over pairs, the guide against the teacher's own decoder, and the masker."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.parts.guided_maskers import Guided
from mmssl.parts.hardness import ranking
from tests.small import DECODER, PIXELS, batch, gradients, module, tokens

ORDER = {"_target_": "term/rank", "of": "pixels", "predictor": DECODER}
HPM = {
    "objective": {"pixels": PIXELS, "order": ORDER},
    "guide": {"_target_": "guide/loss"},
    "masker": {"_target_": "masker/guided", "ratio": 0.75, "share": 0.5},
    "teacher": {"_target_": "teacher/ema", "momentum": 0.5},
}


def plain(guess, losses, kept):
    """The sum over ordered pairs, and how many are right."""
    total, right = 0.0, 0
    for q, hard, k in zip(guess.tolist(), losses.tolist(), kept.tolist(), strict=True):
        for i in range(len(q)):
            for j in range(len(q)):
                above = 1 / (1 + math.exp(q[i] - q[j]))
                if k[i] and k[j] and hard[j] > hard[i]:
                    total, right = total - math.log(above + 1e-6), right + (q[j] > q[i])
                elif k[i] and k[j] and hard[j] < hard[i]:
                    total, right = total - math.log(1 - above + 1e-6), right + (q[j] < q[i])
    return total, right


def test_ranking_against_a_loop_over_pairs():
    generator = torch.Generator().manual_seed(0)
    guess, losses = torch.randn(2, 3, 6, generator=generator).double()
    losses[0, 2] = losses[0, 4]
    kept = torch.rand(3, 6, generator=generator) < 0.7
    for flags in (kept, None):
        total, right = ranking(guess, losses, flags)
        wanted = plain(guess, losses, torch.ones_like(kept) if flags is None else flags)
        assert float(total) == pytest.approx(wanted[0]) and int(right) == wanted[1]
    torch.testing.assert_close(ranking(guess + 3.0, losses, kept)[0], ranking(guess, losses, kept)[0])
    equal, _ = ranking(torch.zeros(1, 5), torch.arange(5.0)[None], None)
    assert float(equal) / 20 == pytest.approx(math.log(2), abs=1e-5)


def test_hpm_hides_what_the_teacher_foretells_to_be_hard():
    part = module(**HPM)
    with torch.no_grad():  # the twin is another decoder than the student's
        for p in part.teacher.twins["term_order"].parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    step = part.begin(batch())
    look, decoder = step["x"], part.teacher.of(part.objective["order"].predictor)
    whole = part.teacher.of(part.networks["main"]).encode(look.tokens)
    x = decoder.embed(torch.cat([whole.prefix, whole.x], 1))
    x = x + torch.cat([torch.zeros(4, 1, 32), decoder.position(look.tokens)], 1)
    for block in decoder.blocks:
        x = block(x)
    guess = decoder.head(decoder.norm(x[:, 1:])).mean(-1)
    torch.testing.assert_close(look.score, guess, rtol=1e-4, atol=1e-5)
    assert not look.score.requires_grad
    hardest = look.score.argsort(1, descending=True)[:, :6]  # half of the 12 hidden ones
    assert look.mask.hidden.gather(1, hardest).all() and (look.mask.hidden.sum(1) == 12).all()


def test_the_ranking_term_is_over_the_pairs_of_hidden_tokens_and_spares_the_other_decoder():
    part = module(**HPM)
    step, (pixels, order) = part.begin(batch()), part.objective.values()
    pixels(step)
    total, count = order(step)
    assert int(count) == int(order.count(step)) == 4 * 12 * 11
    ((query, losses),) = step.losses["pixels", "x"]
    guess = order.predictor(step["x"].seen, query).mean(-1)
    assert order.predictor.head.out_features == 192
    wanted, right = plain(guess.detach(), losses, torch.ones(4, 12))
    assert float(total.detach()) == pytest.approx(wanted, rel=1e-4)
    assert float(order.signals["right"]) == pytest.approx(right / (4 * 12 * 11))
    total.backward()
    assert all(g is None for g in gradients(pixels).values())
    assert all(g is not None for g in gradients(order).values())


def test_more_is_hidden_by_score_as_training_goes_on():
    score = torch.randn(3, 196, generator=torch.Generator().manual_seed(0))
    given = tokens(3, 196, width=1)
    masks = {}
    for epoch in (0, 1, 99, 199):
        mask = Guided()(given, Draws.of(0, 0, torch.arange(3)), (epoch + 1) / 200, score)
        assert (mask.visible.sum(1) == 49).all() and (mask.visible_count, mask.target_count) == (49, 147)
        hard = {0: 0, 1: 0, 99: 36, 199: 73}[epoch]
        assert mask.hidden.gather(1, score.argsort(1, descending=True)[:, :hard]).all()
        masks[epoch] = mask.hidden
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[99])
    place = score.argsort(1).argsort(1).float()
    seen = place[~masks[199]].mean()  # those visible are drawn from the 123 lowest
    assert 50 < float(seen) < 72


def test_what_is_missing_is_said():
    given, draws = tokens(2, 8, width=1), Draws.of(0, 0, torch.arange(2))
    with pytest.raises(ValueError, match="no guide"):
        Guided()(given, draws, 0.0, None)
    with pytest.raises(ValueError, match="without padding"):
        Guided()(given.but(valid=torch.ones(2, 8, dtype=torch.bool)), draws, 0.0, torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"masker\.share"):
        Guided(share=2.0)
    with pytest.raises(ConfigError, match=r"objective\.order\.of='pixel'.*did you mean 'pixels'"):
        module(**HPM | {"objective": {"pixels": PIXELS, "order": ORDER | {"of": "pixel"}}})
    with pytest.raises(ValueError, match=r"guide\.term='ordre'"):
        _ = module(**HPM | {"guide": {"_target_": "guide/loss", "term": "ordre"}}).begin(batch())["x"].score
