"""Windows of recordings, their convolutions, cepstral targets; HuBERT's and wav2vec 2.0's terms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchaudio

from mmssl import api
from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.modalities.audio.mfcc import MFCC
from mmssl.modalities.audio.waveform import WaveformTokenizer
from mmssl.modalities.audio.waves import Waves
from mmssl.parts.code_predictors import CodeCosine
from mmssl.parts.conv_positions import Convolution
from mmssl.parts.decay_schedules import exponential
from mmssl.parts.gumbel import Gumbel
from mmssl.parts.span_maskers import Spans
from mmssl.plan import Plan
from mmssl.types import TokenSpec, View
from tests.small import tokens

COUNTS = (3200, 1500, 2400)
SMALL = {"rate": 8000, "kernels": (10, 3, 2), "strides": (5, 2, 2), "width": 8, "dropout": 0.0}


def recordings(counts=COUNTS, rate=8000):
    generator = torch.Generator().manual_seed(0)
    data = torch.zeros(len(counts), 1, max(counts))
    for row, count in zip(data, counts, strict=True):
        row[:, :count] = 0.3 * torch.randn(1, count, generator=generator)
    return View(Waves(data, counts, rate), "audio")


def plain(embed, wave):
    """One recording (n,) through the convolutions as a whole, torch's own group norm behind the first."""
    x = wave[None, None]
    for i, conv in enumerate(embed.convs):
        x = conv(x)
        x = F.gelu(embed.first(x) if i == 0 else x)
    return x[0].T


@pytest.mark.parametrize(("samples", "frames"), [(16000, 49), (160000, 499), (250000, 781), (320000, 999), (200, 1)])
def test_windows_are_what_the_convolutions_hear(samples, frames):
    tokenizer = WaveformTokenizer({"channels": 1})
    assert (tokenizer.window, tokenizer.hop) == (400, 320)
    made = tokenizer(View(torch.zeros(1, samples), "audio"))
    assert made.raw.shape == (1, frames, 400) and made.valid is None


def test_windows_make_up_the_recording_again():
    tokenizer = WaveformTokenizer({"channels": 1}, **SMALL)
    view = recordings()
    made = tokenizer(view)
    embed = tokenizer.embedding(16)
    out = embed(made)
    assert made.valid.sum(1).tolist() == [(count - tokenizer.window) // tokenizer.hop + 1 for count in COUNTS]
    for i, count in enumerate(COUNTS):
        n = int(made.valid[i].sum())
        used = (n - 1) * tokenizer.hop + tokenizer.window  # the rest fills no window
        conv = plain(embed, view.data.data[i, 0, : min(used, count)])
        torch.testing.assert_close(out.taps["conv"][i, :n], conv, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out.x[i, :n], embed.proj(embed.norm(conv)), rtol=1e-4, atol=1e-4)
    index = torch.tensor([[3, 5], [0, 1], [2, 7]])  # of what is kept alone
    some = embed(made, made.take(index))
    torch.testing.assert_close(some.x, out.x.gather(1, index.unsqueeze(-1).expand(-1, -1, 16)))
    pictures = tokenizer.restore(made, None)
    assert [len(one.values) > 0 for one in pictures] == [True] * 3
    with pytest.raises(ValueError, match=r"tokenizer\.kernels and tokenizer\.strides are of the same convolutions"):
        WaveformTokenizer({"channels": 1}, kernels=(3, 3), strides=(2,))


def test_the_gradient_into_the_convolutions_is_scaled():
    view, found = recordings(), []
    for factor in (1.0, 0.1):
        torch.manual_seed(0)
        tokenizer = WaveformTokenizer({"channels": 1}, **SMALL, gradient=factor)
        embed = tokenizer.embedding(16)
        out = embed(tokenizer(view))
        out.x.square().mean().backward()
        found.append((out.x.detach(), embed.convs[1].weight.grad, embed.proj.weight.grad))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6) and torch.allclose(found[0][2], found[1][2], rtol=1e-4)
    torch.testing.assert_close(found[1][1], 0.1 * found[0][1], rtol=1e-3, atol=1e-8)


def test_mfcc_are_those_of_kaldi():
    tokenizer = WaveformTokenizer({"channels": 1}, rate=16000)
    none = {key: {} for key in ("looks", "dims", "taps")}
    network = type("N", (), {"tokenizer": tokenizer})()
    target = MFCC(Plan(**none, specs={"x": tokenizer.spec}, networks={"x": network}, head=None), "x")
    view = recordings((16000, 9000), 16000)
    made = tokenizer(view)
    look = type("L", (), {"views": [view], "tokens": made, "row": None})()
    found = target(look, made)
    for i, wave in enumerate(view.data):
        told = torchaudio.compliance.kaldi.mfcc(wave.data * 32768, sample_frequency=16000, use_energy=False)
        first = torchaudio.functional.compute_deltas(told.T)
        told = torch.cat([told.T, first, torchaudio.functional.compute_deltas(first)]).T[
            ::2
        ]  # fairseq takes every second
        n = int(made.valid[i].sum())
        torch.testing.assert_close(found[i, :n], told[:n], rtol=1e-3, atol=2e-2)
    assert target.dim == 39
    with pytest.raises(ValueError, match=r"target/mfcc is of tokens in time; choose tokenizer/waveform"):
        other = Plan(**none, specs={"x": TokenSpec(4, 1)}, networks={"x": network}, head=None)
        MFCC(other, "x")


