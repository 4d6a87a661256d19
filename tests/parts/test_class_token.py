"""The class token as one more token of each row (dBOT, DMAE), a second look's features, and losses that others read."""

from __future__ import annotations

import pytest
import torch

from mmssl.config.compose import ConfigError
from tests.small import DECODER, PIXELS, VIT, batch, module

FEATURES = {
    "_target_": "term/predict",
    "class_token": True,
    "predictor": DECODER,
    "target": {"_target_": "target/initial"},
    "loss": {"_target_": "loss/mse"},
}


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_decoder_answers_at_the_class_token_as_a_dense_one_does(depth):
    part = module(objective={"features": FEATURES | {"predictor": DECODER | {"depth": depth}}})
    step, term = part.begin(batch()), part.objective["features"]
    total, weight = term(step)
    assert float(weight) == float(term.count(step)) == 4 * (12 + 1)  # a quarter of 16 tokens is seen

    look, decoder = step["x"], term.predictor
    seen, (index, _) = look.seen, look.mask.target_index
    query = look.tokens.take(index[:, 0])
    x = torch.cat([decoder.embed(torch.cat([seen.prefix, seen.x], 1)), decoder.mask_token.expand(4, 12, -1)], 1)
    place = torch.cat([torch.zeros(4, 1, 32), decoder.position(seen), decoder.position(query)], 1)
    x = x + place
    for block in decoder.blocks:
        x = block(x)
    answer = decoder.head(decoder.norm(torch.cat([x[:, :1], x[:, -12:]], 1)))
    whole = term.target.network.encode(look.tokens)
    target = torch.cat([whole.prefix, torch.stack([whole.x[i, index[i, 0]] for i in range(4)])], 1)
    torch.testing.assert_close(total, (answer - target).square().mean(-1).sum(), rtol=1e-5, atol=1e-5)
    ((_, alone),) = term.predict(step)
    torch.testing.assert_close(alone, answer[:, 1:], rtol=1e-5, atol=1e-6)


def test_without_a_class_token_it_is_said():
    part = module(encoder=VIT | {"class_token": False}, objective={"features": FEATURES})
    with pytest.raises(ValueError, match=r"class_token=true.*encoder\.class_token"):
        part.objective["features"](part.begin(batch()))


def test_a_target_that_says_nothing_there_is_refused():
    with pytest.raises(ConfigError, match=r"class_token=true: Raw"):
        module(objective={"pixels": PIXELS | {"class_token": True}})


def test_a_predictor_gets_the_features_of_its_memory():
    part = module(
        views={"x": [], "y": []}, looks={"y": {"masker": None, "corruptor": None}},
        objective={"pixels": PIXELS | {"memory": "y"}},
    )  # fmt: skip
    term, step, got = part.objective["pixels"], part.begin(batch(names=("x", "y"))), []
    decoder = term.predictor
    term._modules["predictor"] = None
    term.__dict__["predictor"] = lambda seen, query, memory: got.append(memory) or decoder(seen, query)
    term(step)
    assert got[0].x.shape == (4, 16, 32) and got[0] is step["y"].seen


def test_losses_of_tokens_are_there_for_later_terms():
    part = module(objective={"pixels": PIXELS, "other": PIXELS | {"at": ["hidden", "visible"]}})
    step = part.begin(batch())
    total, _ = part.objective["pixels"](step)
    ((query, losses),) = step.losses["pixels", "x"]
    assert losses.shape == query.index.shape == (4, 12) and not losses.requires_grad
    torch.testing.assert_close(losses.sum(), total)
    part.objective["other"](step)
    assert [len(found.mT) for _, found in step.losses["other", "x"]] == [12, 4]
    assert step.terms is part.objective


def test_a_guide_with_weights_is_trained_and_asks_the_teacher():
    class Guide(torch.nn.Module):
        asks = ("taught",)

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, look):
            return self.scale * look.taught.x.mean(-1)

    from mmssl.module import SSLModule

    made = module()
    spec = made.looks["x"]
    spec.guide = Guide()
    part = SSLModule(dict(made.networks), {"x": spec}, {"pixels": lambda plan: made.objective["pixels"]}, made.optim, 4)
    assert "guides.x.scale" in dict(part.named_parameters()) and "taught" in spec.asked
    assert part.begin(batch())["x"].score.shape == (4, 16)
