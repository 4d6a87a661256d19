"""Augmentations of colour, for images and clips: torchvision's results, parameters drawn as pure functions of draws.

Every operation takes a uint8 image (c, h, w) and draws with one key, and returns a uint8 image. What needs colour is
skipped where there are not exactly three channels. What acts on the last two axes alone stands in `mmssl.parts.views`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.data.segments import unmoved
from mmssl.draws import Draws
from mmssl.parts.views import as_bytes, as_floats, happens, probability
from mmssl.registry import register

# torchvision makes bytes of floats in [0, 1] by cutting off 255.999 times their value
_FULL = 255.999 / 255


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
        image, change = as_floats(sample), (_brightness, _contrast, _saturation, _hue)
        for i in order:
            if self.strength[i] > 0 and (i < 2 or len(image) == 3):
                change[i](image, factors[i])
        return as_bytes(image)


# Each changes an image (c, h, w) in place, whole numbers from 0 to 255 in float32, and leaves whole numbers, as
# torchvision's functions do with bytes; bytes themselves take several times as long.


def _brightness(image: Tensor, factor: float) -> None:
    image.mul_(factor).clamp_(max=255).floor_()


def _contrast(image: Tensor, factor: float) -> None:
    light = _luminance(image) if len(image) == 3 else image
    _blend(image, light.mean((1, 2), keepdim=True), factor)


def _saturation(image: Tensor, factor: float) -> None:
    _blend(image, _luminance(image), factor)


def _blend(image: Tensor, other: Tensor, factor: float) -> None:
    image.mul_(factor).add_(other, alpha=1 - factor).clamp_(0, 255).floor_()


def _luminance(image: Tensor) -> Tensor:
    """The luminance of three channels, (1, h, w), cut off as torchvision does."""
    red, green, blue = image.split(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _hue(image: Tensor, turn: float) -> None:
    """The hue moved along the colour circle: torchvision's `adjust_hue`, much faster, since nothing branches.

    The hue in sixths of a turn is that of red at 0, green at 2 and blue at -2. Its distance from red is
    (largest - red + green + blue - 2 smallest) / chroma, positive where green exceeds blue. A channel is as large as
    the largest one within a sixth of its own place, as small as the smallest one beyond two, and linear between.

    Args:
        image: (3, h, w), changed in place.
        turn: in turns.
    """
    red, green, blue = image.unbind(0)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least  # where it is 0 there is no hue, and all differences are 0
    hue = value.sub_(red).add_(green).add_(blue).sub_(least, alpha=2).div_(chroma.clamp(min=1))
    hue = hue.copysign_(green - blue).add_(6 * turn)
    hue.sub_(torch.round(hue / 6), alpha=6)
    least.mul_(_FULL)
    chroma.mul_(_FULL)
    # of blue and green how far the hue is from the place opposite, of red from its own
    shares = (hue + torch.tensor([0.0, 1.0, -1.0]).view(3, 1, 1)).abs_().sub_(1)
    shares[0].neg_().add_(1)
    torch.addcmul(least, chroma, shares.clamp_(0, 1), out=image).floor_()


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
        return as_bytes(_luminance(as_floats(sample))).expand(3, -1, -1)