# spans


def spans_plainly(masker, draws, n):
    """One sample without padding, as fairseq does it, with the draws of the masker."""
    u = float(draws.named("count").uniform(1)[0, 0])
    count = max(masker.fewest, int(masker.ratio * n / masker.length + u))
    room = n - masker.length
    room = room if room > count else count + 1
    order = np.argsort(draws.named("start").uniform(n)[0, :room].numpy(), kind="stable")[:count]
    return sorted({place for start in order for place in range(start, min(start + masker.length, n))})


@pytest.mark.parametrize("length", [10, 3])
def test_spans_are_those_of_fairseq(length):
    masker = Spans(ratio=0.65, length=length, equal=False)
    for n in (100, 15, 9):
        draws = Draws.of(3, 0, torch.arange(20))
        hidden = masker(tokens(20, n), draws, 0.0, None).hidden
        for i, one in enumerate(draws.each()):
            assert torch.where(hidden[i])[0].tolist() == spans_plainly(masker, one, n)


def test_every_sample_hides_as_much():
    made = tokens(64, 500)
    draws = Draws.of(0, 0, torch.arange(64))
    for ratio, share in ((0.8, 0.568), (0.65, 0.491)):
        loose = Spans(ratio=ratio, equal=False)(made, draws, 0.0, None)
        assert float(loose.hidden.float().mean()) == pytest.approx(share, abs=0.01)  # measured, see the specification
        mask = Spans(ratio=ratio)(made, draws, 0.0, None)
        assert set(mask.hidden.sum(1).tolist()) == {int(loose.hidden.sum(1).min())} == {mask.target_count}
        assert bool((loose.hidden | mask.visible).all())  # some are shown again, none is hidden more
    valid = torch.arange(40) < torch.tensor([40, 25])[:, None]
    mask = Spans(length=4)(tokens(2, 40, valid=valid), Draws.of(0, 0, torch.arange(2)), 0.0, None)
    assert not bool((mask.visible & ~valid).any() | (mask.targets[:, 0] & ~valid).any())
    with pytest.raises(ValueError, match=r"masker\.length has to be at least 1 .*got 0"):
        Spans(length=0)


# positions and predictors


def test_positions_by_convolution():
    part = Convolution(TokenSpec(4, 1), 32, kernel=8, groups=4)
    valid = torch.arange(20) < torch.tensor([20, 13])[:, None]
    x = torch.randn(2, 20, 32)
    found = part(tokens(2, 20, valid=valid).but(x=x))
    alone = part(tokens(1, 13).but(x=x[1:, :13]))
    torch.testing.assert_close(found[1, :13], alone[0])  # padding is not heard
    weight = part.conv.weight
    plain = F.conv1d(F.pad(x[:1].mT, (4, 3)), weight, part.conv.bias, groups=4)
    torch.testing.assert_close(found[:1], F.gelu(plain).mT)
    gain, direction = part.conv.parametrizations.weight.original0, part.conv.parametrizations.weight.original1
    torch.testing.assert_close(weight, gain * direction / direction.norm(dim=(0, 1), keepdim=True))
    with pytest.raises(ValueError, match=r"position\.groups=5 does not divide the width 32"):
        Convolution(TokenSpec(4, 1), 32, groups=5)


def test_codes_by_cosine():
    part = CodeCosine(TokenSpec(4, 1), 16, 7, (), dim=5)
    seen = tokens(2, 6).but(x=torch.randn(2, 6, 16))
    found = part(seen, seen)
    plain = F.cosine_similarity(part.proj(seen.x).unsqueeze(2), part.codes, dim=-1) / 0.1
    torch.testing.assert_close(found, plain)
    assert found.shape == (2, 6, 7) and 0 <= float(part.codes.detach().min()) and float(part.codes.detach().max()) < 1


def test_temperature_of_wav2vec2():
    told = {"first": 2.0, "last": 2 * 0.999995**400000, "least": 0.5}
    assert exponential(0.25, **told) == pytest.approx(1.2131, abs=1e-4)
    assert exponential(277258 / 400000, **told) > 0.5 == exponential(277259 / 400000, **told)


# recipes


def built(name, **more):
    return api.build(name, ["data=sample", "data.batch_size=4", "encoder.depth=1", *more.get("given", [])])


