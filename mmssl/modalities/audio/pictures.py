"""Spectrograms as pictures, in a palette whose lightness rises evenly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

# Anchors of matplotlib's magma (CC0): black over violet and red to a pale yellow.
_ANCHORS = np.array(
    [
        (0, 0, 4), (28, 16, 68), (79, 18, 123), (129, 37, 129), (181, 54, 122), (229, 80, 100), (251, 135, 97),
        (254, 194, 135), (252, 253, 191),
    ],
    dtype=np.float64,
)  # fmt: skip
HIDDEN = (136, 136, 136)


class Spectrogram(NamedTuple):
    """A spectrogram to look at.

    Args:
        values: (frames, bins), 0 for the darkest and 1 for the lightest; beyond that it is clipped.
        shown: which of them are known, (frames, bins) bool; the others are drawn grey. None means all.
    """

    values: Tensor
    shown: Tensor | None = None


def colours(values: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] as colours, (..., 3) uint8, between the anchors in equal steps."""
    place = np.clip(np.nan_to_num(values.astype(np.float64)), 0.0, 1.0) * (len(_ANCHORS) - 1)
    low = np.minimum(place.astype(int), len(_ANCHORS) - 2)
    share = (place - low)[..., None]
    return np.rint(_ANCHORS[low] * (1 - share) + _ANCHORS[low + 1] * share).astype(np.uint8)


def paint(spectrogram: Spectrogram) -> np.ndarray:
    """The picture, (bins, frames, 3) uint8: time to the right, low frequencies at the bottom.

    One of fewer frames than bins is continued on white to a square, so that pictures are enlarged alike.
    """
    picture = colours(spectrogram.values.detach().float().cpu().numpy())
    if spectrogram.shown is not None:
        picture[~spectrogram.shown.cpu().numpy()] = HIDDEN
    frames, bins = picture.shape[:2]
    picture = np.pad(picture, ((0, max(0, bins - frames)), (0, 0), (0, 0)), constant_values=255)
    return np.ascontiguousarray(picture.transpose(1, 0, 2)[::-1])
