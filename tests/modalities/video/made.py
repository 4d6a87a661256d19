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


def tones(seconds: float, rate: int = 48000, each: float = 0.5) -> np.ndarray:
    """A sound whose pitch says when it is, (n,) float32: in the k-th stretch of `each` seconds 400 + 200 k Hz."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (400 + 200 * np.floor(time / each + 1e-9)) * time)).astype(np.float32)


def film(path: Path, frames: np.ndarray, sound: np.ndarray, rate: int = 25, heard: int = 48000, **options: str) -> Path:
    """Writes an h264 video with an AAC track of (n,) or (2, n) samples in [-1, 1]."""
    sound = np.atleast_2d(sound)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = {"g": "8"} | options
        layout = "mono" if len(sound) == 1 else "stereo"
        track = out.add_stream("aac", rate=heard, layout=layout)
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))))
        out.mux(stream.encode())
        for at in range(0, sound.shape[1], 1024):
            piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, at : at + 1024]), "fltp", layout)
            piece.sample_rate, piece.pts = heard, at
            out.mux(track.encode(piece))
        out.mux(track.encode())
    return path


def decoded(path: Path) -> torch.Tensor:
    """All frames by decoding the file from its start to its end, (t, 3, h, w)."""
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
