"""Two frames of a video, some time apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmssl.data.source import BadSample
from mmssl.draws import Draws
from mmssl.modalities.video.clips import Clip
from mmssl.registry import register


@register("view/frame_of_pair")
class FrameOfPair:
    """One of two frames whose distance is a random whole number in [gap[0], gap[1]) (SiamMAE, Gupta et al. 2023).

    The first frame is uniform among those that leave room for the second. Two views that draw alike (`view/like`) take
    one frame each of the same pair. In a short video the distance is at most what it allows.

    Args:
        which: 0 for the earlier frame, 1 for the later one.
        gap: smallest distance in frames, and the one that it stays below: 4 and 48.

    Raises:
        ValueError: for another number, or a gap that is not two whole numbers in ascending order.
    """

    def __init__(self, *, which: int, gap: Sequence[int] = (4, 48)) -> None:
        low, high = gap
        if which not in (0, 1) or not 0 < low < high:
            raise ValueError(
                f"view/frame_of_pair: which is 0 or 1, and gap two whole numbers in ascending order (got {which}, "
                f"{list(gap)}); SiamMAE has [4, 48]"
            )
        self.which, self.low, self.high = which, low, high

    def places(self, total: int, draws: Draws) -> tuple[int, int]:
        """Both frames of a video of `total` frames.

        Raises:
            BadSample: for a video of one frame.
        """
        if total < 2:
            raise BadSample("view/frame_of_pair: the video has one frame, a pair needs two")
        draws = draws.named("pair")
        low = min(self.low, total - 1)
        gap = int(draws.named("gap").integers(low, max(min(self.high, total), low + 1), 1))
        first = int(draws.named("first").integers(0, total - gap, 1))
        return first, first + gap

    def __call__(self, sample: Clip, draws: Draws) -> Tensor:
        """Returns uint8 (1, c, h, w), a clip of one frame."""
        return sample.frames([self.places(sample.count, draws)[self.which]])
