"""Terms: several masks and blocks per sample, missing values, and terms that need no mask."""

from __future__ import annotations

import pytest
import torch

from mmssl.masks import Mask
from mmssl.types import View
from tests.small import CROSS, DECODER, PIXELS, batch, module

FIXED = {"_target_": "target/teacher"}


def test_several_target_blocks_each_get_a_pass_of_their_own():
    """I-JEPA's layout: k blocks per mask, each predicted alone."""
    part = module(objective={"pixels": PIXELS})
    targets = torch.zeros(4, 2, 16, dtype=torch.bool)
    targets[:, 0, [1, 2]] = targets[:, 1, [7, 8]] = True
    visible = torch.zeros(4, 16, dtype=torch.bool)
    visible[:, [0, 5, 10]] = True
    part.looks["x"].masker = lambda *_: Mask(visible, targets, None, 3, 2)
    term = part.objective["pixels"]
    query, prediction = term.predict(part.begin(batch()))[0]
    assert prediction.shape == (8, 2, 192) and query.index[:2].tolist() == [[1, 2], [7, 8]]
    for k in range(2):
        part.looks["x"].masker = lambda *_, k=k: Mask(visible, targets[:, k : k + 1], None, 3, 2)
        alone_query, alone = term.predict(part.begin(batch()))[0]
        torch.testing.assert_close(prediction[k::2], alone, rtol=1e-5, atol=1e-6)
        assert torch.equal(query.raw[k::2], alone_query.raw)


@pytest.mark.parametrize("predictor", [DECODER, CROSS])
@pytest.mark.parametrize("target", [PIXELS["target"], FIXED])
def test_several_masks_per_sample(predictor, target):
    """data2vec's layout: m masks per sample give the sum of m losses."""
    part = module(objective={"pixels": PIXELS | {"predictor": predictor, "target": target}})
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(8, 16, generator=generator).argsort(1)
    visible = order < 4
    row = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    part.looks["x"].masker = lambda *_: Mask(visible, ~visible.unsqueeze(1), row, 4, 12)
    total, weight = part.objective["pixels"](part.begin(batch()))
    assert float(weight) == 96
    parts = []
    for k in range(2):
        part.looks["x"].masker = lambda *_, k=k: Mask(visible[k::2], ~visible[k::2].unsqueeze(1), None, 4, 12)
        parts.append(part.objective["pixels"](part.begin(batch()))[0])
    torch.testing.assert_close(total, sum(parts), rtol=1e-5, atol=1e-5)


def test_given_values_alone_are_in_the_loss():
    part = module()
    step = part.begin(batch())
    given = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) < 0.6
    step["x"].__dict__["tokens"] = step["x"].tokens.but(given=given)
    total, weight = part.objective["pixels"](step)
    assert float(weight) == float((given & step["x"].mask.hidden).sum())
    query, prediction = part.objective["pixels"].predict(step)[0]
    error = part.objective["pixels"].loss(prediction, part.objective["pixels"].target(step["x"], query))
    torch.testing.assert_close(total, error[query.given].sum())


def test_all_tokens_with_several_masks_per_sample():
    part = module(
        objective={"pixels": PIXELS | {"at": "all", "predictor": {"_target_": "predictor/linear"}}},
        corruptor={"_target_": "corruptor/token"},
    )
    visible = torch.arange(16).expand(8, 16) % 4 == 0
    part.looks["x"].masker = lambda *_: Mask(
        visible, ~visible.unsqueeze(1), torch.arange(4).repeat_interleave(2), 4, 12
    )
    assert float(part.objective["pixels"](part.begin(batch()))[1]) == 128


def test_all_tokens_without_a_masker():
    part = module(masker=None, corruptor=None, objective={"pixels": PIXELS | {"at": "all", "predictor": {"_target_": "predictor/linear"}}})  # fmt: skip
    assert float(part.objective["pixels"](part.begin(batch()))[1]) == 64


def test_two_regions_share_one_decoder_pass():
    """ReMasker's layout: hidden and visible tokens answered together, each region averaged on its own."""
    part = module(objective={"pixels": PIXELS | {"at": ["hidden", "visible"]}}).double()
    given = batch()
    given["x"] = View(given["x"].data.double(), "image")
    term, step = part.objective["pixels"], part.begin(given)
    calls = []
    term.predictor.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    sums, counts = term(step)
    assert counts.tolist() == [48, 16] and len(calls) == 1
    look = step["x"]
    asked, _ = term.query(look, "hidden")
    decoder, seen = term.predictor, look.seen
    known = torch.cat([decoder.embed(seen.prefix), decoder.embed(seen.x) + decoder.position(seen)], 1)
    x = torch.cat([known, decoder.mask_token + decoder.position(asked)], 1)
    for block in decoder.blocks:
        x = block(x)
    answers = decoder.head(decoder.norm(x[:, 1:]))
    target = term.target(look, look.tokens)
    index = torch.cat([seen.index, asked.index], 1)
    error = (answers - target.gather(1, index.unsqueeze(-1).expand_as(answers))).square().mean(-1)
    torch.testing.assert_close(sums, torch.stack([error[:, 4:].sum(), error[:, :4].sum()]))
    torch.testing.assert_close(part.training_step(given), error[:, 4:].mean() + error[:, :4].mean())


def test_some_values_of_a_token_alone_are_in_the_loss():
    """TERA's layout: the loss is the mean over marked values of the tokens asked for."""
    head = {
        "predictor": {"_target_": "predictor/linear"},
        "loss": {"_target_": "loss/l1"},
        "target": {"_target_": "target/raw"},
    }
    part = module(objective={"pixels": PIXELS | head}, corruptor={"_target_": "corruptor/token"})
    elements = torch.rand(4, 16, 192, generator=torch.Generator().manual_seed(0)) < 0.2
    targets = (torch.arange(16) % 3 == 0).expand(4, 1, 16)
    visible = torch.ones(4, 16, dtype=torch.bool)
    part.looks["x"].masker = lambda *_: Mask(visible, targets, None, 16, 6, elements=elements)
    step = part.begin(batch())
    answer = part.objective["pixels"].predictor(step["x"].seen, step["x"].tokens)
    marked = elements & targets[:, 0].unsqueeze(-1)
    want = (answer - step["x"].tokens.raw).abs()[marked].mean()
    torch.testing.assert_close(part.training_step(batch()), want)


@pytest.mark.parametrize("at", [[], ["hidden", "hidden"], ["hidden", "there"]])
def test_regions_are_checked(at):
    with pytest.raises(ValueError, match="`at` has to be"):
        module(objective={"pixels": PIXELS | {"at": at}})


def test_a_batch_without_a_target_is_refused():
    part = module()
    none = torch.zeros(4, 16, dtype=torch.bool)
    part.looks["x"].masker = lambda *_: Mask(~none, none.unsqueeze(1), None, 16, 0)
    with pytest.raises(ValueError, match=r"look 'x': the masker asks for no token \(hidden\) in the whole batch"):
        part.training_step(batch())