def test_hubert_predicts_units_of_hidden_frames():
    part, data = built("audio/hubert")
    step = part.begin(data.batch([(0, i) for i in range(4)]))
    look, term, penalty = step["x"], part.objective["units"], part.objective["penalty"]
    query, _ = term.query(look, "hidden")
    network = term.target.of._network[0]
    layer = network(look.views[0], ("block.0",)).taps["block.0"]
    ids = torch.cdist(layer, term.target.codes.centroids).argmin(-1)
    assert torch.equal(term.target(look, query), ids.gather(1, query.index))
    term.predictor.codes.data.fill_(1.0)  # all codes alike: uniform logits
    total, count = term(step)
    assert float(total.detach() / count) == pytest.approx(math.log(64), rel=1e-5)
    total, count = penalty(step)
    conv = part.networks["main"].embed(look.tokens).taps["conv"][look.tokens.valid]
    assert float(total.detach() / count) == pytest.approx(float(conv.detach().square().mean()), rel=1e-4)
    assert int(count) == int(look.tokens.valid.sum())
    assert 0 <= float(part.corruptors["x"].mask_token.detach().min())


def test_what_stands_beside_a_term_has_to_be_there():
    with pytest.raises(
        ConfigError, match=r"term/aside reads term 'contrst', .*there is contrast; did you mean 'contrast'"
    ):
        built("audio/wav2vec2", given=["objective.diversity.of=contrst"])
    part, data = built("audio/wav2vec2", given=["objective.diversity.name=commitment", "objective.penalty.tap=cow"])
    step = part.begin(data.batch([(0, i) for i in range(4)]))
    part.objective["contrast"](step)
    with pytest.raises(ValueError, match=r"term 'contrast' says no 'commitment' alone, it has diversity"):
        part.objective["diversity"](step)
    with pytest.raises(ValueError, match=r"the embedding gives no 'cow', it has conv, features"):
        part.objective["penalty"](step)


def test_gumbel_takes_one_entry_of_each_group():
    torch.manual_seed(0)
    part = Gumbel(6, groups=2, entries=5, dim=8)
    x, draws = torch.randn(3, 4, 6, requires_grad=True), Draws.of(0, 0, torch.arange(3))
    codes, soft = part(x, draws, 0.0)
    torch.testing.assert_close(soft.sum(-1), torch.ones(3, 4, 2))
    every = torch.cat([a + b for a in F.pad(part.codes[0], (0, 4)) for b in F.pad(part.codes[1], (4, 0))]).view(-1, 8)
    distance = torch.cdist(codes.flatten(0, 1), part.proj(every)).min(1).values
    assert float(distance.detach().max()) < 1e-3  # hard codes
    codes.sum().backward()
    assert x.grad.abs().sum() > 0 and part.logits.weight.grad.abs().sum() > 0  # straight through
    part.eval()
    chosen = part(x, draws, 0.0)[0]
    best = part.logits(x).view(3, 4, 2, 5).argmax(-1)
    torch.testing.assert_close(chosen, part.proj(torch.cat([part.codes[g][best[..., g]] for g in range(2)], -1)))
    with pytest.raises(ValueError, match=r"quantizer\.groups=3 does not divide quantizer\.dim=8"):
        Gumbel(6, groups=3, dim=8)


def test_wav2vec2_tells_codes_apart():
    part, data = built(
        "audio/wav2vec2", given=["objective.contrast.quantizer.entries=40", "objective.contrast.dropout=0.0"]
    )
    part.eval()
    step = part.begin(data.batch([(0, i) for i in range(4)]))
    term, look = part.objective["contrast"], step["x"]
    total, count = term(step)
    index = look.mask.target_index[0][:, 0]
    t = index.shape[1]
    query = look.tokens.take(index)
    others = term._others(index.shape, None, look.draws)
    assert others.shape == (4, t, 100) and not bool((others == torch.arange(t)[:, None]).any())
    assert set(others[0, 0].tolist()) == set(range(1, t))  # of the same recording, all of them
    answer = term.predictor(look.seen, query)
    features = look.embedded.taps["features"].gather(1, index.unsqueeze(-1).expand(-1, -1, 64))
    codes, soft = term.quantizer(features, look.draws, 0.0)
    losses = []
    for r in range(4):
        for i in range(t):
            near = [F.cosine_similarity(answer[r, i], codes[r, i], dim=0)]
            for j in others[r, i].tolist():
                if not torch.equal(codes[r, i], codes[r, j]):
                    near.append(F.cosine_similarity(answer[r, i], codes[r, j], dim=0))
            losses.append(-torch.log_softmax(torch.stack(near) / 0.1, 0)[0])
    assert float(total.detach()) == pytest.approx(float(torch.stack(losses).sum().detach()), rel=1e-4)
    assert int(count) == 4 * t == int(term.count(step))
    mean = soft.mean((0, 1))
    used = torch.exp(-(mean * torch.log(mean + 1e-7)).sum(-1)).sum()
    total, count = part.objective["diversity"](step)
    assert float(total.detach() / count) == pytest.approx(float((80 - used.detach()) / 80), rel=1e-5)
    one = F.one_hot(torch.zeros(4, t, 2, dtype=torch.int64), 320).float()
    term._leave(one, None, torch.tensor(1.0))  # one code of each group is all
    assert float(term.asides["diversity"]) == pytest.approx(638 / 640, abs=1e-6)
    term._leave(torch.full((4, t, 2, 320), 1 / 320), None, torch.tensor(1.0))
    assert float(term.asides["diversity"]) == pytest.approx(0.0, abs=1e-4)
