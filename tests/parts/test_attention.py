"""Attention read out of taps against attention that is computed plainly, and maskers that follow it."""

from __future__ import annotations

import pytest
import torch

from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.parts.guided_maskers import Attended, Sampled
from mmssl.parts.regions import from_end
from tests.small import VIT, batch, module, tokens

EMA = {"_target_": "teacher/ema", "momentum": 0.9}
HEAD = {"_target_": "head/prototypes", "dims": [16, 8], "count": 12}
CENTER = {"_target_": "norm/center", "temperature": 0.04}
CE = {"_target_": "loss/soft_ce"}
LOOK = {
    "guide": {"_target_": "guide/attention"},
    "masker": {"_target_": "masker/attended", "hide": "high", "share": 1.0},
    "corruptor": {"_target_": "corruptor/token"},
}
ATTMASK = {
    "views": {"a": [], "b": []}, "looks": {"a": LOOK, "b": LOOK}, "masker": None, "corruptor": None, "teacher": EMA,
    "heads": {"proj": HEAD},
    "objective": {
        "samples": {"_target_": "term/match", "head": "proj", "pool": "cls", "normalize": CENTER, "loss": CE},
        "patches": {
            "_target_": "term/predict", "look": ["a", "b"], "head": "proj", "target": {"_target_": "target/teacher"},
            "normalize": CENTER | {"whole": True}, "loss": CE, "reduce": "sample",
        },
    },
}  # fmt: skip


def drawn(count, step=0):
    return Draws.of(0, 0, torch.arange(count), step=step)


def plain_attention(encoder, x):
    """The mean over heads of what the class token of the last block reads, of embedded tokens with positions."""
    for block in encoder.blocks[:-1]:
        x = block(x)
    attn, found = encoder.blocks[-1].attn, []
    qkv = attn.qkv(encoder.blocks[-1].norm1(x))
    width = x.shape[-1] // attn.num_heads
    for head in range(attn.num_heads):
        query, key = (qkv[..., part * x.shape[-1] + head * width :][..., :width] for part in (0, 1))
        found.append(torch.softmax(query[:, :1] @ key.mT / width**0.5, -1)[:, 0])
    return torch.stack(found).mean(0)


def test_the_guide_is_the_teachers_attention_and_trains_nothing():
    part = module(**ATTMASK)
    with torch.no_grad():
        for p in part.teacher.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    step = part.begin(batch(names=("a", "b")))
    network, look = part.teacher.of(part.networks["main"]), step["a"]
    whole = network.prepare(look.tokens)
    x = torch.cat([network.encoder.prefix.expand(4, -1, -1), whole.x + network.encoder.position(whole)], 1)
    torch.testing.assert_close(look.score, plain_attention(network.encoder, x)[:, 1:], rtol=1e-4, atol=1e-6)
    hidden = look.mask.hidden.sum(1)
    assert (hidden == hidden[0]).all() and 1 <= int(hidden[0]) < 8
    assert (look.score[look.mask.hidden].min() > look.score.median()) and not look.score.requires_grad
    loss = part.training_step(batch(names=("a", "b")))
    loss.backward()
    assert all(p.grad is None for p in part.teacher.parameters())


def test_layers_may_be_counted_from_the_last():
    names = ("embed", "block.0", "block.1", "qkv.0", "qkv.1")
    assert [from_end(name, names) for name in ("qkv.-1", "qkv.-2", "block.1", "embed")] == [
        "qkv.1", "qkv.0", "block.1", "embed",
    ]  # fmt: skip
    far = LOOK | {"guide": {"_target_": "guide/attention", "layer": "qkv.-3"}}
    with pytest.raises(ConfigError, match=r"qkv\.-3"):
        module(**ATTMASK | {"looks": {"a": far, "b": far}})


def test_an_encoder_without_class_token_is_told():
    part = module(**ATTMASK | {"encoder": VIT | {"class_token": False}})
    with pytest.raises(ValueError, match="class_token"):
        _ = part.begin(batch(names=("a", "b")))["a"].score


def asked(masker, n=196, count=3, step=0):
    score = torch.rand(count, n, generator=torch.Generator().manual_seed(1))
    given = tokens(count, n, width=1)
    return masker(given, drawn(count, step), 0.0, score).hidden, score.argsort(1, descending=True)


def test_high_low_and_hints_hide_their_numbers():
    sure = {"ratio": [0.3, 0.3], "share": 1.0}
    (high, order), (low, _), (hints, _) = (asked(Attended(hide=hide, **sure)) for hide in ("high", "low", "hints"))
    assert (high.sum(1) == 58).all() and high.gather(1, order[:, :58]).all()
    assert (low.sum(1) == 58).all() and not (high & low).any()
    assert (hints.sum(1) == 53).all() and not (hints & ~high).any()
    assert ((high & ~hints).gather(1, order[:, :19]).sum(1) == 5).all()
    half = [asked(Attended(hide=hide, ratio=[0.5, 0.5], share=1.0))[0] for hide in ("high", "low")]
    assert not (half[0] & half[1]).any()


def test_a_batch_has_one_ratio_and_some_samples_no_mask():
    counts = [asked(Attended(hide="high"), count=200, step=step)[0].sum(1) for step in range(3)]
    sizes = [set(found.tolist()) - {0} for found in counts]
    assert all(len(size) == 1 and 19 <= min(size) < 98 for size in sizes) and len(set.union(*sizes)) > 1
    assert all(70 < int((found == 0).sum()) < 130 for found in counts)


def test_sampled_keeps_tokens_as_often_as_drawing_one_after_another_does():
    weights = torch.tensor([0.5, 0.25, 0.15, 0.1])
    given = tokens(4000, 4, width=1)
    for log in (False, True):
        score = (3.0 * weights).log() if log else 3.0 * weights
        mask = Sampled(ratio=0.5, log=log)(given, drawn(4000), 0.0, score.expand(4000, 4))
        assert (mask.visible.sum(1) == 2).all() and (mask.visible_count, mask.target_count) == (2, 2)
        w = weights.tolist()
        first_or_second = [w[i] + sum(w[j] * w[i] / (1 - w[j]) for j in range(4) if j != i) for i in range(4)]
        torch.testing.assert_close(mask.visible.float().mean(0), torch.tensor(first_or_second), rtol=0, atol=0.03)
    kept = Sampled(ratio=0.7)(tokens(2, 196, width=1), drawn(2), 0.0, torch.rand(2, 196))
    assert (kept.visible.sum(1) == 58).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [({"hide": "most"}, "'high', 'low' or 'hints'"), ({"ratio": [0.5, 0.1]}, "ascending"), ({"show": 2.0}, "shares")],
)
def test_what_means_nothing_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Attended(**given)
