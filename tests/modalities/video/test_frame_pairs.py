"""SiamMAE's pairs of frames: their distance, one crop and one flip for both, and nine visible tokens."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import mmssl
from mmssl.data.source import BadSample
from mmssl.draws import Draws
from mmssl.modalities.video.clips import Clip
from mmssl.modalities.video.pairs import FrameOfPair
from mmssl.modalities.video.positions import SinCosPlane
from mmssl.nn.positions import SinCos
from mmssl.parts.maskers import Random
from mmssl.types import TokenSpec
from tests.small import tokens


def draws(sample):
    return Draws.of(0, 0, torch.tensor([sample]))


def test_distances_are_uniform_below_their_end():
    early, late = FrameOfPair(which=0), FrameOfPair(which=1)
    pairs = [early.places(60, draws(i)) for i in range(1500)]
    gaps = np.bincount([b - a for a, b in pairs], minlength=50)
    assert gaps[:4].sum() == gaps[48:].sum() == 0
    assert abs(gaps[4:48] - 1500 / 44).max() < 5 * (1500 / 44) ** 0.5
    assert all(0 <= a < b < 60 for a, b in pairs) and len({a for a, b in pairs if b - a == 20}) > 10
    frames = np.arange(60, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(2, -1)
    clip = Clip.over(frames, {})
    for i in range(20):
        found = [int(op(clip, draws(i))[0, 0, 0, 0]) for op in (early, late)]
        assert tuple(found) == pairs[i] and early(clip, draws(i)).shape == (1, 1, 1, 2)


def test_short_videos_give_what_they_can():
    op = FrameOfPair(which=0)
    assert {op.places(3, draws(i)) for i in range(30)} == {(0, 2)}
    assert {b - a for a, b in (op.places(10, draws(i)) for i in range(300))} == set(range(4, 10))
    with pytest.raises(BadSample, match="has one frame"):
        op.places(1, draws(0))
    with pytest.raises(ValueError, match=r"gap two whole numbers.*\[9, 4\]"):
        FrameOfPair(which=0, gap=[9, 4])


def test_positions_of_a_frame_are_those_of_an_image():
    frame, image = TokenSpec(5, 3, (1, 4, 6)), TokenSpec(5, 2, (4, 6))
    whole = tokens(2, 24, grid=(4, 6))
    found = SinCosPlane(frame, 16)(whole.but(grid=(1, 4, 6)))
    assert torch.equal(found, SinCos(image, 16)(whole))
    clip = whole.but(pos=torch.cat([torch.full((2, 24, 1), 3.0), whole.pos], -1), grid=(9, 4, 6))
    assert torch.equal(SinCosPlane(frame, 16)(clip), found)


def test_nine_of_196_tokens_are_seen():
    mask = Random(ratio=0.95)(tokens(2, 196, grid=(14, 14)), Draws.of(0, 0, torch.arange(2)), 0.0, None)
    assert mask.visible_count == 9 and (mask.visible.sum(1) == 9).all()


def test_both_frames_are_cropped_and_flipped_alike():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, data = mmssl.build("video/siammae", ["data=sample", "data.batch_size=2", "encoder.depth=1"])
    views = data.views
    assert [type(op).__name__ for op in views["past"]] == ["Like", "FrameOfPair", "RandomResizedCrop", "Flip"]
    batch = data.batch([(0, 0), (0, 1)])
    past, future = batch["past"].data, batch["future"].data
    assert past.shape == future.shape == (2, 1, 3, 64, 64) and not torch.equal(past, future)
    views["past"][1].which = 1  # the same frame twice: equal pictures, or crops and flips would differ
    again = data.batch([(0, i) for i in range(2)])
    assert torch.equal(again["past"].data, again["future"].data) and torch.equal(again["future"].data, future)
