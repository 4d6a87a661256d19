"""MP3's positions as classes and Selfie's choice among patches, from their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.masks import Mask
from mmssl.parts.losses import SoftCrossEntropy
from mmssl.parts.places import Position, Unread
from mmssl.types import TokenSpec
from tests.small import PIXELS, VIT, batch, module, tokens

NOWHERE = {"_target_": "position/none"}
MP3 = {
    "encoder": VIT | {"class_token": False, "position": NOWHERE},
    "corruptor": {"_target_": "corruptor/unread"},
    "objective": {"places": PIXELS | {
        "at": "all", "predictor": {"_target_": "predictor/linear"}, "target": {"_target_": "target/position"},
        "loss": {"_target_": "loss/soft_ce", "temperature": 1.0},
    }},
}  # fmt: skip
SELFIE = {
    "tokenizer": {"_target_": "tokenizer/patch_cnn", "size": 32, "patch": 8, "stem": "small", "layers": [1, 1, 1]},
    "encoder": {"_target_": "encoder/postnorm", "dim": 32, "depth": 2, "heads": 4, "class_token": True, "position": NOWHERE},
    "masker": {"_target_": "masker/random", "ratio": 0.25},
    "objective": {"patches": {"_target_": "term/choose"}},
}  # fmt: skip


def test_an_encoder_without_positions_does_not_mind_order():
    net = module(**MP3).eval().networks["main"]
    whole = net.tokenizer(batch()["x"])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    found, moved = net.encode(whole).x, net.encode(whole.but(raw=whole.raw[:, order])).x
    torch.testing.assert_close(found[:, order], moved, atol=1e-5, rtol=1e-4)


def test_only_context_tokens_are_read():
    part = module(**MP3 | {"masker": {"_target_": "masker/random", "ratio": 0.6, "floor": "hidden"}}).eval()
    look = part.begin(batch())["x"]
    seen, visible = look.prepared("seen"), look.mask.visible
    assert (visible.sum(1) == 16 - int(16 * 0.6)).all() and torch.equal(seen.valid, visible)
    changed = seen.but(x=torch.where(visible.unsqueeze(-1), seen.x, torch.randn(seen.x.shape)))
    a, b = (part.networks["main"].encoder(one).x for one in (seen, changed))
    torch.testing.assert_close(a[visible], b[visible])
    assert (a[~visible] - b[~visible]).abs().amax(-1).min() > 1e-3  # they ask for themselves
    # by hand: each token reads the visible ones, with its own state as query
    encoder, x = part.networks["main"].encoder, seen.x[:1]
    for block in encoder.blocks:
        read = block.norm1(x)
        q, k, v = block.attn.qkv(read).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        keys, values = k[:, :, visible[0]], v[:, :, visible[0]]
        mixed = torch.softmax(q @ keys.mT / math.sqrt(8), -1) @ values
        x = x + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(encoder.norm(x), a[:1], atol=1e-5, rtol=1e-4)


def test_positions_are_classes():
    part = module(**MP3)
    step = part.begin(batch())
    target = part.objective["places"].target(step["x"], step["x"].tokens)
    assert torch.equal(target.argmax(-1), torch.arange(16).expand(4, 16)) and torch.equal(
        target.sum(-1), torch.ones(4, 16)
    )
    uniform = SoftCrossEntropy(temperature=1.0)(torch.zeros(4, 16, 16), target)
    torch.testing.assert_close(uniform, torch.full((4, 16), math.log(16)))
    total, count = part.objective["places"](step)
    assert int(count) == 64
    logits = part.objective["places"].predictor.head(step["x"].seen.x)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(16).repeat(4), reduction="sum")
    torch.testing.assert_close(total, expected)
    row = torch.tensor([1, 0, 1])
    several = Unread(TokenSpec(5, 1), "sequence", 8)(
        tokens(2, 6), Mask(torch.ones(3, 6).bool(), torch.ones(3, 1, 6).bool(), row), Draws.of(0, 0, torch.arange(2))
    )
    assert torch.equal(several.raw[0], tokens(2, 6).raw[1]) and several.valid.all()


def test_places_choose_among_patches_of_their_image():
    part = module(**SELFIE)
    part.eval()
    step = part.begin(batch())
    look, term = step["x"], part.objective["patches"]
    total, count = term(step)
    assert int(count) == 16 == int(term.count(step))
    expected = 0.0
    for i in range(4):
        places = look.mask.targets[i, 0].nonzero()[:, 0]
        h = look.network.embed(look.tokens).x[i, places]
        for j, place in enumerate(places):
            v = look.seen.prefix[i, 0] + term.position.table[place]
            expected = expected - torch.log_softmax(h @ v, 0)[j]
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-4)
    assert 0 <= float(term.signals["top1"]) <= 1


def test_the_order_of_context_patches_does_not_matter():
    part = module(**SELFIE).eval()
    look = part.begin(batch())["x"]
    kept = look.prepared("seen")
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    moved = kept.but(x=kept.x[:, order], index=kept.index[:, order], raw=kept.raw[:, order], pos=kept.pos[:, order])
    torch.testing.assert_close(
        look.network.encoder(kept).prefix, look.network.encoder(moved).prefix, atol=1e-5, rtol=1e-4
    )


def test_choosing_trains_patches_and_context():
    part = module(**SELFIE)
    given = batch()
    pixels = given["x"].data.clone().requires_grad_()
    given["x"] = type(given["x"])(pixels, "image")
    part.eval()  # no batch statistics between images
    step = part.begin(given)
    term = part.objective["patches"]
    losses = []
    for i in range(4):  # the loss of one image
        one = part.begin(
            {
                key: value[i : i + 1] if key != "x" else type(value)(value.data[i : i + 1], "image")
                for key, value in given.items()
            }
        )
        losses.append(term(one)[0])
    grad = torch.autograd.grad(losses[0], pixels)[0]
    assert grad[0].any() and not grad[1:].any()
    torch.testing.assert_close(torch.stack(losses).sum(), term(step)[0], atol=1e-4, rtol=1e-4)
    part.train()
    part.training_step(batch()).backward()
    assert all(p.grad is not None for p in part.parameters())


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="'small' or 'large'"):
        module(**SELFIE | {"tokenizer": SELFIE["tokenizer"] | {"stem": "huge"}})
    with pytest.raises(ConfigError, match="works with encoders that accept sequence"):
        module(**MP3 | {"encoder": {"_target_": "encoder/beit", "dim": 32, "depth": 1, "heads": 4}})
    plan = type("Plan", (), {"specs": {"x": TokenSpec(5, 1)}})
    with pytest.raises(ValueError, match="equally many tokens"):
        Position(plan, "x")
    part = module(**SELFIE | {"encoder": SELFIE["encoder"] | {"class_token": False}})
    with pytest.raises(ValueError, match="asks by the class token"):
        part.training_step(batch())
