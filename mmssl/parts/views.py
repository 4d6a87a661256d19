"""Augmentations of the last two axes: torchvision's functions, parameters drawn as pure functions of the draws.

Every operation takes a uint8 picture (c, h, w) or a clip (t, c, h, w) and draws with one key, so that all frames of a
clip are treated alike, and returns the same kind. Any number of channels will do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mmssl.data.segments import unmoved
from mmssl.draws import Draws
from mmssl.registry import register, suggest

_MODES = {mode.value: mode for mode in InterpolationMode}
_NEAREST = InterpolationMode.NEAREST_EXACT  # the pixel whose centre is nearest, where `nearest` is off by half of one


def interpolation_mode(name: str) -> InterpolationMode:
    """torchvision's mode of this name; ValueError for an unknown one."""
    if name not in _MODES:
        raise ValueError(f"interpolation: unknown {name!r}{suggest(name, _MODES)}")
    return _MODES[name]


def happens(draws: Draws, p: float) -> bool:
    """Whether an operation of probability `p` happens to the one sample of these draws."""
    return p >= 1 or float(draws.named("happens").uniform(1)) < p


def probability(p: float, view: str) -> float:
    """`p`; ValueError that names the view where it is no probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"{view}: p has to be between 0 and 1 (got {p})")
    return p


def positive_range(value: Sequence[float], name: str) -> tuple[float, float]:
    """Two positive numbers in ascending order; ValueError else."""
    low, high = value
    if not 0 < low <= high:
        raise ValueError(f"{name} has to be two positive numbers in ascending order (got {list(value)})")
    return low, high


def as_floats(sample: Tensor) -> Tensor:
    """Values of bytes in float32, a copy whose channels lie apart in memory: on those a CPU is fastest."""
    return sample.contiguous().float()


def as_bytes(values: Tensor) -> Tensor:
    """Values from 0 to 255, cut off to whole numbers, as uint8: by way of int16, which takes a third of the time."""
    return values.to(torch.int16).to(torch.uint8)


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
        once: whether the first try is taken, its sides cut to those of the image (BYOL's own code, SiamMAE, CropMAE).
    """

    def __init__(
        self,
        *,
        size: int,
        scale: Sequence[float] = (0.2, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bicubic",
        once: bool = False,
    ) -> None:
        self.size, self.once = size, once
        self.scale = positive_range(scale, "view/random_resized_crop: scale")
        self.ratio = positive_range(ratio, "view/random_resized_crop: ratio")
        self.interpolation = interpolation_mode(interpolation)

    def box(self, height: int, width: int, draws: Draws) -> tuple[int, int, int, int]:
        """The part taken of an image of this size: top, left, height, width in pixels."""
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area_draw, ratio_draw, top_draw, left_draw in draws.named("crop").uniform(10, 4)[0].tolist():
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * area_draw)
            ratio = math.exp(log_low + (log_high - log_low) * ratio_draw)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if self.once:
                w, h = min(max(w, 1), width), min(max(h, 1), height)
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
        """Returns (..., c, size, size)."""
        top, left, height, width = self.box(sample.shape[-2], sample.shape[-1], draws)
        part = sample[..., top : top + height, left : left + width]
        # channels that lie together, as decoders give them, resizing leaves so (and is faster) only in a whole image
        if part.stride(-3) == 1 and part.dim() == 3:
            part = part.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return F.resize(part, [self.size, self.size], interpolation=self.interpolation, antialias=True)

    def segments(self, classes: Tensor, sample: Tensor, draws: Draws) -> Tensor:
        """Classes of pixels (h, w): those of the same part, (size, size), each of the pixel that lies nearest."""
        box, size = self.box(sample.shape[-2], sample.shape[-1], draws), [self.size, self.size]
        return F.resized_crop(classes[None], *box, size, interpolation=_NEAREST)[0]


