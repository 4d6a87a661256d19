"""Crops without resizing, and a choice among operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmssl.draws import Draws
from mmssl.parts.crops import OneOf, RandomCrop
from mmssl.parts.views import Flip, Solarize


def draws(i):
    return Draws.of(0, 0, torch.tensor([i]))


@pytest.mark.parametrize("padding", [0, 4])
def test_crops_are_parts_of_the_reflected_image(padding):
    image = torch.arange(3 * 20 * 26).reshape(3, 20, 26) % 251
    wide = F.pad(image[None].float(), (padding,) * 4, mode="reflect")[0]
    view, found = RandomCrop(size=16, padding=padding), set()
    parts = wide.unfold(1, 16, 1).unfold(2, 16, 1)
    for i in range(60):
        made = view(image.to(torch.uint8), draws(i))
        hits = (parts == made[:, None, None]).all(-1).all(-1).all(0).nonzero().tolist()
        assert len(hits) == 1
        found.add(tuple(hits[0]))
        assert torch.equal(view.segments(image[0], image, draws(i)).to(torch.uint8), made[0])
    assert len(found) > 25 and max(top for top, _ in found) <= 4 + 2 * padding


def test_too_small_images_and_sizes_are_refused():
    with pytest.raises(ValueError, match="put view/resize in front"):
        RandomCrop(size=32)(torch.zeros(3, 20, 40), draws(0))
    with pytest.raises(ValueError, match="size is at least 1"):
        RandomCrop(size=0)
    with pytest.raises(ValueError, match="at least one operation"):
        OneOf(ops=[])


def test_one_operation_is_chosen_evenly():
    image = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4) * 5
    view = OneOf(ops=[Flip(p=1.0), Solarize(p=1.0, threshold=0), lambda sample, draws: sample])
    made = [view(image, draws(i)) for i in range(600)]
    counts = [sum(torch.equal(x, y) for x in made) for y in (image.flip(-1), 255 - image, image)]
    assert sum(counts) == 600 and all(150 < count < 250 for count in counts)
    moved = OneOf(ops=[Flip(p=1.0)]).segments(image[0].long(), image, draws(0))
    assert torch.equal(moved, image[0].long().flip(-1))
