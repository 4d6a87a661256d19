"""Videos that are decoded only when frames are asked for: files through PyAV, folders of pictures, arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmssl.data.source import BadSample
from mmssl.modalities.video.sounds import from_note

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
# Frames per second of what carries no clock: folders of frames, and arrays without `fps`.
RATE = 30.0


class Sound(Protocol):
    """What gives the sound of frames, see `mmssl.modalities.video.sounds`."""

    def __call__(self, clip: Clip, first: int, last: int) -> tuple[Tensor, int]:
        """From the beginning of a frame to the end of another: float32 (c, n), and samples per second."""
        ...

    def note(self) -> dict[str, Any]:
        """Plain values that bring it back."""
        ...


@dataclass(frozen=True)
class Clip:
    """A video whose frames and sound are decoded only when they are asked for.

    Args:
        count: number of frames.
        fps: frames per second, on average.
        fetch: decodes frames: distinct indices in ascending order to uint8 (t, c, h, w); BadSample where it cannot.
        sound: gives the sound of frames; None where the video has none.
    """

    count: int
    fps: float
    fetch: Callable[[list[int]], Tensor]
    sound: Sound | None = None

    def frames(self, indices: Sequence[int]) -> Tensor:
        """Frames by their place in the video, in any order, also several times.

        Returns:
            uint8 (t, c, h, w).

        Raises:
            BadSample: where they cannot be decoded.
        """
        wanted = sorted(set(indices))
        assert wanted and wanted[0] >= 0 and wanted[-1] < self.count, f"a video of {self.count} frames has no {wanted}"
        decoded = self.fetch(wanted)
        if len(wanted) == len(indices) and wanted == list(indices):
            return decoded
        slot = {index: place for place, index in enumerate(wanted)}
        return decoded[[slot[index] for index in indices]]

    def heard(self, first: int, last: int) -> tuple[Tensor, int]:
        """The sound from the beginning of frame `first` to the end of frame `last`, float32 (c, n), and its rate.

        Raises:
            BadSample: where the video has no sound, or it cannot be decoded.
        """
        assert 0 <= first <= last < self.count, f"a video of {self.count} frames has no {first} to {last}"
        if self.sound is None:
            raise BadSample(
                "the video has no sound, which a view asks for (view/sound); leave such videos out of data.root, take "
                "a recipe of pictures alone such as video/videomae, or set "
                "data.source.sound._target_=sound/of_pictures for a sound that is made of the pictures"
            )
        return self.sound(self, first, last)

    def size(self) -> int:
        """Bytes of all frames, from the size of the first one."""
        return self.count * self.frames([0]).numel()

    def whole(self) -> Tensor:
        """All frames, uint8 (n, c, h, w); BadSample where one cannot be decoded."""
        return self.frames(range(self.count))

    def note(self) -> dict[str, Any]:
        """What has to be kept beside the decoded frames: see `over`."""
        return {"fps": self.fps} | ({} if self.sound is None else {"sound": self.sound.note()})

    @classmethod
    def over(cls, frames: np.ndarray, note: Mapping[str, Any]) -> Clip:
        """The clip of decoded frames (n, c, h, w) uint8, which may be mapped into memory."""
        fps, sound = float(note.get("fps", RATE)), from_note(note.get("sound"))
        return cls(len(frames), fps, partial(_copied, frames), sound)

    def to_channels(self, channels: int) -> Clip:
        """The same video with another number of channels."""
        return replace(self, fetch=partial(_converted, self.fetch, channels))

    def sounding(self, sound: Sound | None) -> Clip:
        """The same video, with this sound where it has none of its own."""
        return self if self.sound is not None else replace(self, sound=sound)


def _copied(array: np.ndarray, wanted: list[int]) -> Tensor:
    # a range of frames is one read of a mapped file; fancy indexing copies, as a slice of the map must not escape
    together = wanted[-1] - wanted[0] + 1 == len(wanted)
    return torch.from_numpy(np.array(array[wanted[0] : wanted[-1] + 1]) if together else array[wanted])


def _converted(fetch: Callable[[list[int]], Tensor], channels: int, wanted: list[int]) -> Tensor:
    return convert(fetch(wanted), channels)


def convert(frames: Tensor, channels: int) -> Tensor:
    """Frames (..., c, h, w) with another number of channels: grey is repeated, colour made grey, alpha dropped.

    Raises:
        ValueError: for any other pair of numbers, for which there is no natural rule.
    """
    have = frames.shape[-3]
    if have == channels:
        return frames
    if have == 2 or (have == 4 and channels < 4):  # grey and alpha, RGB and alpha
        return convert(frames[..., : have - 1, :, :], channels)
    if have == 1:
        return frames.repeat_interleave(channels, -3)
    if have == 3 and channels == 1:
        from torchvision.transforms.v2 import functional as F

        return F.rgb_to_grayscale(frames, num_output_channels=1)
    raise ValueError(
        f"data.channels={channels}, but a video has {have} channels and there is no rule to convert {have} to "
        f"{channels}; set data.channels={have}, or null to keep what the files have"
    )


def shrunk(frames: Tensor, side: int | None) -> Tensor:
    """Frames whose short side is at most `side` pixels, the aspect ratio as it was."""
    if side is None or min(frames.shape[-2:]) <= side:
        return frames
    from torchvision.transforms.v2 import functional as F

    return F.resize(frames, [side], antialias=True)


def open_folder(path: Path, side: int | None = None) -> Clip:
    """The pictures of a folder as the frames of a video, in the natural order of their names (2 before 10).

    Args:
        path: the folder; other files in it are left alone.
        side: longest short side in pixels; larger frames are made smaller as they are read.

    Raises:
        ValueError: where the folder holds no picture.
    """
    names = sorted((entry.name for entry in path.iterdir() if entry.name.lower().endswith(PICTURES)), key=natural)
    names = [name for name in names if not name.startswith(".")]
    if not names:
        raise ValueError(f"the folder holds no frames ({', '.join(PICTURES)})")
    return Clip(len(names), RATE, partial(_pictures, path, names, side))


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts names as people do: frame2 before frame10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", name)]


def _pictures(folder: Path, names: list[str], side: int | None, wanted: list[int]) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    frames: list[Tensor] = []
    for index in wanted:
        try:
            blob = bytearray((folder / names[index]).read_bytes())  # torch warns about memory that it may not write to
            frame = decode_image(torch.frombuffer(blob, dtype=torch.uint8), mode=ImageReadMode.RGB)
        except (RuntimeError, OSError, ValueError) as error:
            raise BadSample(f"the frame {names[index]} cannot be read ({str(error).splitlines()[0]})") from error
        if frames and frame.shape != frames[0].shape:
            height, width = frame.shape[1:]
            raise BadSample(
                f"the frame {names[index]} is {height}x{width}, others of the folder are "
                f"{frames[0].shape[1]}x{frames[0].shape[2]}"
            )
        frames.append(frame)
    return shrunk(torch.stack(frames), side)


def open_arrays(file: Path | bytes, side: int | None = None) -> Clip:
    """The clip in an `.npz` file: `frames`, or its only array of at least three axes, and perhaps a number `fps`.

    Args:
        file: path or content; frames are uint8 (t, h, w) or (t, h, w, c).
        side: longest short side in pixels; larger frames are made smaller.

    Raises:
        ValueError: where the file is not such a clip.
    """
    import zipfile

    try:
        with np.load(BytesIO(file) if isinstance(file, bytes) else file, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"not a readable .npz file ({error})") from error
    found = {name: array for name, array in arrays.items() if array.ndim >= 3}
    name = "frames" if "frames" in found else next(iter(found), "")
    if name not in found or (name != "frames" and len(found) > 1):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise ValueError(f"an .npz clip needs an array `frames` of shape (t, h, w, c) or (t, h, w); found {shapes}")
    frames = found[name]
    if frames.ndim > 4 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(
            f"frames of a clip are uint8 of shape (t, h, w, c) or (t, h, w), with at least one frame; `{name}` is "
            f"{frames.dtype} {frames.shape}"
        )
    frames = frames[:, None] if frames.ndim == 3 else frames.transpose(0, 3, 1, 2)
    pixels = shrunk(torch.from_numpy(np.ascontiguousarray(frames)), side)
    return Clip.over(pixels.numpy(), {"fps": arrays["fps"]} if "fps" in arrays else {})
