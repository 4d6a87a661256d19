"""Predictors that convolve: cheap decoders over a grid or a sequence, where every place is there again."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec

_CONV: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@register("predictor/conv")
class Conv(nn.Module):
    """Grouped convolutions over all places, with noise where nothing was seen (data2vec 2.0, Baevski et al. 2022).

    Features go back to their places; the other places hold fresh normal noise in place of a learned token, and zeros in
    evaluation. Each layer is a convolution, a LayerNorm over channels without weights and a GELU, with a residual sum
    where widths allow; a linear map ends it. Class tokens are left out. Weights keep torch's own initialisation, as in
    the released code.

    Args:
        spec: sizes of the tokens: a grid of one to three axes, or a sequence.
        width: the encoder's width; `groups` has to divide it.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        dim: width of the layers, which `groups` has to divide; null for the encoder's. Images: 768, audio: 384.
        depth: number of layers. Images: 6, audio: 4.
        kernel: side of the convolutions, odd. Images: 3, audio: 7.
        groups: groups of channels that do not see one another.
        noise: standard deviation of the noise.

    Raises:
        ValueError: for groups that do not divide both widths, or an even kernel; when called, for packed tokens.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        dim: int | None = None,
        depth: int = 6,
        kernel: int = 3,
        groups: int = 16,
        noise: float = 0.01,
    ) -> None:
        super().__init__()
        dim = dim or width
        if width % groups or dim % groups:
            raise ValueError(
                f"predictor.groups={groups} has to divide the encoder's width {width} and predictor.dim={dim}; choose "
                f"a divisor of {math.gcd(width, dim)}"
            )
        if kernel % 2 == 0:
            raise ValueError(f"predictor.kernel has to be odd, so that places stay where they are (got {kernel})")
        make = _CONV[1 if spec.grid is None else len(spec.grid)]
        self.noise = noise
        self.layers = nn.ModuleList(
            make(dim if i else width, dim, kernel, padding=kernel // 2, groups=groups) for i in range(depth)
        )
        self.head = nn.Linear(dim if depth else width, out)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        x = self.canvas(seen, query)
        grid = (x.shape[1],) if seen.grid is None else seen.grid
        x = x.transpose(1, 2).unflatten(2, grid)
        for layer in self.layers:
            y = layer(x).movedim(1, -1)
            y = F.gelu(F.layer_norm(y, y.shape[-1:]).movedim(-1, 1))
            x = x + y if x.shape[1] == y.shape[1] else y
        x = x.flatten(2).transpose(1, 2)
        return self.head(x.gather(1, query.index.unsqueeze(-1).expand(-1, -1, x.shape[-1])))

    def canvas(self, seen: Tokens, query: Tokens) -> Tensor:
        """All places of each row, (r, n, width): features where the encoder saw, noise elsewhere."""
        if seen.packed:
            raise ValueError("predictor/conv needs tokens on a grid or in a sequence, not a packed batch")
        assert seen.x is not None
        r, _, width = seen.x.shape
        n = seen.length if seen.grid is not None else max(seen.length, query.length)
        empty = seen.x.new_zeros(r, n, width)
        if self.training:
            empty.normal_(std=self.noise)  # from torch's generator, as dropout is
        index, x = seen.index.unsqueeze(-1).expand(-1, -1, width), seen.x
        if seen.valid is not None:  # padding stands at places that were not seen
            x = torch.where(seen.valid.unsqueeze(-1), x, empty.gather(1, index))
        return empty.scatter(1, index, x)
