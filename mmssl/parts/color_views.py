"""Augmentations of colour, for images and clips: torchvision's functions, parameters drawn as pure functions of draws.

Every operation takes a uint8 image (c, h, w) and draws with one key, and returns a uint8 image. What needs colour is
skipped where there are not exactly three channels. What acts on the last two axes alone stands in `mmssl.parts.views`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mmssl.data.segments import unmoved
from mmssl.draws import Draws
from mmssl.parts.views import happens, probability
from mmssl.registry import register

# torchvision makes bytes of floats in [0, 1] by cutting off 255.999 times their value
_FULL = 255.999 / 255


def _per_channel(image: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a colour function of torchvision, which takes 1 or 3 channels only, to any number of channels."""
    if image.shape[0] in (1, 3):
        return change(image)
    return change(image.unsqueeze(1)).squeeze(1)


@register("view/color_jitter")
class ColorJitter:
    """Brightness, contrast, saturation and hue change in random order (SimCLR, Chen et al. 2020), with probability `p`.

    Saturation and hue exist for three channels only and are left out else. With neither one nor three channels,
    contrast is changed about the mean of each channel.

    Args:
        brightness: the factor lies in [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise.
        saturation: likewise.
        hue: the shift lies in [-hue, hue], in turns of the colour circle, at most 0.5.
        p: probability that anything changes.
    """

    def __init__(
        self,
        *,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        p: float = 0.8,
    ) -> None:
        if min(brightness, contrast, saturation) < 0 or not 0 <= hue <= 0.5:
            raise ValueError(
                "view/color_jitter: brightness, contrast and saturation have to be at least 0 and hue between 0 and "
                f"0.5 (got {brightness}, {contrast}, {saturation}, {hue})"
            )
        self.strength = (brightness, contrast, saturation, hue)
        self.p = probability(p, "view/color_jitter")

    segments = unmoved

    def parameters(self, draws: Draws) -> tuple[list[int], list[float]]:
        """The order in which the four changes come, and the factor of each."""
        draws = draws.named("color_jitter")
        unit = draws.named("factors").uniform(4)[0].tolist()
        low = [max(0.0, 1 - strength) for strength in self.strength[:3]] + [-self.strength[3]]
        high = [1 + strength for strength in self.strength[:3]] + [self.strength[3]]
        factors = [a + (b - a) * u for a, b, u in zip(low, high, unit, strict=True)]
        return draws.named("order").order(4)[0].tolist(), factors

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns the image with changed colours, (c, h, w)."""
        if not happens(draws.named("color_jitter"), self.p):
            return sample
        order, factors = self.parameters(draws)
        change = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, _hue)
        for i in order:
            if self.strength[i] == 0 or (i >= 2 and sample.shape[0] != 3):
                continue
            sample = _per_channel(sample, lambda image, i=i: change[i](image, factors[i]))
        return sample


def _hue(image: Tensor, turn: float) -> Tensor:
    """The hue moved along the colour circle: torchvision's `adjust_hue` in a third of its time.

    A channel is v - c * clamp(min(k, 4 - k), 0, 1) with k = (n + h) mod 6, where v is the largest value, c what it is
    above the smallest, h the hue in sixths of a turn, and n = 5, 3, 1 for red, green and blue.

    Args:
        image: uint8 (3, h, w).
        turn: in turns.
    """
    red, green, blue = channels = image.float().unbind(0)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp(min=1.0).reciprocal_()  # without chroma there is no hue, and the differences are 0
    hue = torch.where(
        value == red, (green - blue) * scale,
        torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    ).add_(6 * turn)  # fmt: skip
    moved = torch.empty_like(image)
    for place, n in zip(range(len(channels)), (5, 3, 1), strict=True):
        k = (hue + n).remainder_(6)
        share = torch.minimum(k, 4 - k).clamp_(0, 1)
        moved[place] = torch.addcmul(value, chroma, share, value=-1).mul_(_FULL)
    return moved


@register("view/grayscale")
class Grayscale:
    """Three channels all become their luminance, with probability `p`; other images stay as they are."""

    def __init__(self, *, p: float = 0.2) -> None:
        self.p = probability(p, "view/grayscale")

    segments = unmoved

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns an image of as many channels as before, (c, h, w)."""
        if sample.shape[0] != 3 or not happens(draws.named("grayscale"), self.p):
            return sample
        return F.rgb_to_grayscale(sample, num_output_channels=3)
