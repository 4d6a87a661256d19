"""How a step's bytes and operations grow with its samples, from a few small steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Curve:
    """A polynomial of the samples for each of many values, at most of second degree.

    Sizes of tensors are polynomials in whole numbers: the batch once, where samples are compared with one another
    twice. So where four sizes or more lie on parabolas to the last byte these are the answer, anywhere; where they do
    not, because masks differ from batch to batch, a straight line through all of them is. Two sizes make a line.

    Args:
        sizes: samples, evenly spaced.
        values: what was counted at each, arrays of one shape.
    """

    def __init__(self, sizes: Sequence[int], values: Sequence[Any]) -> None:
        self.sizes = np.asarray(sizes, np.float64)
        self.shape = np.asarray(values[0]).shape
        table = np.stack([np.asarray(value, np.float64).reshape(-1) for value in values])
        self.exact = len(sizes) <= 2 or (len(sizes) >= 4 and not np.diff(table, 3, axis=0).any())
        if self.exact:  # through the first ones: a fit would round
            step = self.sizes[1] - self.sizes[0] if len(sizes) > 1 else 1.0
            first = table[1] - table[0] if len(sizes) > 1 else np.zeros_like(table[0])
            second = np.diff(table[:3], 2, axis=0)[0] if len(sizes) > 2 else np.zeros_like(table[0])
            self._newton = (table[0], first / step, second / (2 * step**2))
        else:
            self._factors = np.polynomial.polynomial.polyfit(self.sizes, table, 1)

    def at(self, samples: float) -> np.ndarray:
        """The values for so many samples, none below 0."""
        if self.exact:
            start, slope, bend = self._newton
            found = start + slope * (samples - self.sizes[0])
            found = found + bend * (samples - self.sizes[0]) * (samples - self.sizes[min(1, len(self.sizes) - 1)])
        else:
            found = np.polynomial.polynomial.polyval(samples, self._factors)
        return np.maximum(found, 0.0).reshape(self.shape)


def largest(fits: Callable[[int], bool], most: int = 2**24) -> int:
    """The largest number for which something fits that fits for all smaller ones; 0 for none."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high < most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
