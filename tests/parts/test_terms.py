"""Terms: several masks and blocks per sample, missing values, and terms that need no mask."""

from __future__ import annotations

import pytest
import torch

from mmssl.masks import Mask
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
