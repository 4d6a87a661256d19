"""Randomized quantization of tokens, and of modalities whose samples are no pictures."""

from __future__ import annotations

import warnings

import pytest
import torch

import mmssl
from mmssl.draws import Draws
from mmssl.parts.quantize import QuantizeTokens
from mmssl.types import TokenSpec
from tests.small import tokens

SPEC = TokenSpec(5, 1)


def draws(count=3):
    return Draws.of(0, 0, torch.arange(count))


def test_each_value_of_a_sample_lies_in_its_own_region():
    valid = torch.ones(3, 40, dtype=torch.bool)
    valid[1, 30:] = False
    whole = tokens(3, 40, valid=valid)
    made = QuantizeTokens(SPEC, "set", 8, regions=4)(whole, None, draws()).raw
    stream = draws().named("quantize")
    cuts, inside = stream.named("cuts").uniform(5, 3), stream.named("inside").uniform(5, 4)
    for i in range(3):
        for v in range(5):
            value = whole.raw[i, :, v][valid[i]]
            low, high = float(value.min()), float(value.max())
            ends = [low, *sorted((low + (high - low) * cuts[i, v]).tolist()), high]
            for before, after in zip(value.tolist(), made[i, :, v][valid[i]].tolist(), strict=True):
                k = max(k for k in range(4) if before >= ends[k] - 1e-7)
                assert after == pytest.approx(ends[k] + float(inside[i, v, k]) * (ends[k + 1] - ends[k]), abs=1e-5)
    assert torch.equal(made[1, 30:], whole.raw[1, 30:])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="corruptor/quantize: regions has to be at least 1"):
        QuantizeTokens(SPEC, "set", 8, regions=0)
    with pytest.raises(ValueError, match="a packed batch is one row"):
        QuantizeTokens(SPEC, "graph", 8)(tokens(2, 3).pack(), None, draws(2))


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("audio/simclr", "views.a=[{_target_: view/resample, rate: 8000},{_target_: view/part, share: [0.5, 1.0]},"
         "{_target_: view/quantize}]"),
        ("tabular/scarf", "corruptor={_target_: corruptor/quantize}"),
    ],
)  # fmt: skip
def test_other_modalities_are_quantized_by_an_override(recipe, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, data = mmssl.build(
            recipe, ["data=sample", "data.batch_size=4", "encoder.depth=1", "encoder.dim=32", said]
        )
    module.train()
    loss = module.training_step(data.batch([(0, i) for i in range(4)]))
    loss.backward()
    assert torch.isfinite(loss)
