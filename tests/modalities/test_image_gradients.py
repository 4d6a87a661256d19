"""Gradients of images as a second sensor: numpy's differences are the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.image.views import Gradients
from mmssl.types import View
from tests.small import module

DRAWS = Draws.of(0, 0, torch.tensor([0]))


def noise(channels, height=7, width=9):
    return torch.randint(0, 256, (channels, height, width), generator=torch.Generator().manual_seed(channels)).to(
        torch.uint8
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_gradients_are_central_differences_of_luminance(channels):
    image = noise(channels)
    found = Gradients()(image, DRAWS)
    assert found.dtype == torch.uint8 and found.shape == (2, 7, 9)
    weights = np.array([0.2989, 0.587, 0.114]) if channels == 3 else np.full(channels, 1 / channels)
    light = np.tensordot(weights, image.numpy().astype(float), 1)
    down, across = np.gradient(light)  # inside, np.gradient is (next - previous) / 2
    inside = (slice(1, -1), slice(1, -1))
    for plane, reference in zip(found.numpy(), (across, down), strict=True):
        assert np.abs(plane[inside] - 127.5 - reference[inside]).max() <= 0.5 + 1e-3


def test_gradients_at_edges_and_extremes():
    step = torch.zeros(1, 4, 4, dtype=torch.uint8)
    step[:, :, 2:] = 255
    across, down = Gradients()(step, DRAWS)
    assert across[0].tolist() == [128, 255, 255, 128] and (down == 128).all()
    assert Gradients()(255 - step, DRAWS)[0][0].tolist() == [128, 0, 0, 128]
    ramp = (torch.arange(4, dtype=torch.uint8) * 10).view(1, 4, 1).expand(1, 4, 4)
    assert Gradients()(ramp, DRAWS)[1][:, 0].tolist() == [132, 138, 138, 132]  # at edges one pixel is repeated


def test_a_tokenizer_refuses_other_channels():
    with pytest.raises(ValueError, match=r"made for 3 channels, but the view has 1.*streams\.NAME\.facts"):
        module().networks["main"](View(torch.zeros(2, 1, 32, 32), "image"))
