"""Histograms of oriented gradients against a pixel-by-pixel reference, and where cells lie in tokens."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.config.compose import ConfigError
from tests.small import PIXELS, batch, images, module


def target(**said):
    pixels = PIXELS | {"target": {"_target_": "target/hog"} | said}
    return module(objective={"pixels": pixels})


def slope(along):
    ramp = torch.linspace(0, 1, 32)
    return (ramp.view(-1, 1) if along == "rows" else ramp.view(1, -1)).expand(1, 3, 32, 32)


def by_hand(image, cell, bins, operator, normalize):
    """(h / cell, w / cell, c, bins) of an image (c, h, w), pixel by pixel."""
    c, h, w = image.shape
    out = torch.zeros(h // cell, w // cell, c, bins)
    reflect = lambda i, n: -i if i < 0 else 2 * n - 2 - i if i >= n else i  # noqa: E731
    for k in range(c):
        at = lambda r, s, k=k: float(image[k, reflect(r, h), reflect(s, w)])  # noqa: E731
        for r in range(h):
            for s in range(w):
                if operator == "sobel":
                    weights = ((-1, 1), (0, 2), (1, 1))
                    x = sum(m * (at(r + d, s - 1) - at(r + d, s + 1)) for d, m in weights)
                    y = sum(m * (at(r - 1, s + d) - at(r + 1, s + d)) for d, m in weights)
                    angle = math.atan2(x, y)
                else:
                    x = (at(r, s + 1) - at(r, s - 1)) / 2 if 0 < s < w - 1 else 0.0
                    y = (at(r + 1, s) - at(r - 1, s)) / 2 if 0 < r < h - 1 else 0.0
                    angle = math.atan2(y, x)
                out[r // cell, s // cell, k, math.floor(angle / math.pi * bins) % bins] += math.hypot(x, y) / cell**2
    if normalize == "unit":
        return out / out.norm(dim=-1, keepdim=True)
    mean, variance = out.mean(-1, keepdim=True), out.var(-1, correction=0, keepdim=True)
    return (out - mean) / (variance + 1e-6).sqrt()


@pytest.mark.parametrize(("operator", "normalize"), [("sobel", "unit"), ("central", "layer")])
def test_histograms_pixel_by_pixel(operator, normalize):
    part = target(cells=2, operator=operator, normalize=normalize).objective["pixels"].target
    image = images(1, 8)
    found = part.histograms(image)[0].unflatten(0, (3, 9)).permute(2, 3, 0, 1)
    torch.testing.assert_close(found, by_hand(image[0], 4, 9, operator, normalize), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", [4, 8, 16])
def test_tokens_hold_their_cells(cell):
    part = target(cells=8 / cell)
    step = part.begin(batch(2))
    look, goal = step["x"], part.objective["pixels"].target
    image = (step.batch["x"].data * 255 - part.networks["main"].tokenizer.mean) / part.networks["main"].tokenizer.std
    maps, found = goal.histograms(image), goal(look, look.tokens)
    assert found.shape == (2, 16, goal.dim) and goal.dim == 27 * max(8 // cell, 1) ** 2
    for place in range(16):
        row, column = place // 4 * 8, place % 4 * 8
        rows, columns = (slice(x // cell, x // cell + max(8 // cell, 1)) for x in (row, column))
        torch.testing.assert_close(found[:, place], maps[:, :, rows, columns].permute(0, 2, 3, 1).flatten(1))
    hidden, _ = part.objective["pixels"].query(look, "hidden")
    torch.testing.assert_close(goal(look, hidden), found.gather(1, hidden.index[..., None].expand(-1, -1, goal.dim)))
    assert torch.isfinite(part.training_step(batch()))


def test_histograms_of_plain_images():
    unit, layer = (
        target(normalize=n, operator=o).objective["pixels"].target for n, o in (("unit", "sobel"), ("layer", "central"))
    )
    for part in (unit, layer):
        assert not part.histograms(torch.full((1, 3, 32, 32), 0.3)).any()
    step = torch.zeros(1, 3, 32, 32)
    step[..., 4:] = 1.0  # an edge along rows: one bin, the gradient is horizontal
    cells = unit.histograms(step).unflatten(1, (3, 9))[0, :, :, 0, 0]
    assert (cells.amax(1) > 0.99).all() and torch.equal(cells.argmax(1), torch.full((3,), 4))
    rising = layer.histograms(slope("rows")).unflatten(1, (3, 9))
    assert torch.equal(rising.argmax(2).unique(), torch.tensor([4])) and (rising.topk(2, 2).values[:, :, 1] < 0).all()


def test_bad_input_is_refused():
    for said, match in (
        ({"cells": 3}, "3 cells per axis do not fit"),
        ({"cells": 0.3}, "do not fit"),
        ({"cells": 0}, "do not fit"),
        ({"operator": "scharr"}, "sobel or central"),
    ):
        with pytest.raises(ConfigError, match=match):
            target(**said)
