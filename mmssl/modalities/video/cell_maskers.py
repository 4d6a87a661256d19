"""A masker that thins out what another one hides: which tubelets the decoder is asked for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.plan import Masker
from mmssl.registry import register
from mmssl.types import Mask, Tokens


@register("masker/running_cell")
class RunningCell:
    """Asks the decoder for part of the tubelets, by cells of 2 x 2 that run with time (VideoMAE V2, Wang et al. 2023).

    What the encoder sees is another masker's affair. Of the four places of a cell int(4 ratio) are left out in each
    slice, one place further on in the next. The decoder is asked for all others, also those that the encoder saw; the
    loss counts those that were hidden.

    Args:
        masker: says what the encoder sees.
        ratio: share of the places that the decoder is not asked for, in [0, 1).

    Raises:
        ValueError: for a share outside [0, 1); when called, for tokens without a grid of (time, row, column) whose rows
            and columns are even.
    """

    def __init__(self, *, masker: Masker, ratio: float = 0.5) -> None:
        if not 0.0 <= ratio < 1.0:
            raise ValueError(
                f"masker.ratio is the share of places that the decoder is not asked for, in [0, 1) (got {ratio:g}); "
                "what the encoder does not see is masker.masker.ratio"
            )
        self.masker, self.left_out = masker, int(4 * ratio)

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """As the other masker, with other targets."""
        grid = tokens.grid
        if grid is None or len(grid) != 3 or grid[1] % 2 or grid[2] % 2 or tokens.packed:
            raise ValueError(
                "masker/running_cell needs tokens on a grid of (time, row, column) with even rows and columns, and "
                f"these lie on {grid}; change data.size or tokenizer.patch"
            )
        mask = self.masker(tokens, draws.named("encoder"), progress, score)
        asked = self.asked(grid, draws.named("cell").integers(0, 4).to(mask.visible.device)).flatten(1)
        asked = asked if mask.row is None else asked[mask.row]
        if tokens.valid is not None:
            asked = asked & (tokens.valid if mask.row is None else tokens.valid[mask.row])
        count = asked.shape[1] * (4 - self.left_out) // 4 if tokens.valid is None else None
        loss = asked & mask.targets.any(1)
        return replace(mask, targets=asked.unsqueeze(1), target_count=count, loss=loss.unsqueeze(1))

    def asked(self, grid: tuple[int, ...], start: Tensor) -> Tensor:
        """Which places the decoder is asked for, (b, *grid) bool; the cells of each sample start at 0 to 3, (b,)."""
        device = start.device
        slices, rows, columns = (torch.arange(n, device=device) for n in grid)
        place = (rows % 2 * 2).unsqueeze(1) + columns % 2
        turn = place + (start[:, None, None, None] + 1 + slices[:, None, None])
        return turn % 4 >= self.left_out
