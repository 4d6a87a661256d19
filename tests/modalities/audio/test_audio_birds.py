"""What Bird-MAE does to recordings: quiet padding, several others mixed in."""

from __future__ import annotations

import pytest
import torch

from mmssl.config.compose import compose
from mmssl.draws import Draws
from mmssl.modalities.audio.mixing import MixRecording
from mmssl.modalities.audio.tokenizer import SpectrogramTokenizer
from mmssl.modalities.audio.waves import Wave, Waves
from mmssl.types import View

FACTS = {"channels": 1, "mean": -7.2, "std": 4.43}


def test_a_recording_goes_on_as_quiet_as_it_was():
    data = torch.zeros(2, 1, 8000)
    generator = torch.Generator().manual_seed(0)
    data[0] = 0.2 * torch.randn(1, 8000, generator=generator)
    data[1, :, :3000] = 0.1 * torch.randn(1, 3000, generator=generator)
    view = View(Waves(data, (8000, 3000), 16000), "audio")
    made = {
        padding: SpectrogramTokenizer(FACTS, frames=64, patch=16, padding=padding)(view).raw.unflatten(1, (4, 8))
        for padding in ("content", "quiet")
    }
    banks = {key: raw.unflatten(-1, (16, 16)).transpose(2, 3).reshape(2, 64, 128) for key, raw in made.items()}
    for i, frames in enumerate((48, 17)):
        assert torch.equal(banks["quiet"][i, :frames], banks["content"][i, :frames])
        rest = banks["quiet"][i, frames:]
        torch.testing.assert_close(rest, banks["quiet"][i, :frames].min().expand_as(rest))
        torch.testing.assert_close(banks["content"][i, frames:], torch.full_like(rest, 7.2 / 8.86))
    with pytest.raises(
        ValueError, match=r"tokenizer\.padding has to be 'content', 'masked' or 'quiet' \(got 'silent'\)"
    ):
        SpectrogramTokenizer(FACTS, padding="silent")


class Tones:
    """Ten recordings, each of one value of its own."""

    def __len__(self):
        return 10

    def read(self, place):
        return Wave(torch.full((1, 50), 2.0**place), 100)


def test_several_recordings_are_mixed_in():
    part = MixRecording(decibels=(20.0, 20.0), p=1.0, most=3)
    part.fit(Tones())
    sample, found = Wave(torch.ones(1, 40), 100), []
    for i in range(60):
        mixed = part(sample, Draws.of(0, 0, torch.tensor([i])))
        found.append(round(float((mixed.data - 1).mean()) * 10))  # each of a hundredth of the power
        assert bool((mixed.data == mixed.data[0, 0]).all())
    assert set(found) == {1, 2, 3}
    with pytest.raises(ValueError, match="most has to be at least 1"):
        MixRecording(most=0)


def test_bird_mae_cuts_five_seconds_into_256_patches():
    tree = compose("audio/bird_mae", ["data=folder", "data.root=FOLDER"])
    said = {key: value for key, value in tree["tokenizer"].items() if key != "_target_"}
    tokenizer = SpectrogramTokenizer(FACTS, **said)
    made = tokenizer(View(torch.randn(1, 5 * 32000) * 0.1, "audio"))
    assert made.grid == (32, 8) and made.index.shape == (1, 256)
    assert tokenizer.filters.frames([5 * 32000]) == [498]
