"""Where things move: a guide that looks at differences of frames, and a masker whose box follows them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.draws import Draws
from mmssl.parts.block_maskers import inside
from mmssl.parts.guided_maskers import scored
from mmssl.parts.maskers import check_ratio, fewest
from mmssl.registry import register
from mmssl.step import Look
from mmssl.types import Mask, Tokens, TokenSpec

_TIE = 1e-3  # of a slice's motion: boxes that hold as much of it are told apart by chance, and all in a clip alike


@register("guide/motion")
class Motion:
    """How much a tubelet's pixels change from frame to frame: motion out of the clip itself (for MGM's masks).

    Of each frame the mean absolute difference to the frame before and the one behind, where there are such, of the
    pixels of a tubelet; the mean over its frames. Motion vectors of a video's file are not read.

    Args:
        spec: sizes of the tokens, tubelets on a grid of (time, row, column).
        width: the encoder's width.

    Raises:
        ValueError: for tokens that are no tubelets.
    """

    def __init__(self, spec: TokenSpec, width: int) -> None:
        if spec.grid is None or len(spec.grid) != 3 or spec.cell is None:
            raise ValueError("guide/motion needs tubelets, the tokens of tokenizer/tubelet")
        self.frames = spec.cell[0]

    @torch.no_grad()
    def __call__(self, look: Look) -> Tensor:
        """Scores (b, n), zero where nothing moves."""
        tokens = look.tokens
        assert tokens.grid is not None
        pixels = tokens.raw.unflatten(1, tokens.grid).unflatten(-1, (self.frames, -1))
        clip = pixels.movedim(4, 2).flatten(1, 2)  # (b, time, row, column, values)
        change = (clip[:, 1:] - clip[:, :-1]).abs().mean(-1)
        around = F.pad(change, (0, 0, 0, 0, 1, 0)) + F.pad(change, (0, 0, 0, 0, 0, 1))
        around[:, 1:-1] /= 2
        return around.unflatten(1, (-1, self.frames)).mean(2).flatten(1)


@register("masker/moving_box")
class MovingBox:
    """Hides one box in each time slice, where most of the score is (Motion-Guided Masking, Fan et al. 2023).

    A clip has one size of box, of a random aspect ratio and at most int(ratio * n) of a slice's n tubelets. In each
    slice it lies where its score is greatest; of equal places one is drawn for the clip. Random tubelets are hidden
    beside it, so that exactly int(ratio * n) of every slice are.

    Args:
        ratio: share of each slice that is hidden, in [0, 1).
        aspect: smallest and greatest height over width; even in the logarithm.

    Raises:
        ValueError: for a ratio outside [0, 1), or aspects that do not ascend; when called, without a guide, for
            padding, or tokens that are not on a grid of time and space.
    """

    def __init__(self, *, ratio: float = 0.75, aspect: Sequence[float] = (0.75, 1.3333)) -> None:
        check_ratio(ratio)
        if len(aspect) != 2 or not 0.0 < aspect[0] <= aspect[1]:
            raise ValueError(f"masker.aspect has to be two ascending positive numbers (got {list(aspect)})")
        self.ratio, self.aspect = ratio, (aspect[0], aspect[1])

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        score, grid = scored(tokens, score, "masker/moving_box"), tokens.grid
        if grid is None or len(grid) != 3:
            raise ValueError(
                f"masker/moving_box needs tokens on a grid of (time, row, column), and these lie on {grid}"
            )
        slices, rows, columns = grid
        places = rows * columns
        hide = int(self.ratio * places)
        low, high = (math.log(value) for value in self.aspect)
        aspect = torch.exp(low + (high - low) * draws.named("aspect").uniform(1)[:, 0].double()).to(score.device)
        height = (hide * aspect).sqrt().round().long().clamp(max(-(-hide // columns), 1), rows)
        width = (hide // height).clamp(1, columns)
        top, left = self._corner(score.unflatten(1, grid), height, width, draws)
        tall, wide = (size.unsqueeze(1).expand(-1, slices) for size in (height, width))
        box = inside(top, tall, rows).unsqueeze(-1) & inside(left, wide, columns).unsqueeze(-2)
        noise = draws.named("rest").uniform(slices, places).to(score.device)
        order = noise + (~box.flatten(2)).to(noise.dtype)
        hidden = fewest(order.flatten(0, 1), hide).reshape(len(score), -1)
        return Mask(~hidden, hidden.unsqueeze(1), None, slices * (places - hide), slices * hide)

    @staticmethod
    def _corner(score: Tensor, height: Tensor, width: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """The first row and column of the box of each slice, (b, slices), where it holds most of (b, slices, h, w)."""
        b, slices, rows, columns = score.shape
        share = score.double() / score.double().sum((2, 3), keepdim=True).clamp(min=1e-12)
        total = F.pad(share.cumsum(2).cumsum(3), (1, 0, 1, 0))
        ends = []
        for axis, (size, side) in enumerate(((height, rows), (width, columns))):
            end = torch.arange(side, device=score.device) + size.unsqueeze(1)
            shape = (b, 1, side, 1) if axis == 0 else (b, 1, 1, side)
            ends.append((end.clamp(max=side).reshape(shape), (end > side).reshape(shape)))
        (bottom, low), (right, far) = ends
        below = total.gather(2, bottom.expand(-1, slices, -1, columns + 1))
        above = total[:, :, :-1]
        beside = right.expand(-1, slices, rows, -1)
        held = below.gather(3, beside) - above.gather(3, beside) - below[..., :-1] + above[..., :-1]
        held = held + _TIE * draws.named("tie").uniform(1, rows, columns).to(score.device)
        best = held.masked_fill(low | far, -torch.inf).flatten(2).argmax(2)
        return best // columns, best % columns
