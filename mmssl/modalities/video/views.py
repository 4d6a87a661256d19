"""Views of videos: which frames make a clip, and VideoMAE's crop. What images share stands in `mmssl.parts.views`.

Numbers are drawn once per clip, so that all its frames are treated alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mmssl.data.source import BadSample
from mmssl.draws import Draws
from mmssl.modalities.video.clips import Clip
from mmssl.parts.views import interpolation_mode
from mmssl.registry import register


@register("view/clip")
class ClipView:
    """Some frames of a video, `stride` apart, from a random start (VideoMAE; MAE-ST with `rate`).

    Without `rate` the start is a whole number, uniform in [0, n - frames * stride], and frames that a short video does
    not reach repeat the last one reached. With it, `stride` counts frames of a video of that rate: the window is
    frames * stride * fps / rate source frames long, starts at a uniform real number in [0, n - window], and `frames`
    places are spread evenly over it, clamped and truncated.

    Several clips of a video: name several views that begin with `view/clip`, or set `data.repeats`. For evaluation at
    other places than the middle change `at`.

    Args:
        frames: number of frames.
        stride: steps between frames: 4 for Kinetics, 2 for Something-Something.
        rate: frames per second that `stride` counts in (MAE-ST: 30); None takes every video at its own rate.
        at: place of the window, from 0 (start of the video) to 1 (end), for evaluation; None draws it.
        short: what becomes of videos shorter than the window: `repeat` as above, or `skip`: they count as unreadable
            and are replaced and listed.
    """

    def __init__(
        self, *, frames: int = 16, stride: int = 4, rate: float | None = None, at: float | None = None,
        short: str = "repeat",
    ) -> None:  # fmt: skip
        if frames < 1 or stride < 1:
            raise ValueError(f"view/clip: frames and stride have to be at least 1 (got {frames} and {stride})")
        if rate is not None and rate <= 0:
            raise ValueError(f"view/clip: rate is in frames per second and has to be positive (got {rate})")
        if at is not None and not 0 <= at <= 1:
            raise ValueError(f"view/clip: at has to be between 0 (start) and 1 (end), or null to draw it (got {at})")
        if short not in ("repeat", "skip"):
            raise ValueError(f"view/clip: short has to be 'repeat' or 'skip' (got {short!r})")
        self.count, self.stride, self.rate, self.at, self.short = frames, stride, rate, at, short

    def places(self, total: int, fps: float, draws: Draws) -> list[int]:
        """The frames taken of a video of `total` frames.

        Raises:
            BadSample: where it is shorter than the window and short videos are skipped.
        """
        window = self.count * self.stride * (1.0 if self.rate is None else fps / self.rate)
        needed = (self.count - 1) * self.stride + 1 if self.rate is None else math.ceil(window)
        if self.short == "skip" and total < needed:
            raise BadSample(
                f"view/clip: the video has {total} frames, a clip of {self.count} with stride {self.stride} needs "
                f"{needed}; lower either, or set short=repeat"
            )
        place = float(draws.named("clip").uniform(1)) if self.at is None else self.at
        if self.rate is not None:
            start = place * max(total - window, 0.0)
            spread = torch.linspace(start, start + window - 1, self.count)
            return spread.clamp(0, total - 1).long().tolist()
        starts = max(total - int(window), 0)
        # drawn: one of so many whole starts; given: the middle of 0 and the last start is rounded down
        first = min(int(place * (starts + 1)), starts) if self.at is None else int(place * starts)
        last = first + (total - 1 - first) // self.stride * self.stride
        return [min(first + i * self.stride, last) for i in range(self.count)]

    def __call__(self, sample: Clip | Tensor, draws: Draws) -> Tensor:
        """Returns uint8 (frames, c, h, w) of a lazy clip, or of decoded frames."""
        if isinstance(sample, Tensor):
            return sample[self.places(len(sample), self.rate or 1.0, draws)]
        return sample.frames(self.places(sample.count, sample.fps, draws))


@register("view/multiscale_crop")
class MultiscaleCrop:
    """A crop at one of 13 fixed places in one of a few sizes, resized to a square (TSN, Wang et al. 2016; VideoMAE).

    Width and height are each int(short side * scale), their scales at most one step apart. The places are the corners,
    the middle, the middles of the sides and the four quarter points, in steps of a quarter of what is left over.

    Args:
        size: side of the result in pixels; a crop within 2 pixels of it is taken as `size`.
        scales: shares of the short side, in descending order.
        interpolation: nearest, bilinear or bicubic; antialiased.
    """

    def __init__(
        self, *, size: int, scales: Sequence[float] = (1.0, 0.875, 0.75, 0.66), interpolation: str = "bilinear"
    ) -> None:
        if not scales or not all(0 < scale <= 1 for scale in scales):
            raise ValueError(f"view/multiscale_crop: scales have to lie in (0, 1] (got {list(scales)})")
        self.size, self.scales = size, tuple(scales)
        self.interpolation = interpolation_mode(interpolation)

    def sides(self, height: int, width: int) -> list[tuple[int, int]]:
        """Every height and width that a crop of a picture of this size may have."""
        short = min(height, width)
        sizes = [int(short * scale) for scale in self.scales]
        sizes = [self.size if abs(side - self.size) < 3 and self.size <= short else side for side in sizes]
        steps = range(len(sizes))
        return [(sizes[i], sizes[j]) for i in steps for j in steps if abs(i - j) <= 1]

    def box(self, height: int, width: int, draws: Draws) -> tuple[int, int, int, int]:
        """The part taken of a picture of this size: top, left, height, width in pixels."""
        draws = draws.named("multiscale_crop")
        sides = self.sides(height, width)
        h, w = sides[int(draws.named("size").integers(0, len(sides), 1))]
        down, right = _PLACES[int(draws.named("place").integers(0, len(_PLACES), 1))]
        return down * ((height - h) // 4), right * ((width - w) // 4), h, w

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (..., c, size, size)."""
        top, left, height, width = self.box(sample.shape[-2], sample.shape[-1], draws)
        size = [self.size, self.size]
        return F.resized_crop(sample, top, left, height, width, size, interpolation=self.interpolation, antialias=True)


