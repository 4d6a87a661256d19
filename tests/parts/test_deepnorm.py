"""The encoder of BEATs, the predictor around it, and OpenBEATs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torchaudio.models.wav2vec2.wavlm_attention import WavLMSelfAttention

from mmssl import api
from mmssl.draws import Draws
from mmssl.modalities.audio.tokenizer import SpectrogramTokenizer
from mmssl.nn.network import StemEmbed
from mmssl.parts.encoders.deepnorm import DeepNorm, buckets
from mmssl.parts.maskers import Random
from mmssl.parts.restoring import Restored
from mmssl.parts.supervised import CrossEntropy
from mmssl.types import TokenSpec, View
from tests.small import tokens

SPEC = TokenSpec(5, 1)


def encoder(depth=2, **more):
    torch.manual_seed(0)
    made = DeepNorm(SPEC, dim=16, depth=depth, heads=4, dropout=0.0, buckets=16, longest=20, **more)
    torch.nn.init.normal_(made.bias.weight)  # far from nothing
    for block in made.blocks:
        torch.nn.init.normal_(block.attn.scale)
    return made.eval()


def test_buckets_are_those_of_wavlm():
    apart = torch.arange(-1500, 1500)
    theirs = WavLMSelfAttention(8, 2, num_buckets=320, max_distance=1280)
    assert torch.equal(buckets(apart, 320, 1280), theirs._relative_positions_bucket(apart))


def test_layers_are_those_of_the_formula():
    part = encoder()
    x = torch.randn(2, 7, 16)
    found = part(tokens(2, 7).but(x=x), ("block.0",))
    place = torch.arange(7)
    bias = part.bias.weight[buckets(place - place[:, None], 16, 20)].permute(2, 0, 1)
    alpha = (2 * 2) ** 0.25
    for i, block in enumerate(part.blocks):
        q, k, v = (m(x).view(2, 7, 4, 4).transpose(1, 2) for m in (block.attn.q, block.attn.k, block.attn.v))
        gates = torch.sigmoid(block.attn.gate(q).view(2, 4, 7, 2, 4).sum(-1))
        gate = gates[..., :1] * (gates[..., 1:] * block.attn.scale - 1) + 2
        weights = torch.softmax(q @ k.mT / 2 + gate * bias, -1)
        read = block.attn.proj((weights @ v).transpose(1, 2).reshape(2, 7, 16))
        x = F.layer_norm(alpha * x + read, (16,))
        x = F.layer_norm(alpha * x + block.fc2(F.gelu(block.fc1(x))), (16,))
        if i == 0:
            torch.testing.assert_close(found.taps["block.0"], x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.x, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("depth", "alpha", "beta"), [(12, 2.2134, 0.3195), (24, 2.6321, 0.2687)])
def test_deep_encoders_begin_smaller(depth, alpha, beta):
    part = DeepNorm(SPEC, dim=64, depth=depth, heads=4)
    block = part.blocks[0]
    assert block.alpha == pytest.approx(alpha, abs=1e-4)
    plain = math.sqrt(2 / (64 + 64))  # Xavier's deviation
    assert float(block.attn.q.weight.detach().std()) == pytest.approx(plain, rel=0.05)
    assert float(block.attn.v.weight.detach().std()) == pytest.approx(beta * plain, rel=0.05)
    assert float(block.attn.proj.weight.detach().std()) == pytest.approx(beta * plain, rel=0.05)
    assert float(block.fc1.weight.detach().std()) == pytest.approx(beta * math.sqrt(2 / (64 + 256)), rel=0.05)


def test_padding_and_what_is_left_out_change_nothing():
    part = encoder()
    valid = torch.arange(9) < torch.tensor([9, 6])[:, None]
    x = torch.randn(2, 9, 16)
    found = part(tokens(2, 9, valid=valid).but(x=x)).x
    torch.testing.assert_close(found[1, :6], part(tokens(1, 6).but(x=x[1:, :6])).x[0])
    # distances are those of the whole sequence: gaps stay gaps
    gap = tokens(1, 9).take(torch.tensor([[0, 1, 5]])).but(x=x[:1, [0, 1, 5]])
    near = tokens(1, 3).but(x=x[:1, [0, 1, 5]])
    assert not torch.allclose(part(gap).x, part(near).x, atol=1e-3)


def test_mask_tokens_stand_where_nothing_was_seen():
    predictor = Restored(SPEC, 8, 3, (), decoder=lambda spec: encoder(depth=1))
    valid = torch.arange(9) < torch.tensor([9, 6])[:, None]
    made = tokens(2, 9, valid=valid, count=9)
    mask = Random(ratio=0.5)(made, Draws.of(0, 0, torch.arange(2)), 0.0, None)
    index, seen_valid = mask.visible_index
    seen = made.take(index, None, seen_valid).but(x=torch.randn(2, index.shape[1], 8))
    asked, asked_valid = mask.target_index
    query = made.take(asked[:, 0], None, asked_valid[:, 0])
    found = predictor(seen, query)
    for i in range(2):
        whole = predictor.mask_token[0].expand(9, -1).clone()
        for j in range(index.shape[1]):
            if seen_valid is None or bool(seen_valid[i, j]):
                whole[index[i, j]] = predictor.embed(seen.x[i, j])
        n = int(valid[i].sum())
        plain = predictor.decoder(tokens(1, n).but(x=whole[None, :n])).x[0]
        plain = predictor.head(predictor.norm(plain))
        for j in range(asked.shape[-1]):
            if bool(asked_valid[i, 0, j]):
                torch.testing.assert_close(found[i, j], plain[asked[i, 0, j]])


def test_beats_reads_496_patches_of_ten_seconds():
    facts = {"channels": 1, "mean": 0.0, "std": 1.0}
    tokenizer = SpectrogramTokenizer(
        facts, frames=998, flavour="beats", mean=15.41663, std=6.55582, stem=12, padding="masked"
    )
    made = tokenizer(View(torch.randn(1, 160000) * 0.1, "audio"))
    assert made.grid == (62, 8) and made.raw.shape == (1, 496, 256) and made.valid is None
    short = tokenizer(View(torch.randn(1, 80000) * 0.1, "audio"))
    assert int(short.valid.sum()) == 256  # 498 frames reach into a 32nd row of patches
    mask = Random(ratio=0.75)(made, Draws.of(0, 0, torch.arange(1)), 0.0, None)
    assert mask.visible_count == 124
    embed = tokenizer.embedding(20)
    assert isinstance(embed, StemEmbed)
    plain = embed.proj(F.layer_norm(made.raw @ embed.stem.weight.T, (12,)))
    torch.testing.assert_close(embed(made).x, plain)


def test_openbeats_begins_with_random_codes():
    part, data = api.build("audio/openbeats", ["data=sample", "data.batch_size=4", "encoder.depth=1"], stage="first")
    part.eval()
    term = part.objective["codes"]
    step = part.begin(data.batch([(0, i) for i in range(4)]))
    query, _ = term.query(step["x"], "hidden")
    assert torch.equal(term.target(step["x"], query), term.target.codes(query.raw))
    for smoothing in (0.0, 0.1):  # uniform logits
        loss = CrossEntropy(smoothing=smoothing)(torch.zeros(3, 1024), torch.tensor([0, 5, 9]))
        assert loss.tolist() == pytest.approx([6.9315] * 3, abs=1e-4)
    assert term.loss.smoothing == 0.1
