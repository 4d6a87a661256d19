"""Randomized quantization against a plain loop over values."""

from __future__ import annotations

import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.audio.waves import Wave
from mmssl.parts.quantize import Quantize


def draws(sample=0):
    return Draws.of(0, 0, torch.tensor([sample]))


def by_loop(data, regions, stream):
    """One value after the other: the region it lies in, and what that became."""
    stream = stream.named("quantize")
    cuts, inside = (
        stream.named("cuts").uniform(len(data), regions - 1)[0],
        stream.named("inside").uniform(len(data), regions)[0],
    )
    out = torch.empty_like(data)
    for c, channel in enumerate(data):
        low, high = float(channel.min()), float(channel.max())
        ends = [low, *sorted(low + (high - low) * float(u) for u in cuts[c]), high]
        for place, value in enumerate(channel.flatten().tolist()):
            region = max(k for k in range(regions) if value >= ends[k])
            out[c].view(-1)[place] = ends[region] + float(inside[c, region]) * (ends[region + 1] - ends[region])
    return out


@pytest.mark.parametrize("regions", [1, 3, 8])
def test_every_value_becomes_that_of_its_region(regions):
    data = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(regions))
    torch.testing.assert_close(Quantize(regions=regions)(data, draws(4)), by_loop(data, regions, draws(4)))


def test_few_values_in_the_same_order_and_channels_of_their_own():
    data = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data[1] = data[0]
    made = Quantize()(data, draws(1))
    assert made.dtype == torch.uint8 and made.shape == data.shape
    assert all(2 < len(channel.unique()) <= 8 for channel in made)
    order = data[0].flatten().argsort(stable=True)
    assert (made[0].flatten()[order].int().diff() >= 0).all()
    assert not torch.equal(made[0], made[1])
    assert made.amin() >= data.amin() and made.amax() <= data.amax()


def test_recordings_and_chances():
    wave = Wave(torch.randn(1, 500, generator=torch.Generator().manual_seed(0)), 8000)
    assert len(Quantize(regions=4)(wave, draws()).data.unique()) <= 4
    changed = [Quantize(p=0.3)(wave, draws(i)) is not wave for i in range(500)]
    assert 110 < sum(changed) < 190  # 3.9 standard deviations
    same = torch.full((2, 6), 3.0)
    assert torch.equal(Quantize()(same, draws()), same)
    with pytest.raises(ValueError, match="regions has to be at least 1"):
        Quantize(regions=0)
