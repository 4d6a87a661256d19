"""MixedAE: mixtures and their parts, attention to the strongest keys, and the loss over tokens of one sample."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.parts.encoders.homologous import strongest
from mmssl.parts.mixtures import Merge, Partition
from mmssl.types import TokenSpec
from tests.small import PIXELS, VIT, batch, module, tokens

HEAD = {"_target_": "head/mlp", "dims": [16, 8], "norm": None}
TERM = {"_target_": "term/homologous", "head": "tokens"}
MIXED = {
    "encoder": VIT | {"_target_": "encoder/homologous", "groups": 2}, "masker": {"_target_": "masker/partition", "groups": 2},
    "corruptor": {"_target_": "corruptor/merge"}, "heads": {"tokens": HEAD},
    "objective": {"pixels": PIXELS, "same": TERM},
}  # fmt: skip


def test_samples_share_all_places():
    whole, draws = tokens(8, 16, grid=(4, 4)), Draws.of(0, 0, torch.arange(8))
    mask = Partition(groups=4)(whole, draws, 0.0, None)
    assert (mask.visible.sum(1) == 4).all() and mask.visible_count == 4 and mask.target_count == 12
    assert (mask.visible.reshape(2, 4, 16).sum(1) == 1).all() and not torch.equal(mask.visible[:4], mask.visible[4:])
    assert torch.equal(mask.targets[:, 0], ~mask.visible)
    again = Partition(groups=4)(
        whole.take(torch.arange(16).expand(4, 16), torch.arange(4, 8)), draws.rows(torch.arange(4, 8)), 0.0, None
    )
    assert torch.equal(again.visible, mask.visible[4:])


def test_mixtures_come_apart_again():
    whole, draws = tokens(8, 16, grid=(4, 4)), Draws.of(0, 0, torch.arange(8))
    mask, part = Partition(groups=4)(whole, draws, 0.0, None), Merge(TokenSpec(5, 2), "sequence", 8)
    mixed = part(whole, mask, draws)
    assert mixed.index.shape == (2, 16) and torch.equal(mixed.index.sort(1).values, torch.arange(16).expand(2, 16))
    for row in range(2):
        for place, slot, raw in zip(mixed.index[row], mixed.stream[row], mixed.raw[row], strict=True):
            assert torch.equal(raw, whole.raw[4 * row + slot, place]) and mask.visible[4 * row + slot, place]
    prefix = torch.randn(2, 1, 5)
    back = part.apart(mixed.but(x=mixed.raw, prefix=prefix, taps={"embed": torch.cat([prefix, mixed.raw], 1)}), mask)
    assert back.x.shape == (8, 4, 5) and torch.equal(back.prefix[:4], prefix[:1].expand(4, 1, 5))
    assert torch.equal(back.taps["embed"], torch.cat([back.prefix, back.x], 1)) and back.stream is None
    for i in range(8):
        assert torch.equal(back.index[i], mask.visible[i].nonzero()[:, 0]) and torch.equal(
            back.x[i], whole.raw[i, mask.visible[i]]
        )


def test_attention_to_the_strongest():
    logits = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    found = strongest(logits, 3)
    assert ((found > 0).sum(-1) == 3).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, 7))
    for row, weights in zip(logits.flatten(0, 2), found.flatten(0, 2), strict=True):
        best = sorted(range(7), key=lambda j, row=row: -row[j])[:3]
        total = sum(math.exp(row[j]) for j in best)
        for j in range(7):
            assert float(weights[j]) == pytest.approx(math.exp(row[j]) / total if j in best else 0.0, rel=1e-4)


def test_the_encoder_reads_half_of_a_mixture_of_two():
    part = module(**MIXED).eval()
    look, encoder = part.begin(batch())["x"], part.networks["main"].encoder
    given = look.prepared("seen")
    x = torch.cat(
        [encoder.prefix.expand(2, -1, -1), given.x + encoder.position(given) + encoder.segment[given.stream]], 1
    )
    for block in encoder.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        logits = q @ k.mT / math.sqrt(8)
        gone = logits < logits.sort(-1, descending=True).values[..., 7:8]
        mixed = torch.softmax(logits.masked_fill(gone, -torch.inf), -1) @ v
        x = x + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    found = encoder(given)
    torch.testing.assert_close(found.x, encoder.norm(x)[:, 1:], atol=1e-5, rtol=1e-4)
    everything = look.network.encode(look.tokens)  # whole samples: a plain ViT
    plain = module(encoder=VIT).eval()
    plain.networks["main"].load_state_dict({k: v for k, v in look.network.state_dict().items() if "segment" not in k})
    torch.testing.assert_close(everything.x, plain.networks["main"].encode(look.tokens).x)


def test_tokens_find_those_of_their_sample():
    part = module(**MIXED).eval()
    step, term = part.begin(batch()), part.objective["same"]
    total, count = term(step)
    z = torch.nn.functional.normalize(step.heads["tokens"](step["x"].seen.x), dim=-1)
    expected = 0.0
    for group in (z[:2], z[2:]):
        flat = group.flatten(0, 1)
        for i in range(16):
            others = [j for j in range(16) if j != i]
            scores = torch.stack([flat[i] @ flat[j] for j in others]) / 0.25
            mine = [k for k, j in enumerate(others) if j // 8 == i // 8]
            expected = expected - torch.log_softmax(scores, 0)[mine].mean()
    torch.testing.assert_close(total, expected)
    assert int(count) == 32 == int(term.count(step))


def test_samples_of_a_group_may_change_places():
    part = module(**MIXED | {"encoder": MIXED["encoder"] | {"class_token": False}}).eval()
    net, term = part.networks["main"], part.objective["pixels"]
    torch.nn.init.zeros_(net.encoder.segment)
    whole = net.tokenizer(batch()["x"])
    step = part.begin(batch())
    mask, corruptor = step["x"].mask, part.corruptors["x"]
    swap = torch.tensor([1, 0, 3, 2])
    twin = type(mask)(mask.visible[swap], mask.targets[swap], None, mask.visible_count, mask.target_count)
    found = []
    for given, flags in ((whole, mask), (whole.take(whole.index, swap), twin)):
        seen = corruptor.apart(net.encoder(net.embed(corruptor(given, flags, None))), flags)
        query = given.take(flags.target_index[0][:, 0])
        found.append(term.predictor(seen, query))
    torch.testing.assert_close(found[1], found[0][swap], atol=1e-5, rtol=1e-4)


def test_mixtures_train_all():
    part = module(**MIXED)
    loss = part.training_step(batch())
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in part.parameters())


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        module(**MIXED | {"masker": {"_target_": "masker/partition", "groups": 1}})
    with pytest.raises(ValueError, match="has to divide the samples of a batch"):
        module(**MIXED).training_step(batch(3))
    with pytest.raises(ConfigError, match="mixes no samples"):
        module(heads={"tokens": HEAD}, objective={"same": TERM})
