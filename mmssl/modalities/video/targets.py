"""Targets made of the frames that a tubelet covers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmssl.parts.targets import standardised
from mmssl.registry import register
from mmssl.step import Look, Plan
from mmssl.types import Tokens


def chosen_frames(total: int, count: int) -> list[int]:
    """`count` frames spread from the first to the last of `total`, truncated: 8 of 16 are 0, 2, ... 12 and 15."""
    return torch.linspace(0, total - 1, count, device="cpu").long().tolist()


@register("target/frames")
class Frames(nn.Module):
    """Pixels of tubelets, of all their frames or of some (VideoMAE; MAE-ST predicts 8 of 16 frames).

    Where some are chosen, they are spread from the first to the last of the clip, at places truncated to whole numbers;
    so each tubelet owns equally many, and they lie within it.

    Args:
        plan: sizes.
        look: the look whose tokens are meant.
        per_tubelet: frames of each tubelet that are predicted (MAE-ST: 1 of 2); null for all.
        normalize: `joint`: each token is standardised by mean and unbiased variance over all its values, with 1e-6
            added to the variance (MAE, MAE-ST); `channel`: each colour of each token on its own, on pixels in [0, 1],
            with 1e-6 added to the deviation (VideoMAE); `none`.
        changes: whether, once normalised, every frame of a tubelet but its first becomes what it differs from the first
            in (HiCMAE).

    Raises:
        ValueError: for an unknown `normalize`, tokens that are no tubelets, or more frames than a tubelet has.
    """

    offsets: Tensor

    def __init__(
        self, plan: Plan, look: str, *, per_tubelet: int | None = None, normalize: str = "joint", changes: bool = False
    ) -> None:
        super().__init__()
        spec = plan.specs[look]
        if normalize not in ("joint", "channel", "none"):
            raise ValueError(f"target.normalize has to be 'joint', 'channel' or 'none' (got {normalize!r})")
        if spec.grid is None or len(spec.grid) != 3 or spec.cell is None or spec.channels is None:
            raise ValueError("target/frames needs tubelets, the tokens of tokenizer/tubelet; use target/raw")
        slices, tubelet = spec.grid[0], spec.cell[0]
        own = tubelet if per_tubelet is None else per_tubelet
        if not 1 <= own <= tubelet:
            raise ValueError(
                f"target.per_tubelet={per_tubelet}: a tubelet has {tubelet} frames (tokenizer.tubelet), so choose 1 to "
                f"{tubelet}, or null for all"
            )
        self.normalize, self.tubelet, self.channels, self.own = normalize, tubelet, spec.channels, own
        self.changes = changes
        self.places = spec.grid[1] * spec.grid[2]
        self.dim = self.own * math.prod(spec.cell[1:]) * spec.channels
        frames = torch.tensor(chosen_frames(slices * tubelet, slices * own)).reshape(slices, self.own)
        self.register_buffer("offsets", frames - tubelet * torch.arange(slices).unsqueeze(1), persistent=False)

    def _chosen(self, query: Tokens) -> Tensor:
        """Raw values of the chosen frames of each token, (r, t, own * p * p * c)."""
        if self.own == self.tubelet:
            return query.raw
        frames = query.raw.unflatten(-1, (self.tubelet, -1))
        offsets = self._offsets(query).unsqueeze(-1).expand(-1, -1, -1, frames.shape[-1])
        return frames.gather(2, offsets).flatten(2)

    def _offsets(self, query: Tokens) -> Tensor:
        """Places of the chosen frames within each tubelet, (r, t, own)."""
        return self.offsets[query.index // self.places]

    def _scale(self, look: Look) -> Tensor:
        """Standard deviation per channel that the tokenizer divided pixels in [0, 1] by, (c,)."""
        return look.network.tokenizer.std.flatten() / 255.0

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Values of the tokens asked for, (r, t, own * p * p * c)."""
        values = self._normalized(look, query)
        return self._shifted(values, -1.0) if self.changes else values

    def _normalized(self, look: Look, query: Tokens) -> Tensor:
        values = self._chosen(query)
        if self.normalize == "none":
            return values
        if self.normalize == "joint":
            return standardised(values)
        # pixels in [0, 1] up to the dataset's mean, which the subtraction takes away
        pixels = values.unflatten(-1, (-1, self.channels)) * self._scale(look)
        variance, mean = torch.var_mean(pixels, dim=-2, keepdim=True)
        return ((pixels - mean) / (variance.sqrt() + 1e-6)).flatten(-2)

    def _shifted(self, values: Tensor, factor: float) -> Tensor:
        """Values whose frames but the first have a multiple of the first one added."""
        frames = values.unflatten(-1, (self.own, -1))
        first = frames[..., :1, :]
        return torch.cat([first, frames[..., 1:, :] + factor * first], -2).flatten(-2)

    def restore(self, query: Tokens, prediction: Tensor) -> Tensor:
        """Predictions in the units of raw values, for pictures: undoes the standardisation with the tokens' own.

        Frames that are not predicted show the nearest one of the tubelet that is.
        """
        values = self._chosen(query)
        prediction = self._shifted(prediction, 1.0) if self.changes else prediction
        if self.normalize == "joint":
            variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
            prediction = prediction * torch.sqrt(variance + 1e-6) + mean
        elif self.normalize == "channel":
            deviation, mean = torch.std_mean(values.unflatten(-1, (-1, self.channels)), dim=-2, keepdim=True)
            prediction = (prediction.unflatten(-1, (-1, self.channels)) * deviation + mean).flatten(-2)
        if self.own == self.tubelet:
            return prediction
        frames = prediction.unflatten(-1, (self.own, -1))
        every = torch.arange(self.tubelet, device=prediction.device)
        nearest = (self._offsets(query).unsqueeze(-2) - every.unsqueeze(-1)).abs().argmin(-1)
        return frames.gather(2, nearest.unsqueeze(-1).expand(-1, -1, -1, frames.shape[-1])).flatten(2)
