"""Spans of a video: which frames a clip is made of, kept so that its sound is that of the same time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmssl.draws import Draws
from mmssl.modalities.video.clips import Clip
from mmssl.modalities.video.views import ClipView
from mmssl.registry import register


@dataclass(frozen=True)
class Span:
    """Some frames of a video, not decoded yet.

    Args:
        clip: the video.
        places: the frames.
        last: the frame that their sound ends with.
    """

    clip: Clip
    places: tuple[int, ...]
    last: int

    def frames(self) -> Tensor:
        """The frames, uint8 (t, c, h, w); BadSample where they cannot be decoded."""
        return self.clip.frames(self.places)

    def sound(self) -> tuple[Tensor, int]:
        """The sound from the first frame on, samples (c, n) and their rate; BadSample where there is none."""
        return self.clip.heard(self.places[0], self.last)


@register("view/span")
class SpanView:
    """The frames that `view/clip` takes, chosen and not yet decoded, so that another view has the sound of their time.

    `view/frames` has to follow. A further view begins with `{_target_: view/of, name: THIS, after: 1}` and goes on with
    `view/sound`: it hears the time from the first frame on to the end of the frame that would come next, `stride`
    behind the last one, as far as the video goes (HiCMAE).

    Args:
        frames: number of frames.
        stride: steps between frames.
        rate: frames per second that `stride` counts in; null takes every video at its own rate.
        at: place of the window, from 0 (start of the video) to 1 (end), for evaluation; null draws it.
        short: what becomes of videos shorter than the window: `repeat` or `skip`, see `view/clip`.
    """

    def __init__(
        self, *, frames: int = 16, stride: int = 4, rate: float | None = None, at: float | None = None,
        short: str = "repeat",
    ) -> None:  # fmt: skip
        self.clip = ClipView(frames=frames, stride=stride, rate=rate, at=at, short=short)

    def __call__(self, sample: Clip, draws: Draws) -> Span:
        """Returns the span."""
        places, rate = self.clip.places(sample.count, sample.fps, draws), self.clip.rate
        step = round(self.clip.stride * (1.0 if rate is None else sample.fps / rate))
        return Span(sample, tuple(places), min(places[-1] + max(step, 1), sample.count - 1))


@register("view/frames")
class Frames:
    """The frames of a span that `view/span` chose. Nothing is drawn."""

    def __call__(self, sample: Span, draws: Draws) -> Tensor:
        """Returns uint8 (t, c, h, w).

        Raises:
            ValueError: for anything but a span.
        """
        if not isinstance(sample, Span):
            raise ValueError(f"view/frames decodes what view/span chose (got {type(sample).__name__}); put that before")
        return sample.frames()
