"""Frame-accurate decoding of video files through PyAV.

Frames are counted and timed by reading a file's packets, which decodes nothing: headers lie about the number of frames,
and an average rate does not tell the time of a frame. A frame is then found by its time, from the keyframe before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.source import BadSample, stat
from mmssl.modalities.video.clips import RATE, Clip
from mmssl.modalities.video.sounds import Track

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Some packets show no picture of their own; at the end of a stream so many may be missing without being an error.
_SHORT = 2


@dataclass(frozen=True)
class Index:
    """What a file's packets tell.

    Args:
        count: number of frames.
        times: presentation time of each frame, ascending int64; None where the container does not know them.
        keys: numbers of the frames that decoding can start from, ascending.
        fps: frames per second, on average.
        size: height and width in pixels.
        tick: seconds that times count.
        sounds: whether the file has a sound track.
    """

    count: int
    times: np.ndarray | None
    keys: np.ndarray
    fps: float
    size: tuple[int, int]
    tick: float = 0.0
    sounds: bool = False

    def seconds(self, first: int, last: int) -> tuple[float, float]:
        """When frame `first` begins and frame `last` ends."""
        if self.times is None:
            return first / self.fps, (last + 1) / self.fps
        ends = (
            self.times[last] * self.tick + 1 / self.fps if last + 1 == self.count else self.times[last + 1] * self.tick
        )
        return float(self.times[first] * self.tick), float(ends)


def open_video(file: Path | bytes, side: int | None = None) -> Clip:
    """A video file, decoded when frames are asked for; frames are RGB.

    Args:
        file: path or content of anything that FFmpeg reads.
        side: longest short side in pixels; larger frames are made smaller as they are decoded.

    Raises:
        ValueError: where this is no video, or it holds no frames.
    """
    index = indexed(file)
    height, width = index.size
    if side is not None and min(height, width) > side:
        short = min(height, width)
        height, width = int(side * height / short), int(side * width / short)
    fetch = partial(_fetch, file, index, (height, width))
    return Clip(index.count, index.fps, fetch, Track(file) if index.sounds else None)


def indexed(file: Path | bytes) -> Index:
    """The index of a file or of content, read again only where the file has changed; ValueError for no video."""
    return _index(file) if isinstance(file, bytes) else _indexed(str(file), *stat(file))


@lru_cache(8192)
def _indexed(path: str, size: int, changed: int) -> Index:
    """The index of a file that has not changed: epochs and repeated clips read the packets once."""
    return _index(Path(path))


def opened(file: Path | bytes) -> InputContainer:
    """A file or its content, open for reading."""
    import av

    return av.open(BytesIO(file) if isinstance(file, bytes) else str(file), "r")


def _index(file: Path | bytes) -> Index:
    from av.error import FFmpegError

    try:
        with opened(file) as container:
            if not container.streams.video:
                raise ValueError("the file holds no video stream")
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
            # an AVI has no presentation times; what FFmpeg makes up is wrong where frames are reordered
            known = container.format.name != "avi" and all(packet.pts is not None for packet in packets)
            times = np.array([packet.pts if known else i for i, packet in enumerate(packets)], dtype=np.int64)
            order = np.argsort(times, kind="stable")
            rate = float(stream.average_rate or 0) or RATE
            context = stream.codec_context
            size = context.height, context.width
            tick, sounds = float(stream.time_base or 0), bool(container.streams.audio)
            starts = np.array([packet.is_keyframe for packet in packets], dtype=bool)[order]
    except FFmpegError as error:
        raise ValueError(f"not a readable video ({_reason(error)})") from error
    if not len(times) or not all(size):
        raise ValueError("the video holds no frames")
    times = times[order]
    known = known and bool((np.diff(times) > 0).all()) and bool(starts[0])
    return Index(len(times), times if known else None, np.flatnonzero(starts), rate, size, tick, sounds)


def _reason(error: Any) -> str:
    return error.strerror or type(error).__name__


def _fetch(file: Path | bytes, index: Index, size: tuple[int, int], wanted: list[int]) -> Tensor:
    """Frames by number, ascending and distinct, uint8 (t, 3, h, w)."""
    from av.error import FFmpegError

    try:
        found = None if index.times is None else _pick(file, index, size, wanted, seek=True)
        if found is None:  # no times, or seeking did not lead before the frame: from the beginning then
            found = _pick(file, index, size, wanted, seek=False)
    except FFmpegError as error:
        raise BadSample(f"the video cannot be decoded ({_reason(error)})") from error
    if found is None:
        raise BadSample(f"the video ends before frame {wanted[-1]} of {index.count}, or frames of it are damaged")
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def _pick(
    file: Path | bytes, index: Index, size: tuple[int, int], wanted: list[int], seek: bool
) -> list[np.ndarray] | None:
    """The wanted frames, or None where they do not come out of the decoder."""
    from av.video.reformatter import VideoReformatter

    reformatter, found = VideoReformatter(), []
    groups = [wanted] if not seek else _runs(index, wanted)
    with opened(file) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # loaders have workers; threads of decoders would fight over their cores
        for group in groups:
            shown = _show(container, stream, index, group, seek)
            for frame in shown:
                if frame is None or (frame.is_corrupt and seek):
                    return None
                if frame.is_corrupt:
                    raise BadSample("frames of the video are damaged")
                made = reformatter.reformat(frame, size[1], size[0], "rgb24", interpolation="AREA")
                found.append(made.to_ndarray())
    return found


def _runs(index: Index, wanted: list[int]) -> list[list[int]]:
    """Wanted frames by the keyframe that decoding has to start from: what lies between two runs is never decoded."""
    starts = np.searchsorted(index.keys, wanted, side="right")
    return [
        [number for number, _ in run] for _, run in itertools.groupby(zip(wanted, starts, strict=True), lambda x: x[1])
    ]


def _show(
    container: InputContainer, stream: VideoStream, index: Index, wanted: list[int], seek: bool
) -> Iterator[VideoFrame | None]:
    """The picture shown at each wanted frame: its own, or the one before where a packet brings none; None for none."""
    if seek and index.times is not None:
        start = index.keys[np.searchsorted(index.keys, wanted[0], side="right") - 1]
        container.seek(int(index.times[start]), stream=stream)
    left, before, number = list(wanted), None, -1
    for place, frame in enumerate(container.decode(stream)):
        number = place
        if index.times is not None:
            if frame.pts is None:
                break
            number = int(np.searchsorted(index.times, frame.pts, side="right")) - 1
        while left and left[0] < number:
            yield before
            left.pop(0)
        if left and left[0] == number:
            yield frame
            left.pop(0)
        if not left:
            return
        before = frame
    for missing in left:
        yield before if missing - number <= _SHORT else None
