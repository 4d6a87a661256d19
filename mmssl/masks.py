"""Where tokens are hidden, and the places that follow from it. Imports torch only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """Where tokens (or edges) are hidden. Several masks per sample are several rows; a packed batch is one row.

    Args:
        visible: what the encoder may see, (r, n) bool.
        targets: what is asked for, (r, k, n) bool: k = 1 for a masked autoencoder, 4 blocks for I-JEPA.
        row: the sample each row belongs to, (r,) int64; None where there is one mask per sample, in order.
        visible_count: number of visible tokens of every row, a plain int where the masker knows it: dropping tokens is
            then one gather, without waiting for the device.
        target_count: number of tokens of every target block, likewise.
        loss: which of `targets` a loss is taken over, (r, k, n) bool; None for all. The others are asked for without
            counting (VideoMAE V2's decoder).
        source: for tokens whose value is replaced by that of another, the other's flat place in the global batch
            (ranks in order), (r, n) int64; -1 elsewhere (GraphMAE's noise nodes, VIME's swapped cells).
        elements: where only some raw values of a token are hidden, which: (r, n, v) bool. Losses are then taken over
            these values of the tokens asked for (TERA's time spans and frequency bands).
    """

    visible: Tensor
    targets: Tensor
    row: Tensor | None = None
    visible_count: int | None = None
    target_count: int | None = None
    loss: Tensor | None = None
    source: Tensor | None = None
    elements: Tensor | None = None

    @property
    def hidden(self) -> Tensor:
        """What the encoder may not see, (r, n) bool."""
        return ~self.visible

    def invert(self) -> Mask:
        """The complement: visible and hidden change places; what was visible is asked for."""
        n = self.visible.shape[1]
        count = None if self.visible_count is None else n - self.visible_count
        return Mask(~self.visible, self.visible.unsqueeze(1), self.row, count, self.visible_count)

    @cached_property
    def visible_index(self) -> tuple[Tensor, Tensor | None]:
        """Places of the visible tokens in ascending order, (r, s) int64, and which of them are padding's opposite."""
        return places(self.visible, self.visible_count)

    @cached_property
    def target_index(self) -> tuple[Tensor, Tensor | None]:
        """Places of the target tokens in ascending order, (r, k, t) int64, and their validity."""
        return places(self.targets, self.target_count)


def places(flags: Tensor, count: int | None) -> tuple[Tensor, Tensor | None]:
    """Indices of the True entries of the last axis, ascending, padded to the longest row.

    Args:
        flags: (..., n) bool.
        count: number of True in every row where it is known; else the device is asked and rows are padded.

    Returns:
        index (..., count) int64 and valid (..., count) bool, None where no row is padded.
    """
    order = torch.argsort(flags.to(torch.uint8), dim=-1, descending=True, stable=True)
    if count is not None:
        return order[..., :count], None
    per_row = flags.sum(-1)
    longest = int(per_row.max())
    valid = torch.arange(longest, device=flags.device) < per_row.unsqueeze(-1)
    return order[..., :longest], None if bool(valid.all()) else valid


def ordinal(score: Tensor, descending: bool = False) -> Tensor:
    """The place of each number in the order of its row (last axis), from 0, int64; equal ones keep their order."""
    order = torch.argsort(score, dim=-1, descending=descending, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)  # cheaper than to sort the order once more
