"""A frozen network that guides and teaches: one pass a step, layers against timm's own, mixtures against sums."""

from __future__ import annotations

import pytest
import torch

from mmssl.config.compose import ConfigError
from mmssl.parts.frozen_layers import MixedLayers
from mmssl.types import TokenSpec
from tests.parts.test_attention import plain_attention
from tests.small import batch, module

NETWORK = {"_target_": "network/timm", "name": "test_vit", "pretrained": False}
ALIGN = {
    "guide": {"_target_": "guide/frozen_attention", "network": NETWORK},
    "masker": {"_target_": "masker/sampled", "ratio": 0.7},
    "objective": {
        "align": {
            "_target_": "term/predict", "at": "visible", "class_token": True, "weight": 2.0,
            "predictor": {"_target_": "predictor/layers", "last": 2}, "target": {"_target_": "target/guide", "last": 2},
            "loss": {"_target_": "loss/smooth_l1", "beta": 1.0},
        }
    },
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:network/timm")


def test_one_pass_guides_and_teaches():
    part = module(**ALIGN)
    step, term, guide = part.begin(batch()), part.objective["align"], part.guides["x"]
    network, calls = guide._network[0], []
    network.encoder.register_forward_hook(lambda *_: calls.append(1))
    total, count = term(step)
    assert len(calls) == 1 and int(count) == int(term.count(step)) == 4 * (1 + 4)  # int(16 * 0.3) tokens are seen

    look, encoder = step["x"], network.encoder
    x = network.embed(network.tokenizer(look.views[0])).x + encoder.pos_embed[:, 1:]
    x = torch.cat([(encoder.prefix_tokens[0] + encoder.pos_embed[:, :1]).expand(4, -1, -1), x], 1)
    torch.testing.assert_close(look.score, plain_attention(encoder, x)[:, 1:], rtol=1e-4, atol=1e-6)
    index = look.mask.visible_index[0]
    wanted, answer = [], []
    for block in encoder.blocks:
        x = block(x)
        rows = torch.cat([x[:, :1], x[:, 1:].gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))], 1)
        wanted.append((rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, correction=0, keepdim=True) + 1e-5).sqrt())
    blocks = [look.seen.taps[f"block.{i}"] for i in range(2)]
    for layer, head in enumerate(term.predictor.heads):
        answer.append(head(blocks[layer] + 0.01 * sum(blocks)))
    errors = [(a - b).abs() for a, b in zip(answer, wanted[-2:], strict=True)]
    loss = [torch.where(e < 1, e.square() / 2, e - 0.5).mean() / 2 for e in errors]
    torch.testing.assert_close(total / count, sum(loss), rtol=1e-4, atol=1e-5)
    part.training_step(batch()).backward()
    assert term.predictor.mix.grad.abs().min() > 0 and not any("guides" in name for name in part.state_dict())


def test_only_the_last_layers_are_answered_for_and_all_are_mixed():
    one = ALIGN["objective"]["align"] | {"predictor": {"_target_": "predictor/layers", "last": 1}}
    part = module(**ALIGN | {"objective": {"align": one | {"target": {"_target_": "target/guide", "last": 1}}}})
    mix = part.objective["align"].predictor.mix
    torch.testing.assert_close(mix, torch.tensor([[0.01, 1.01]]))
    part.training_step(batch()).backward()
    assert mix.grad.abs().min() > 0 and part.objective["align"].predictor.taps == ("block.0", "block.1")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guide": None}, "has no such guide"),
        ({"guide": {"_target_": "guide/frozen_attention", "network": NETWORK, "layer": "qkv.77"}}, r"guide\.layer"),
        ({"objective": {"align": ALIGN["objective"]["align"] | {"target": {"_target_": "target/guide", "last": 99}}}},
         "number of the last blocks"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        module(**ALIGN | changes)


def test_layers_and_targets_are_as_many():
    with pytest.raises(ValueError, match=r"predictor\.last=2 does not divide"):
        MixedLayers(TokenSpec(raw=3, pos=2), 8, 7, ("embed", "block.0", "block.1"), last=2)
