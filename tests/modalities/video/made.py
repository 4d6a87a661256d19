"""Small videos that tests make themselves."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import torch


def pixels(count: int = 40, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames that all differ, (t, h, w, 3): the background brightens while a bar wanders."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[...] = (40 + 4 * i) % 200
        frame[:, 2 * i % width : 2 * i % width + 6] = (255, 20, 120)
    return frames


def video(path: Path, frames: np.ndarray | None = None, codec: str = "libx264", rate: int = 25, **options: str) -> Path:
    """Writes an encoded video."""
    frames = pixels() if frames is None else frames
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {"g": "8"} | options
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))))
        out.mux(stream.encode())
    return path


def decoded(path: Path) -> torch.Tensor:
    """All frames by decoding the file from its start to its end, (t, 3, h, w)."""
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