# Quarters of the room above and to the left of the crop.
_PLACES = (
    (0, 0), (0, 4), (4, 0), (4, 4), (2, 2),
    (2, 0), (2, 4), (4, 2), (0, 2),
    (1, 1), (1, 3), (3, 1), (3, 3),
)  # fmt: skip


@register("view/stack_frames")
class StackFrames:
    """The frames of a clip as one tall picture, so that operations on one picture change all frames by one draw.

    For changes of colour (view/color_jitter, view/grayscale), which read single pictures (c, h, w); contrast thus
    changes about the mean of the whole clip. `view/unstack_frames` has to follow. What moves pixels or looks at
    neighbours (crops, flips, blurs) reads clips itself and does not belong in between. Nothing is drawn.
    """

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (c, t * h, w) of a clip (t, c, h, w)."""
        return sample.transpose(0, 1).flatten(1, 2)


@register("view/unstack_frames")
class UnstackFrames:
    """The clip again of a tall picture that `view/stack_frames` made. Nothing is drawn.

    Args:
        frames: frames of the clip.
    """

    def __init__(self, *, frames: int = 16) -> None:
        if frames < 1:
            raise ValueError(f"view/unstack_frames: frames has to be at least 1 (got {frames})")
        self.frames = frames

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (t, c, h, w) of a picture (c, t * h, w).

        Raises:
            ValueError: for a picture of another height.
        """
        if sample.shape[1] % self.frames:
            raise ValueError(
                f"view/unstack_frames: frames={self.frames} does not divide a picture of {sample.shape[1]} rows; it "
                "has to be the number that view/clip takes, and view/stack_frames has to come before"
            )
        return sample.unflatten(1, (self.frames, -1)).transpose(0, 1)
