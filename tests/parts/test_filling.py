"""A2MIM's corruption: the mean colour, and a mask token on top of it."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.masks import Mask
from mmssl.nn.patches import cut, fold
from mmssl.parts.corruptors import Token
from mmssl.parts.filling import Fill, focal_l1
from mmssl.types import TokenSpec
from tests.small import PIXELS, batch, images, module, tokens

SPEC = TokenSpec(192, 2, (4, 4), (8, 8), 3)
BEIT = {"_target_": "encoder/beit", "dim": 32, "depth": 2, "heads": 4}
L1 = PIXELS | {
    "predictor": {"_target_": "predictor/linear"}, "target": {"_target_": "target/raw"}, "loss": {"_target_": "loss/l1"},
}  # fmt: skip
WHOLE = {"_target_": "term/whole", "target": {"_target_": "target/raw"}, "loss": {"_target_": "whole/focal_spectrum"}}


def draws():
    return Draws.of(0, 0, torch.arange(2))


def both(first, second):
    return {"_target_": "corruptor/both", "first": first, "second": second}


def made(**changes):
    return module(encoder=BEIT, masker={"_target_": "masker/units"}, **changes)


def test_hidden_pixels_are_the_mean_colour():
    image, hidden = images(2), torch.arange(16).expand(2, 16) % 3 == 1
    whole = tokens(2, 16, grid=(4, 4)).but(raw=cut(image, (8, 8)))
    part = Fill(SPEC, "full", 8)
    found = part(whole, Mask(~hidden, hidden.unsqueeze(1)), draws()).raw.reshape(2, 16, 64, 3)
    for i in range(2):
        for place in range(16):
            expected = image[i].mean((1, 2)).expand(64, 3) if hidden[i, place] else whole.raw[i, place].reshape(64, 3)
            torch.testing.assert_close(found[i, place], expected)
    row = torch.tensor([1, 0, 1])
    several = part(whole, Mask(~hidden[:1].expand(3, 16), hidden[:1].expand(3, 1, 16), row), draws()).raw
    torch.testing.assert_close(several[1], found[0].reshape(16, 192))


def test_a_token_may_be_added():
    x, hidden = tokens(2, 4, 5).but(x=torch.randn(2, 4, 8)), torch.tensor([[True, False, True, False]] * 2)
    part = Token(SPEC, "full", 8, add=True)
    found = part(x, Mask(~hidden, hidden.unsqueeze(1)), draws()).x
    torch.testing.assert_close(found, x.x + hidden.unsqueeze(-1) * part.mask_token)


def test_both_act_in_turn():
    part = made(
        corruptor=both({"_target_": "corruptor/fill"}, {"_target_": "corruptor/token", "add": True}),
        objective={"pixels": L1},
    )
    look = part.begin(batch())["x"]
    corruptor = part.corruptors["x"]
    filled = corruptor.first(look.tokens, look.mask, look.draws)
    token = look.mask.hidden.unsqueeze(-1) * corruptor.second.mask_token
    torch.testing.assert_close(look.prepared("seen").x, part.networks["main"].embed(filled).x + token)


def test_with_tokens_in_place_it_is_simmim():
    torch.manual_seed(0)
    simmim = made(corruptor={"_target_": "corruptor/token"}, objective={"pixels": L1})
    filled = made(corruptor=both({"_target_": "corruptor/fill"}, {"_target_": "corruptor/token"}), objective={
        "pixels": L1, "frequencies": WHOLE | {"of": "pixels", "weight": 0.0},
    })  # fmt: skip
    state = {key.replace("corruptors.x.", "corruptors.x.second."): value for key, value in simmim.state_dict().items()}
    filled.load_state_dict(state)
    for part in (simmim, filled):
        part.eval()
    torch.testing.assert_close(simmim.training_step(batch()), filled.training_step(batch()))


def test_the_predictor_of_another_term_learns_from_both():
    part = made(
        corruptor={"_target_": "corruptor/token"}, objective={"pixels": L1, "frequencies": WHOLE | {"of": "pixels"}}
    )
    part.training_step(batch()).backward()
    assert all(p.grad is not None for p in part.parameters())
    assert not list(part.objective["frequencies"].parameters())


RESNET = {
    "tokenizer": {"_target_": "tokenizer/image", "size": 64, "patch": 32},
    "encoder": {"_target_": "encoder/inner_token", "name": "test_resnet"}, "masker": {"_target_": "masker/random", "ratio": 0.5},
    "corruptor": {"_target_": "corruptor/fill", "mark": True}, "objective": {"pixels": L1 | {"loss": {"_target_": "loss/focal_l1"}}},
}  # fmt: skip


def test_a_cnn_has_its_token_before_the_last_stage():
    part = module(**RESNET).eval()
    given = batch()
    given["x"] = type(given["x"])(images(4, 64), "image")
    look, encoder = part.begin(given)["x"], part.networks["main"].encoder
    filled = look.prepared("seen")
    assert torch.equal(filled.valid, look.mask.visible)
    model, x = encoder.model, fold(filled.raw, (2, 2), (32, 32))
    x = model.layer3(model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(x)))))))
    hidden = (~look.mask.visible).reshape(4, 1, 2, 2).float()
    hidden = hidden.repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = x * (1 - hidden) + 1e-6 * (x * hidden) + encoder.mask_token * hidden
    torch.testing.assert_close(look.seen.x, model.layer4(x).flatten(2).mT, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        look.network.encode(look.tokens).x, model.forward_features(images_of(look)).flatten(2).mT
    )
    assert not model.layer4._forward_pre_hooks
    part.train()
    part.training_step(given).backward()
    assert all(p.grad is not None for p in part.parameters())


def images_of(look):
    return fold(look.tokens.raw, (2, 2), (32, 32))


def test_large_errors_count_most():
    prediction, target = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, -1.0]])
    expected = sum(e * (2 / (1 + math.exp(-0.2 * e)) - 1) for e in (1.0, 4.0)) / 2
    assert float(focal_l1(prediction, target)) == pytest.approx(expected)


def test_bad_input_is_refused():
    token = {"_target_": "corruptor/token"}
    for terms, match in (
        ({"pixels": L1, "f": WHOLE | {"of": "pixel"}}, "did you mean 'pixels'"),
        ({"pixels": L1, "f": WHOLE}, "a predictor of its own"),
    ):
        with pytest.raises(ConfigError, match=match):
            made(corruptor=token, objective=terms)
    with pytest.raises(ConfigError, match="the first acts on tokens"):
        made(corruptor=both(token, {"_target_": "corruptor/fill"}))
    with pytest.raises(ValueError, match="needs tokens with channels"):
        Fill(TokenSpec(5, 1), "full", 8)
