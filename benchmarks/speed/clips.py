"""A folder of videos to VideoMAE's clips."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

GOAL = 3.0
WHAT = "video folder to clips of 16 frames, loader alone, two workers, with the clip cache"
SAME = "the shipped videos (96 pixels), every fourth frame, one crop to 64 pixels; by hand: PyAV, from the start"
BATCH, SIDE, FRAMES, STRIDE = 10, 64, 16, 4


def by_hand(path: Path) -> Any:
    """One clip as scripts make it: decoding from the start up to the last frame that is wanted."""
    import av
    import torch
    from torchvision.transforms.v2 import functional as F

    with av.open(str(path)) as file:
        count = file.streams.video[0].frames
        start = random.randrange(max(1, count - (FRAMES - 1) * STRIDE))
        wanted = [min(start + i * STRIDE, count - 1) for i in range(FRAMES)]
        frames = []
        for i, frame in enumerate(file.decode(video=0)):
            frames.append(frame.to_ndarray(format="rgb24") if i in wanted else None)
            if i >= wanted[-1]:
                break
    clip = torch.stack([torch.from_numpy(frames[min(i, len(frames) - 1)]) for i in wanted]).permute(0, 3, 1, 2)
    side = random.choice([1.0, 0.875, 0.75, 0.66])
    size = int(min(clip.shape[-2:]) * side)
    top, left = (random.randrange(have - size + 1) for have in clip.shape[-2:])
    clip = F.resized_crop(clip, top, left, size, size, [SIDE, SIDE], antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return clip.float().div_(255).sub_(mean).div_(std)


def measure(pairs: int) -> dict[str, Any]:
    """Ours without and with the cache of decoded videos."""
    import mmssl
    from benchmarks.speed import loaders

    source = Path(mmssl.__file__).parent / "modalities/video/sample/train"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "videos"
        folder.mkdir()
        paths = []
        for path in sorted(source.rglob("*.mp4")):
            paths.append(folder / path.name)
            paths[-1].symlink_to(path)
        said = ["data=videos", f"data.root={folder}", f"data.size={SIDE}", f"data.batch_size={BATCH}"]
        found = loaders.in_turn(
            pairs,
            reference=loaders.epochs(loaders.plain(paths, by_hand, BATCH), BATCH),
            ours=loaders.epochs(loaders.ours("video/videomae", said, False), BATCH, loaders.normalised),
            cached=loaders.epochs(loaders.ours("video/videomae", said, True), BATCH, loaders.normalised),
        )
    return loaders.reported(found, {"cached": (WHAT, GOAL), "ours": ("... without a cache (no goal)", 0.0)})
