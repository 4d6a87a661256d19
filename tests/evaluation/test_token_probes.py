"""Probes of tokens against torch's attention, the published losses and data made for them."""

import math

import pytest
import torch
from torch import nn

from mmssl.evaluation.features import Features
from mmssl.evaluation.protocols.attentive import Attentive, AttentivePooler, moments
from mmssl.evaluation.protocols.prototypical import Prototypes, Prototypical, apart, asymmetric, focal
from mmssl.evaluation.tokens import TokenFeatures, embed_tokens, single
from mmssl.types import Tokens, View

torch.set_num_threads(1)


def needles(n, seed, t=9, d=12, classes=3):
    """One token in nine shows the class; the others are louder noise, so that a mean sees nothing."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    x = 0.3 * torch.randn(n, t, d, generator=g)
    x[..., :6] += 4 * torch.randn(n, t, 6, generator=g)
    place = torch.randint(t, (n,), generator=g)
    x[torch.arange(n), place, :6] = 0
    x[torch.arange(n), place, 6 + y] += 3
    return TokenFeatures(x.half(), y)


TRAIN, TEST = needles(300, 0), needles(150, 1)


def test_the_pooler_is_multi_head_attention():
    torch.manual_seed(0)
    x, valid = torch.randn(4, 7, 12), torch.rand(4, 7) > 0.3
    valid[:, 0] = True
    mine = AttentivePooler(torch.zeros(12), torch.ones(12), 3, 4, 2.0)
    theirs = nn.MultiheadAttention(12, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in (mine.q, mine.k, mine.v)]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in (mine.q, mine.k, mine.v)]))
        theirs.out_proj.weight.copy_(mine.out.weight)
        theirs.out_proj.bias.copy_(mine.out.bias)
        query = mine.query.expand(4, 1, -1)
        for mask in (None, valid):
            hidden = None if mask is None else ~mask
            expected = theirs(query, x, x, key_padding_mask=hidden, need_weights=False)[0][:, 0]
            torch.testing.assert_close(mine.attend(x, mask), expected, rtol=1e-4, atol=1e-5)
    assert AttentivePooler(torch.zeros(9), torch.ones(9), 3, 8, 0.0).heads == 3


@pytest.mark.parametrize(
    "probe",
    [
        Attentive(lr=(1e-3, 3e-3), weight_decay=(0.01,), epochs=12, batch=32),
        Prototypical(prototypes=3, lr=(3e-2,), epochs=20, batch=32),
    ],
    ids=["attentive", "prototypical"],
)
def test_probes_find_the_token_that_tells(probe):
    state = torch.random.get_rng_state()
    score = probe(TRAIN, TEST)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert score.value > 0.85  # a third is chance
    with torch.inference_mode():  # where trainers evaluate
        again = probe(TRAIN, TEST)
    assert again.correct is not None and torch.equal(score.correct, again.correct)
    other = TokenFeatures(TEST.x, (TEST.y + 1) % 3)  # other test labels change nothing that is chosen
    assert probe(TRAIN, other).chosen == score.chosen
    shuffled = TokenFeatures(TEST.x.flip(1), TEST.y)
    assert torch.equal(probe(TRAIN, shuffled).correct, score.correct)  # a set of tokens has no order
    far = TokenFeatures(TEST.x, TEST.y + 1000)
    assert probe(TRAIN, far).value == 0


def test_choosing_holds_out_and_one_setting_does_not():
    probe = Attentive(lr=(1e-9, 3e-3), weight_decay=(0.01,), epochs=8, batch=32, mlp=0)
    assert probe(TRAIN, TEST).chosen["lr"] == 3e-3 and probe(TRAIN, TEST).chosen["holdout_top1"] > 0.5
    assert Attentive(lr=(1e-3,), weight_decay=(0.1,), epochs=1)(TRAIN, TEST).chosen["holdout_top1"] is None


def test_moments_leave_padding_out():
    x = torch.randn(40, 5, 3, generator=torch.Generator().manual_seed(0)) * 2 + 7
    valid = torch.arange(5) < 3
    mean, std = moments(TokenFeatures(x, torch.zeros(40), valid.expand(40, 5)), chunk=7)
    torch.testing.assert_close(mean, x[:, :3].reshape(-1, 3).mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(std, x[:, :3].reshape(-1, 3).std(0, correction=0), rtol=1e-4, atol=1e-5)


def test_the_asymmetric_loss_at_one_half():
    there, absent = torch.tensor([[0.0]]), torch.tensor([[1.0]])
    assert float(asymmetric(torch.zeros(1, 1), absent)) == pytest.approx(0.346574, abs=1e-6)
    assert float(asymmetric(torch.zeros(1, 1), there)) == pytest.approx(0.0245151, abs=1e-6)
    assert float(asymmetric(torch.full((1, 1), -20.0), there)) == 0  # below the margin


def test_prototypes_answer_for_their_own_class_and_stay_apart():
    torch.manual_seed(0)
    probe = Prototypes(6, 2, 3)
    tokens = TokenFeatures(torch.randn(4, 5, 6), torch.zeros(4))
    before = probe(tokens)
    with torch.no_grad():
        probe.prototypes[1] += torch.randn(3, 6)
    before, after = before.detach(), probe(tokens).detach()
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.equal(before[:, 1], after[:, 1])
    # by hand: the largest rectified cosine of each prototype, summed, less two
    cosine = nn.functional.cosine_similarity(tokens.x[0, :, None], probe.prototypes[0].detach(), dim=-1)
    assert float(after[0, 0]) == pytest.approx(float(cosine.amax(0).clamp(min=0).sum() - 2), abs=1e-5)
    assert float(apart(torch.eye(6)[:3].expand(2, 3, 6))) == 0
    same = torch.ones(1, 2, 6)  # off the diagonal 1 and 1: sqrt(2) / 4
    assert float(apart(same)) == pytest.approx(math.sqrt(2) / 4)


def test_focal_features_take_the_class_token_off():
    x = torch.randn(3, 4, 5)
    found = focal(TokenFeatures(x, torch.zeros(3), None, x[:, 0]))
    torch.testing.assert_close(found.x, x - x[:, :1])
    assert focal(single(Features(x[:, 0], torch.zeros(3)))).x.shape == (3, 1, 5)


class Net(nn.Module):
    def forward(self, view):
        x = view.data.float()
        index = torch.arange(x.shape[1]).expand(x.shape[:2])
        valid = x[..., 0] >= 0
        return Tokens(
            raw=x, pos=x, index=index, x=2 * x, valid=None if bool(valid.all()) else valid, prefix=x[:, :1] + 5
        )


def test_tokens_are_embedded_padded_and_refused_where_they_are_too_many():
    first, second = torch.ones(2, 3, 4), torch.ones(1, 5, 4)
    second[0, 4:] = -1
    batches = [
        {"x": View(first, "toy"), "label": torch.tensor([1, -1])},
        {"x": View(second, "toy"), "label": torch.tensor([0])},
    ]
    found = embed_tokens(Net(), batches, 1.0, 3)
    assert found.x.shape == (3, 5, 4) and found.x.dtype == torch.float16
    assert found.valid is not None and found.valid.sum(1).tolist() == [3, 3, 4]
    assert float(found.x[~found.valid].abs().sum()) == 0 and float(found.x[found.valid].min()) == 2
    assert found.summary is not None and found.summary[0].tolist() == [6.0] * 4
    kept = found.labelled()
    assert kept.y.tolist() == [1, 0] and kept.valid is not None and kept.summary is not None and len(kept.valid) == 2
    # 100 samples of 3 x 4 half floats are 2400 bytes
    with pytest.raises(ValueError, match=r"tokens of 100 samples \(3 of width 4 each\).*evaluation.limit=42 "):
        embed_tokens(Net(), batches, 1024 / 2**20, 100)
