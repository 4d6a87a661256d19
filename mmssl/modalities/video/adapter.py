"""What generic data code knows of videos: how they are opened, joined, measured and shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.source import BadSample
from mmssl.modalities.video.clips import Clip, convert, open_arrays, open_folder, shrunk
from mmssl.modalities.video.decoding import open_video
from mmssl.modalities.video.spans import Span
from mmssl.registry import register

# Frames of a video that the baseline, the facts and a picture look at.
_BASELINE, _FACTS, _PICTURE = 16, 4, 8
_TALLEST = 112  # pixels of a picture
_MANY = "set data.channels=3 (or 1) to convert every video to the same number of channels"


@register("modality/video")
class Video:
    """The video modality. A sample is a `Clip`, decoded when frames are asked for; a view of it is (t, c, h, w) uint8.

    Args:
        side: longest short side in pixels: larger videos are made smaller as they are read; None leaves them.
    """

    name = "video"
    mixes = True
    extensions: tuple[str, ...] = (
        ".mp4",
        ".avi",
        ".webm",
        ".mkv",
        ".mov",
        ".m4v",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".npz",
    )
    measured = 200

    def __init__(self, *, side: int | None = None) -> None:
        self.side = side

    def open(self, path: Path) -> Clip:
        """A video file, an `.npz` file of frames or a folder of pictures.

        Raises:
            ValueError: where it cannot be read, or holds no frames.
        """
        if path.is_dir():
            return open_folder(path, self.side)
        return (open_arrays if path.suffix.lower() == ".npz" else open_video)(path, self.side)

    def decode(self, blob: bytes, channels: int | None = None) -> Clip:
        """The content of a video or `.npz` file; ValueError where it cannot be read, or holds no frames."""
        clip = (open_arrays if blob[:4] == b"PK\x03\x04" else open_video)(blob, self.side)
        return clip if channels is None else clip.to_channels(channels)

    def convert(self, sample: Clip | Tensor, channels: int) -> Clip | Tensor:
        """A video with another number of channels: grey is repeated, colour made grey, alpha dropped."""
        return convert(sample, channels) if isinstance(sample, Tensor) else sample.to_channels(channels)

    def collate(self, samples: Sequence[Tensor]) -> Tensor:
        """Joins clips of one shape to a batch (b, t, c, h, w).

        Raises:
            ValueError: where no frames were chosen yet, or shapes differ, with the key to set.
        """
        if any(isinstance(sample, Clip | Span) for sample in samples):
            raise ValueError(
                "data.views and data.view of videos have to begin with view/clip, which chooses frames, or with "
                "view/span and view/frames"
            )
        shapes = sorted({tuple(sample.shape) for sample in samples})
        if len(shapes) == 1:
            return torch.stack(list(samples))
        channels = sorted({shape[1] for shape in shapes})
        if len(channels) > 1:
            raise ValueError(f"one batch holds videos of {' and '.join(map(str, channels))} channels; {_MANY}")
        sizes = ", ".join(f"{t} frames of {h}x{w}" for t, _, h, w in shapes[:4])
        raise ValueError(
            f"one batch holds clips of different sizes ({sizes}); let data.views and data.view bring them to one size: "
            "view/clip, then view/random_resized_crop, or view/resize with view/center_crop"
        )

    def facts(self, samples: Iterable[Clip]) -> dict[str, Any]:
        """Measures a few frames of each video; what cannot be decoded is left out, the loader will count it.

        Returns:
            `channels`; `mean` and `std` per channel over these frames' pixels, in units where 255 is 1; `height`,
            `width`, `frames` and `fps` as [smallest, largest]; `counted`, the number of videos.

        Raises:
            ValueError: where videos differ in channels, or none can be decoded.
        """
        ranges: dict[str, list[float]] = {"height": [], "width": [], "frames": [], "fps": []}
        sums: dict[int, Tensor] = {}
        for sample in samples:
            try:
                frames = evenly(sample, _FACTS)
            except BadSample:
                continue
            channels, height, width = frames.shape[1:]
            values = frames.transpose(0, 1).reshape(channels, -1).to(torch.float64) / 255
            found = torch.stack([torch.full_like(values[:, 0], values.shape[1]), values.sum(1), values.square().sum(1)])
            sums[channels] = sums[channels] + found if channels in sums else found
            for name, value in zip(ranges, (height, width, sample.count, sample.fps), strict=True):
                ranges[name].append(value)
        if not sums:
            raise ValueError("data.source gave no readable video to measure; check data.root")
        if len(sums) > 1:
            raise ValueError(
                f"videos differ in their number of channels ({' and '.join(map(str, sorted(sums)))}); {_MANY}"
            )
        channels, (pixels, total, square) = next(iter(sums.items()))
        mean = total / pixels
        return {
            "channels": channels,
            "mean": mean.tolist(),
            "std": (square / pixels - mean.square()).clamp(min=0).sqrt().tolist(),
            **{name: [min(values), max(values)] for name, values in ranges.items()},
            "counted": len(ranges["frames"]),
        }

    def baseline(self, sample: Clip | Tensor) -> Tensor:
        """The raw-input baseline: mean and deviation over time of 16 grey frames at 16 x 16, and of their differences.

        Returns:
            (4 * 256,) float32, from frames in [0, 1].
        """
        frames = evenly(sample, _BASELINE)
        grey = convert(frames, 1) if frames.shape[1] <= 4 else frames.float().mean(1, keepdim=True)
        small = torch.nn.functional.interpolate(grey.float() / 255, (16, 16), mode="bilinear", antialias=True)
        small = small.flatten(1)
        change = small.diff(dim=0)
        return torch.cat([small.mean(0), small.std(0), change.mean(0), change.std(0)])

    def picture(self, sample: Clip | Tensor) -> np.ndarray:
        """Up to 8 frames side by side, fewer where they are wide: uint8 (h, w, 3).

        One or two channels are shown as grey, of many the first three.
        """
        count = len(sample) if isinstance(sample, Tensor) else sample.count
        frames = shrunk(evenly(sample, min(count, _PICTURE)), _TALLEST)
        height, width = frames.shape[-2:]
        frames = evenly(frames, min(len(frames), max(1, _PICTURE * height // width)))
        shown = frames[:, :3] if frames.shape[1] >= 3 else frames[:, :1].expand(-1, 3, -1, -1)
        return torch.cat(list(shown), -1).permute(1, 2, 0).contiguous().numpy()


def evenly(sample: Clip | Tensor, count: int) -> Tensor:
    """So many frames evenly spaced from the first to the last, some several times where there are few, (t, c, h, w)."""
    total = len(sample) if isinstance(sample, Tensor) else sample.count
    indices = torch.linspace(0, total - 1, count).round().long().tolist()
    return sample[indices] if isinstance(sample, Tensor) else sample.frames(indices)
