"""Image augmentations: torchvision's functions with parameters drawn as pure functions of (seed, epoch, sample).

Every operation takes a uint8 image (c, h, w) and draws with one key, and returns a uint8 image. What needs colour is
skipped where there are not exactly three channels; everything else works on any number of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mmssl.draws import Draws
from mmssl.registry import register, suggest

_MODES = {mode.value: mode for mode in InterpolationMode}


def _mode(interpolation: str) -> InterpolationMode:
    if interpolation not in _MODES:
        raise ValueError(f"interpolation: unknown {interpolation!r}{suggest(interpolation, _MODES)}")
    return _MODES[interpolation]


def _happens(draws: Draws, p: float) -> bool:
    return p >= 1 or float(draws.named("happens").uniform(1)) < p


def _probability(p: float, view: str) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"{view}: p has to be between 0 and 1 (got {p})")
    return p


def _range(value: Sequence[float], name: str) -> tuple[float, float]:
    low, high = value
    if not 0 < low <= high:
        raise ValueError(f"{name} has to be two positive numbers in ascending order (got {list(value)})")
    return low, high


def _per_channel(image: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a colour function of torchvision, which takes 1 or 3 channels only, to any number of channels."""
    if image.shape[0] in (1, 3):
        return change(image)
    return change(image.unsqueeze(1)).squeeze(1)


@register("view/random_resized_crop")
class RandomResizedCrop:
    """A random part of the image, resized to a square (Szegedy et al., Going Deeper with Convolutions, 2015).

    The algorithm is torchvision's: ten tries of area and aspect ratio, then the largest central part whose ratio is
    allowed. Resizing is antialiased.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest share of the image's area; 0.2 to 1 as in MAE and MoCo v3.
        ratio: smallest and largest width / height; drawn uniformly in its logarithm.
        interpolation: nearest, bilinear or bicubic.
    """

    def __init__(
        self,
        *,
        size: int,
        scale: Sequence[float] = (0.2, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bicubic",
    ) -> None:
        self.size = size
        self.scale = _range(scale, "view/random_resized_crop: scale")
        self.ratio = _range(ratio, "view/random_resized_crop: ratio")
        self.interpolation = _mode(interpolation)

    def box(self, height: int, width: int, draws: Draws) -> tuple[int, int, int, int]:
        """The part taken of an image of this size: top, left, height, width in pixels."""
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area_draw, ratio_draw, top_draw, left_draw in draws.named("crop").uniform(10, 4)[0].tolist():
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * area_draw)
            ratio = math.exp(log_low + (log_high - log_low) * ratio_draw)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w
        return self._central(height, width)

    def _central(self, height: int, width: int) -> tuple[int, int, int, int]:
        if width / height < self.ratio[0]:
            w, h = width, round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w, h = round(height * self.ratio[1]), height
        else:
            w, h = width, height
        return (height - h) // 2, (width - w) // 2, h, w

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (c, size, size)."""
        top, left, height, width = self.box(sample.shape[1], sample.shape[2], draws)
        size = [self.size, self.size]
        return F.resized_crop(sample, top, left, height, width, size, interpolation=self.interpolation, antialias=True)


@register("view/flip")
class Flip:
    """Left and right change places, with probability `p`."""

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = _probability(p, "view/flip")

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns the image, perhaps flipped, (c, h, w)."""
        return F.horizontal_flip(sample) if _happens(draws.named("flip"), self.p) else sample


@register("view/resize")
class Resize:
    """The short side becomes `size` pixels, the aspect ratio stays. Antialiased; nothing is drawn.

    Args:
        size: length of the short side in pixels.
        interpolation: nearest, bilinear or bicubic.
    """

    def __init__(self, *, size: int, interpolation: str = "bicubic") -> None:
        self.size = size
        self.interpolation = _mode(interpolation)

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns the resized image (c, h', w')."""
        return F.resize(sample, [self.size], interpolation=self.interpolation, antialias=True)


@register("view/center_crop")
class CenterCrop:
    """The central square of `size` pixels, padded with zeros where the image is smaller. Nothing is drawn."""

    def __init__(self, *, size: int) -> None:
        self.size = size

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (c, size, size)."""
        return F.center_crop(sample, [self.size, self.size])


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
        self.p = _probability(p, "view/color_jitter")

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
        if not _happens(draws.named("color_jitter"), self.p):
            return sample
        order, factors = self.parameters(draws)
        change = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        for i in order:
            if self.strength[i] == 0 or (i >= 2 and sample.shape[0] != 3):
                continue
            sample = _per_channel(sample, lambda image, i=i: change[i](image, factors[i]))
        return sample


@register("view/grayscale")
class Grayscale:
    """Three channels all become their luminance, with probability `p`; other images stay as they are."""

    def __init__(self, *, p: float = 0.2) -> None:
        self.p = _probability(p, "view/grayscale")

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns an image of as many channels as before, (c, h, w)."""
        if sample.shape[0] != 3 or not _happens(draws.named("grayscale"), self.p):
            return sample
        return F.rgb_to_grayscale(sample, num_output_channels=3)


@register("view/gaussian_blur")
class GaussianBlur:
    """A Gaussian blur of random width (SimCLR, Chen et al. 2020), with probability `p`.

    Args:
        kernel: odd side of the kernel in pixels; None takes a tenth of the short side, as SimCLR does.
        sigma: smallest and largest standard deviation in pixels.
        p: probability of blurring.
    """

    def __init__(self, *, kernel: int | None = None, sigma: Sequence[float] = (0.1, 2.0), p: float = 0.5) -> None:
        if kernel is not None and (kernel < 1 or kernel % 2 == 0):
            raise ValueError(f"view/gaussian_blur: kernel has to be odd and positive (got {kernel}); try {kernel + 1}")
        self.kernel = kernel
        self.sigma = _range(sigma, "view/gaussian_blur: sigma")
        self.p = _probability(p, "view/gaussian_blur")

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns the image, perhaps blurred, (c, h, w)."""
        draws = draws.named("gaussian_blur")
        if not _happens(draws, self.p):
            return sample
        short = min(sample.shape[1:])
        # Padding reflects, so a kernel may reach at most short - 1 pixels to each side.
        kernel = self.kernel or max(3, short // 10 // 2 * 2 + 1)
        kernel = min(kernel, 2 * short - 1)
        sigma = float(draws.named("sigma").uniform(1, low=self.sigma[0], high=self.sigma[1]))
        return F.gaussian_blur(sample, [kernel, kernel], [sigma, sigma])


@register("view/solarize")
class Solarize:
    """Values of at least `threshold` are inverted (BYOL, Grill et al. 2020), with probability `p`."""

    def __init__(self, *, threshold: int = 128, p: float = 0.2) -> None:
        self.threshold = threshold
        self.p = _probability(p, "view/solarize")

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns the image, perhaps solarized, (c, h, w)."""
        if not _happens(draws.named("solarize"), self.p):
            return sample
        return torch.where(sample >= self.threshold, 255 - sample, sample)