@register("view/flip")
class Flip:
    """Left and right change places, with probability `p`."""

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = probability(p, "view/flip")

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns the image, perhaps flipped, (..., c, h, w)."""
        return F.horizontal_flip(sample) if happens(draws.named("flip"), self.p) else sample

    def segments(self, classes: Tensor, sample: Tensor, draws: Draws) -> Tensor:
        """Classes of pixels (h, w), flipped as the image is."""
        return self(classes, draws)


@register("view/resize")
class Resize:
    """The short side becomes `size` pixels, the aspect ratio stays. Antialiased; nothing is drawn.

    Args:
        size: length of the short side in pixels.
        interpolation: nearest, bilinear or bicubic.
    """

    def __init__(self, *, size: int, interpolation: str = "bicubic") -> None:
        self.size = size
        self.interpolation = interpolation_mode(interpolation)

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns the resized image (..., c, h', w')."""
        return F.resize(sample, [self.size], interpolation=self.interpolation, antialias=True)

    def segments(self, classes: Tensor, sample: Tensor, draws: Draws) -> Tensor:
        """Classes of pixels (h, w) resized to (h', w'), each of the pixel that lies nearest."""
        return F.resize(classes[None], [self.size], interpolation=_NEAREST)[0]


@register("view/center_crop")
class CenterCrop:
    """The central square of `size` pixels, padded with zeros where the image is smaller. Nothing is drawn."""

    def __init__(self, *, size: int) -> None:
        self.size = size

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (..., c, size, size)."""
        return F.center_crop(sample, [self.size, self.size])

    def segments(self, classes: Tensor, sample: Tensor, draws: Draws) -> Tensor:
        """Classes of pixels (h, w): those of the same square, (size, size), -1 where it is padded."""
        return F.center_crop(classes[None] + 1, [self.size, self.size])[0] - 1


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
        self.sigma = positive_range(sigma, "view/gaussian_blur: sigma")
        self.p = probability(p, "view/gaussian_blur")

    segments = unmoved

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns the image, perhaps blurred, (..., c, h, w)."""
        draws = draws.named("gaussian_blur")
        if not happens(draws, self.p):
            return sample
        short = min(sample.shape[-2:])
        # Padding reflects, so a kernel may reach at most short - 1 pixels to each side.
        kernel = self.kernel or max(3, short // 10 // 2 * 2 + 1)
        kernel = min(kernel, 2 * short - 1)
        sigma = float(draws.named("sigma").uniform(1, low=self.sigma[0], high=self.sigma[1]))
        return _blurred(sample, kernel // 2, sigma)


def _blurred(sample: Tensor, reach: int, sigma: float) -> Tensor:
    """The blur of torchvision's `gaussian_blur`, one axis after the other: a kernel of 23 is ten times as fast.

    Args:
        sample: uint8 (..., c, h, w).
        reach: pixels of the kernel to each side. Those beyond five deviations would not change any value.
        sigma: standard deviation in pixels.
    """
    reach = min(reach, math.ceil(5 * sigma))
    heights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(-reach, reach + 1)]
    weights = [height / sum(heights) for height in heights]
    image = as_floats(sample).reshape(-1, *sample.shape[-3:])
    image = torch.nn.functional.pad(image, (reach,) * 4, mode="reflect")
    for axis in (-1, -2):  # sums of shifted images: faster than torch's convolution of each channel
        side = image.shape[axis] - 2 * reach
        total = image.narrow(axis, 0, side) * weights[0]
        for i, weight in enumerate(weights[1:], 1):
            total.add_(image.narrow(axis, i, side), alpha=weight)
        image = total
    return as_bytes(image.round_().clamp_(0, 255)).reshape(sample.shape)


@register("view/solarize")
class Solarize:
    """Values of at least `threshold` are inverted (BYOL, Grill et al. 2020), with probability `p`."""

    def __init__(self, *, threshold: int = 128, p: float = 0.2) -> None:
        self.threshold = threshold
        self.p = probability(p, "view/solarize")

    segments = unmoved

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns the image, perhaps solarized, (..., c, h, w)."""
        if not happens(draws.named("solarize"), self.p):
            return sample
        return torch.where(sample >= self.threshold, 255 - sample, sample)
