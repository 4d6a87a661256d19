"""The sound that goes with frames of a video: decoded from the file when it is asked for, or made of the pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data.source import BadSample
from mmssl.registry import register

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

    from mmssl.modalities.video.clips import Clip

# Seconds that a decoder is given before the first sample that is wanted: sound is coded in overlapping windows.
_WARM = 0.25
# Containers that count in milliseconds round the times of packets: what is nearer than this follows without a gap.
_ROUNDED = 0.002


@dataclass(frozen=True)
class Track:
    """The first sound track of a video file.

    Args:
        file: path or content.
    """

    file: Path | bytes

    def __call__(self, clip: Clip, first: int, last: int) -> tuple[Tensor, int]:
        """From the time that frame `first` is shown to the end of frame `last`: float32 (c, n), and the rate.

        Where the track begins later or ends earlier there is silence.

        Raises:
            BadSample: where it cannot be decoded, or has nothing in that time.
        """
        from av.error import FFmpegError

        from mmssl.modalities.video.decoding import indexed

        start, stop = indexed(self.file).seconds(first, last)
        try:
            found = _decoded(self.file, start, stop, seek=start > _WARM)
            found = _decoded(self.file, start, stop, seek=False) if found is None else found
        except FFmpegError as error:
            reason = error.strerror or type(error).__name__
            raise BadSample(f"the sound of the video cannot be decoded ({reason})") from error
        if found is None:
            raise BadSample(f"the sound track of the video has nothing from {start:.2f} to {stop:.2f} seconds")
        return found

    def note(self) -> dict[str, Any]:
        """What brings it back: see `from_note`."""
        return {"file": None if isinstance(self.file, bytes) else str(self.file)}


def _decoded(file: Path | bytes, start: float, stop: float, seek: bool) -> tuple[Tensor, int] | None:
    """Samples from `start` to `stop` seconds; None where there are none, or seeking led behind the start."""
    from mmssl.modalities.video.decoding import opened

    with opened(file) as container:
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        rate, first = stream.codec_context.sample_rate, round(start * stream.codec_context.sample_rate)
        made = np.zeros((stream.codec_context.channels, max(1, round((stop - start) * rate))), np.float32)
        if seek and stream.time_base is not None:
            container.seek(int((start - _WARM) / stream.time_base), stream=stream)
        heard, behind = False, None
        for frame, time in _frames(container, stream):
            values, at = _samples(frame), round(time * rate) - first
            at = behind if behind is not None and abs(at - behind) <= _ROUNDED * rate else at
            if seek and not heard and at > 0:
                return None
            behind = at + values.shape[1]
            low, high = max(at, 0), min(behind, made.shape[1])
            if low < high:
                made[:, low:high] = values[: len(made), low - at : high - at]
                heard = True
            if behind >= made.shape[1]:
                break
    return (torch.from_numpy(made), rate) if heard else None


def _frames(container: InputContainer, stream: AudioStream) -> Any:
    """Decoded pieces of a track and the second that each begins at; those without a time follow the one before."""
    time = 0.0
    for frame in container.decode(stream):
        time = time if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
        yield frame, time
        time += frame.samples / frame.sample_rate


def _samples(frame: AudioFrame) -> np.ndarray:
    """Samples in [-1, 1], float32 (c, n)."""
    values: np.ndarray[Any, Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.float32) / 2.0 ** (8 * values.itemsize - 1)
    return values.astype(np.float32)


@register("sound/of_pictures")
class OfPictures:
    """A sound made of a video's own pictures, for videos that come without one: no recording of anything.

    Rows of the picture are tones, the lowest row the lowest, and each is as loud as its row is bright. So the sound
    changes with the pictures and when they do. It lets recipes of sound and pictures run on silent videos; what is
    learned of it says nothing of sound.

    Args:
        rate: samples per second.
        tones: number of tones, spaced evenly in pitch from 110 to 3520 Hz.
    """

    def __init__(self, *, rate: int = 16000, tones: int = 16) -> None:
        if rate < 8000 or tones < 2:
            raise ValueError(f"sound/of_pictures: rate has to be at least 8000 and tones 2 (got {rate} and {tones})")
        self.rate, self.tones = rate, tones

    def __call__(self, clip: Clip, first: int, last: int) -> tuple[Tensor, int]:
        """The sound of frames `first` to `last`: float32 (1, n), and the rate."""
        grey = clip.frames(range(first, last + 1)).float().mean(1, keepdim=True) / 255
        loud = F.adaptive_avg_pool2d(grey, (self.tones, 1))[:, 0, :, 0].flip(1).T
        begin, length = round(first / clip.fps * self.rate), round((last + 1 - first) / clip.fps * self.rate)
        loud = F.interpolate(loud[None], max(length, 1), mode="linear", align_corners=True)[0]
        pitch = 110 * 2 ** torch.linspace(0, 5, self.tones, dtype=torch.float64)
        time = (begin + torch.arange(loud.shape[1], dtype=torch.float64)) / self.rate
        tones = torch.sin(2 * math.pi * pitch.unsqueeze(1) * time)
        return (tones.float() * loud).mean(0, keepdim=True), self.rate

    def note(self) -> dict[str, Any]:
        """What brings it back: see `from_note`."""
        return {"made": {"rate": self.rate, "tones": self.tones}}


class Left:
    """In place of a sound that is no longer at hand: the frames were kept, and the file they came from was not."""

    def __call__(self, clip: Clip, first: int, last: int) -> tuple[Tensor, int]:
        """Says so, BadSample."""
        raise BadSample(
            "the sound of videos in shards is not kept beside their decoded frames; set data.memory_mb=0, so that both "
            "are decoded when they are asked for"
        )

    def note(self) -> dict[str, Any]:
        """What brings it back: see `from_note`."""
        return {"file": None}


def from_note(note: Mapping[str, Any] | None) -> Track | OfPictures | Left | None:
    """The sound that a kept clip had; None where it had none."""
    if note is None:
        return None
    if "made" in note:
        return OfPictures(**note["made"])
    return Left() if note["file"] is None else Track(Path(note["file"]))
