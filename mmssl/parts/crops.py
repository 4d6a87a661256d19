"""Views that crop at the size an image has, and views that choose among others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.data.segments import mover
from mmssl.draws import Draws
from mmssl.registry import register


@register("view/random_crop")
class RandomCrop:
    """A square part at a random place, without resizing; the image is first enlarged by its reflection at the borders.

    Args:
        size: side of the part in pixels.
        padding: pixels added at each side by reflection; LUT: 4.

    Raises:
        ValueError: for a size below 1 or a padding below 0; when called, for an image that is too small.
    """

    def __init__(self, *, size: int, padding: int = 0) -> None:
        if size < 1 or padding < 0:
            raise ValueError(f"view/random_crop: size is at least 1 and padding at least 0 (got {size} and {padding})")
        self.size, self.padding = size, padding

    def _places(self, sides: Sequence[int], draws: Draws) -> tuple[Tensor, Tensor]:
        """Rows and columns of the image that are taken."""
        found: list[Tensor] = []
        for side, unit in zip(sides, draws.named("random_crop").uniform(2)[0].tolist(), strict=True):
            room = side + 2 * self.padding - self.size
            if room < 0 or self.padding >= side:
                raise ValueError(
                    f"view/random_crop: a part of {self.size} pixels with padding={self.padding} does not fit into an "
                    f"image of {sides[0]}x{sides[1]}; put view/resize in front"
                )
            place = int(unit * (room + 1)) - self.padding + torch.arange(self.size)
            found.append(side - 1 - (side - 1 - place.abs()).abs())
        return found[0], found[1]

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (..., size, size)."""
        rows, columns = self._places(sample.shape[-2:], draws)
        return sample[..., rows, :][..., columns]

    def segments(self, classes: Tensor, sample: Tensor, draws: Draws) -> Tensor:
        """Classes of pixels (h, w): those of the same part, (size, size)."""
        return self(classes, draws)


@register("view/one_of")
class OneOf:
    """One of several operations, each as likely as the others (DeiT III's three, LUT).

    Args:
        ops: the operations.

    Raises:
        ValueError: for none.
    """

    def __init__(self, *, ops: Sequence[Callable[[Any, Draws], Any]]) -> None:
        if not ops:
            raise ValueError("view/one_of: ops is a list of at least one operation")
        self.ops = list(ops)

    def _chosen(self, draws: Draws) -> tuple[Callable[[Any, Draws], Any], Draws]:
        i = int(draws.named("one_of").integers(0, len(self.ops), 1))
        return self.ops[i], draws.named(f"one_of/{i}")

    def __call__(self, sample: Any, draws: Draws) -> Any:
        """What the chosen operation makes of the sample."""
        op, own = self._chosen(draws)
        return op(sample, own)

    def segments(self, classes: Tensor, sample: Any, draws: Draws) -> Tensor:
        """Classes, moved as the chosen operation moves them."""
        op, own = self._chosen(draws)
        return mover(op)(classes, sample, own)
