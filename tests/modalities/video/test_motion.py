"""Motion out of frames, and boxes that follow it, against plain loops and a clip with one thing that moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mmssl.draws import Draws
from mmssl.modalities.video.motion import Motion, MovingBox
from mmssl.modalities.video.tokenizer import TubeletTokenizer
from mmssl.types import TokenSpec, View

FACTS = {"channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}


def cut(clip, patch=4):
    """Tokens of clips (b, t, c, h, w), and the guide for them."""
    tokenizer = TubeletTokenizer(FACTS, size=clip.shape[-1], frames=clip.shape[1], patch=patch)
    return tokenizer(View(clip, "video")), Motion(tokenizer.spec, 8)


def drawn(b, step=0):
    return Draws.of(0, 0, torch.arange(b), step=step)


def test_motion_is_the_mean_difference_to_the_frames_around():
    clip = torch.rand(2, 6, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    tokenizer = TubeletTokenizer(FACTS, size=[8, 12], frames=6, patch=4)
    tokens = tokenizer(View(clip, "video"))
    score = Motion(tokenizer.spec, 8)(SimpleNamespace(tokens=tokens)).unflatten(1, (3, 2, 3))
    for i in range(2):
        for time in range(3):
            for row in range(2):
                for column in range(3):
                    patch = clip[i, :, :, row * 4 :, column * 4 :][..., :4, :4] / 0.25
                    total = 0.0
                    for frame in (2 * time, 2 * time + 1):
                        near = [other for other in (frame - 1, frame + 1) if 0 <= other < 6]
                        total += sum(float((patch[frame] - patch[o]).abs().mean()) for o in near) / len(near)
                    assert float(score[i, time, row, column]) == pytest.approx(total / 2, rel=1e-4)


def test_the_box_follows_a_square_that_moves():
    clip = torch.full((8, 16, 3, 56, 56), 0.5)
    for slice_ in range(8):
        clip[:, 2 * slice_ : 2 * slice_ + 2, :, 20:32, 4 * (slice_ + 1) : 4 * (slice_ + 4)] = 1.0
    tokens, guide = cut(clip)
    score = guide(SimpleNamespace(tokens=tokens))
    mask = MovingBox()(tokens, drawn(8), 0.0, score)
    hidden = mask.hidden.unflatten(1, (8, 14, 14))
    assert (hidden.sum((2, 3)) == 147).all() and (mask.visible_count, mask.target_count) == (8 * 49, 8 * 147)
    for slice_ in range(8):
        assert hidden[:, slice_, 5:8, slice_ + 1 : slice_ + 4].all()


def test_the_box_lies_where_it_holds_most():
    score = torch.rand(4, 3 * 8 * 8, generator=torch.Generator().manual_seed(1)) ** 8  # far from even
    tokens, _ = cut(torch.zeros(4, 6, 3, 32, 32))
    mask = MovingBox(ratio=0.25, aspect=(1.0, 1.0))(tokens, drawn(4), 0.0, score)
    hidden, held = mask.hidden.unflatten(1, (3, 8, 8)), score.unflatten(1, (3, 8, 8))
    for i in range(4):
        for time in range(3):
            sums = {
                (y, x): float(held[i, time, y : y + 4, x : x + 4].sum()) for y in range(5) for x in range(5)
            }  # fmt: skip
            boxes = [
                place for place in sums
                if hidden[i, time, place[0] : place[0] + 4, place[1] : place[1] + 4].all()
            ]  # fmt: skip
            total = float(held[i, time].sum())
            assert len(boxes) == 1 and sums[boxes[0]] >= max(sums.values()) - 1e-3 * total


def test_boxes_of_a_still_clip_lie_anywhere_and_stay_there():
    tokens, _ = cut(torch.zeros(30, 6, 3, 32, 32))
    hidden = MovingBox(ratio=0.25, aspect=(1.0, 1.0))(tokens, drawn(30), 0.0, torch.zeros(30, 192)).hidden
    hidden = hidden.unflatten(1, (3, 8, 8))
    assert torch.equal(hidden[:, 0], hidden[:, 1]) and len({tuple(x.flatten().tolist()) for x in hidden}) > 10


def test_sizes_never_exceed_the_count():
    tokens, _ = cut(torch.zeros(50, 2, 3, 56, 56))
    hidden = MovingBox(aspect=(0.2, 5.0))(tokens, drawn(50), 0.0, torch.rand(50, 196)).hidden
    assert (hidden.sum(1) == 147).all()


def test_what_does_not_fit_is_refused():
    tokens, _ = cut(torch.zeros(1, 2, 3, 8, 8))
    with pytest.raises(ValueError, match="no guide"):
        MovingBox()(tokens, drawn(1), 0.0, None)
    with pytest.raises(ValueError, match="time, row, column"):
        MovingBox()(tokens.but(grid=(2, 2)), drawn(1), 0.0, torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"masker\.aspect"):
        MovingBox(aspect=(2.0, 1.0))
    with pytest.raises(ValueError, match="tubelets"):
        Motion(TokenSpec(raw=3, pos=2, grid=(4, 4)), 8)
