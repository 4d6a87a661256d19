import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from mmssl.data.source import BadSample
from mmssl.draws import Draws
from mmssl.modalities.video.clips import Clip
from mmssl.modalities.video.views import ClipView, MultiscaleCrop


def draws(sample=0, epoch=0, seed=0):
    return Draws.of(seed, epoch, torch.tensor([sample]))


def numbered(count, fps=30.0):
    """A video whose frames hold their own number."""
    frames = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(2, -1)
    return Clip.over(frames, {"fps": fps})


def places(op, count, sample, fps=30.0):
    return op(numbered(count, fps), draws(sample))[:, 0, 0, 0].tolist()


def dense(total, frames, stride, offset):
    """VideoMAE's rule, step by step: go on while the next frame exists."""
    taken, place = [], offset
    for _ in range(frames):
        taken.append(place)
        if place + stride < total:
            place += stride
    return taken


@pytest.mark.parametrize(
    ("total", "frames", "stride"), [(200, 16, 4), (64, 16, 4), (70, 16, 2), (40, 16, 4), (3, 8, 5), (1, 4, 2)]
)
def test_dense_clips(total, frames, stride):
    """Every whole offset in [0, len - frames * stride] is drawn; short videos repeat the last reachable frame."""
    op, starts = ClipView(frames=frames, stride=stride), set()
    for sample in range(300):
        taken = places(op, total, sample)
        starts.add(taken[0])
        assert taken == dense(total, frames, stride, taken[0])
    last = max(total - frames * stride, 0)
    assert starts <= set(range(last + 1)) and len(starts) > 0.8 * (last + 1)
    assert {0, last} <= starts or last > 100


@pytest.mark.parametrize(("total", "fps"), [(250, 30.0), (180, 24.0), (250, 60.0), (50, 30.0), (1, 30.0)])
def test_clips_of_a_rate(total, fps):
    """MAE-ST: a window of 64 frames at 30 per second, a real start, places clamped and truncated."""
    op, starts = ClipView(frames=16, stride=4, rate=30), []
    for sample in range(200):
        taken = places(op, total, sample, fps)
        window = 4 * 16 * fps / 30
        start = float(draws(sample).named("clip").uniform(1)) * max(total - window, 0)
        wanted = [int(min(max(start + k * (window - 1) / 15, 0), total - 1)) for k in range(16)]
        # the tenth of a frame where float32 spreads places otherwise than float64 cannot be told
        assert all(a == b or abs(a - b) == 1 for a, b in zip(taken, wanted, strict=True))
        assert sum(a == b for a, b in zip(taken, wanted, strict=True)) >= 15
        starts.append(start)
    if total > window:
        assert min(starts) < 0.05 * (total - window) and max(starts) > 0.95 * (total - window)


def test_clips_without_chance():
    assert places(ClipView(frames=4, stride=2, at=0.5), 20, 0) == [6, 8, 10, 12]
    assert places(ClipView(frames=4, stride=2, at=0.0), 20, 1) == [0, 2, 4, 6]
    assert places(ClipView(frames=4, stride=2, at=1.0), 20, 2) == [12, 14, 16, 18]
    middle = places(ClipView(frames=16, stride=4, rate=30, at=0.5), 164, 0)
    assert (middle[0], middle[-1]) == (50, 113)
    assert all(places(ClipView(frames=4, stride=2, at=0.5), 20, i) == [6, 8, 10, 12] for i in range(5))


def test_short_videos_can_be_skipped():
    op = ClipView(frames=16, stride=4, short="skip")
    assert len(places(op, 61, 0)) == 16
    with pytest.raises(BadSample, match=r"the video has 60 frames, a clip of 16 with stride 4 needs 61; lower either"):
        places(op, 60, 0)
    with pytest.raises(BadSample, match="needs 128"):
        places(ClipView(frames=16, stride=4, rate=30, short="skip"), 100, 0, fps=60.0)


def test_a_clip_of_decoded_frames():
    frames = numbered(30).whole()
    assert torch.equal(
        ClipView(frames=4, stride=3)(frames, draws(5)), ClipView(frames=4, stride=3)(numbered(30), draws(5))
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"frames": 0}, "frames and stride have to be at least 1"),
        ({"rate": -1.0}, "rate is in frames per second"),
        ({"at": 2.0}, "at has to be between 0"),
        ({"short": "leave"}, "short has to be 'repeat' or 'skip'"),
    ],
)
def test_arguments_are_checked(said, message):
    with pytest.raises(ValueError, match=message):
        ClipView(**said)


def test_thirteen_places_and_ten_sizes():
    """Corners, centre, edge and quarter points; scale indices of width and height differ by at most one."""
    op, height, width = MultiscaleCrop(size=50), 100, 160
    lengths = [int(100 * scale) for scale in (1, 0.875, 0.75, 0.66)]
    sizes = {(lengths[i], lengths[j]) for i, j in itertools.product(range(4), repeat=2) if abs(i - j) <= 1}
    assert set(op.sides(height, width)) == sizes and len(op.sides(height, width)) == 10
    quarters = {(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (0, 2), (4, 2), (1, 1), (1, 3), (3, 1), (3, 3)}
    seen = set()
    for sample in range(1500):
        top, left, h, w = op.box(height, width, draws(sample))
        steps = ((100 - h) // 4, (160 - w) // 4)
        found = [(a, b) for a, b in quarters if (a * steps[0], b * steps[1]) == (top, left)]
        assert (h, w) in sizes and found
        if h < 100:
            seen.add(((h, w), found[0]))
    assert len({size for size, _ in seen}) == 8 and len({place for _, place in seen}) == 13
    assert len(seen) == 8 * 13


def test_a_crop_near_the_size_is_that_size():
    assert {side for pair in MultiscaleCrop(size=86).sides(100, 160) for side in pair} == {100, 86, 75, 66}
    assert {side for pair in MultiscaleCrop(size=84).sides(100, 160) for side in pair} == {100, 87, 75, 66}


def test_all_frames_are_cropped_alike():
    clip = torch.randint(0, 256, (5, 3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    op = MultiscaleCrop(size=24)
    for sample in range(4):
        top, left, h, w = op.box(40, 60, draws(sample))
        made = op(clip, draws(sample))
        wanted = [F.resize(frame[:, top : top + h, left : left + w], [24, 24], antialias=True) for frame in clip]
        assert torch.equal(made, torch.stack(wanted))
    with pytest.raises(ValueError, match=r"scales have to lie in \(0, 1\]"):
        MultiscaleCrop(size=8, scales=[1.0, 1.2])
