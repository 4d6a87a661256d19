"""A second kind of image made of the first."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.data.segments import unmoved
from mmssl.draws import Draws
from mmssl.registry import register


@register("view/gradients")
class Gradients:
    """Horizontal and vertical gradients of the luminance, as a second sensor of the same scene; draws nothing.

    Central differences (right minus left, lower minus upper, over 2), edges repeated. 127.5 is added and the sum
    rounded, which uses the whole range of uint8: no gradient is 128. The luminance of three channels is theirs, that of
    any other number their mean.
    """

    segments = unmoved

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns uint8 (2, h, w): along rows of pixels, along columns."""
        if sample.shape[0] == 3:
            weight = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
            light = (sample * weight).sum(0)
        else:
            light = sample.float().mean(0)
        wide = torch.nn.functional.pad(light[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
        across, down = wide[1:-1, 2:] - wide[1:-1, :-2], wide[2:, 1:-1] - wide[:-2, 1:-1]
        return (torch.stack([across, down]) / 2 + 127.5).round().clamp(0, 255).to(torch.uint8)
