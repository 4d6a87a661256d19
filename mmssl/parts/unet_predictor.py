"""A decoder that climbs from the coarsest map of a convolutional encoder to the finest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from mmssl.nn.norm import BatchNorm
from mmssl.nn.patches import cut
from mmssl.nn.sparse import Active, SparseBatchNorm
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


class UpBlock(nn.Module):
    """Twice the size by a deconvolution, then two convolutions with batch norm."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), BatchNorm(width), nn.ReLU6(),
            nn.Conv2d(width, out, 3, padding=1, bias=False), BatchNorm(out),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(b, width, h, w) to (b, out, 2 h, 2 w)."""
        return self.conv(self.up(x))


@register("predictor/unet")
class UNet(nn.Module):
    """SparK's decoder (Tian et al. 2023): maps of four sizes are filled in and joined on the way up to pixels.

    Each map is normalised over active places, gets a learned vector where nothing was seen, and a convolution to the
    decoder's width, which halves with every doubling of the size.

    Args:
        spec: sizes of the tokens, whose side is a power of two.
        width: the encoder's width.
        out: width of the answer: the raw values of a token.
        taps: maps that the encoder can give, finest first, and how wide each is.
        dim: width of the decoder at the coarsest map.
        norm: of maps: `batch`, as ResNets have, or `layer`, as ConvNeXt.

    Raises:
        ValueError: for an encoder without maps, tokens or a target that do not fit, or another word.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: Mapping[str, int] | tuple[str, ...],
        *,
        dim: int = 768,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if not isinstance(taps, Mapping):
            raise ValueError(
                "predictor/unet reads maps of several sizes, and this encoder has none; see encoder/sparse"
            )
        if norm not in ("batch", "layer"):
            raise ValueError(f"predictor.norm has to be 'batch' or 'layer' (got {norm!r})")
        side = (spec.cell or (0,))[0]
        levels = side.bit_length() - 1
        if spec.grid is None or side != 2**levels or out % side**2 or levels < len(taps) or dim % 2**levels:
            raise ValueError(
                f"predictor/unet doubles maps up to pixels: it needs tokens whose side is a power of two, of 16 at "
                f"least, raw values as its target, and a width that this side divides (got {spec.cell}, {out}, {dim})"
            )
        self.grid, self.side = spec.grid, side
        self.taps, self.active = tuple(taps)[::-1], Active()
        widths = list(taps.values())[::-1]
        self.norms = nn.ModuleList(self._norm(norm, wide) for wide in widths)
        self.fill = nn.ParameterList(torch.empty(1, wide, 1, 1) for wide in widths)
        self.join = nn.ModuleList(
            nn.Identity() if i == 0 and wide == dim else nn.Conv2d(wide, dim >> i, 3 if i else 1, padding=int(i > 0))
            for i, wide in enumerate(widths)
        )
        self.blocks = nn.ModuleList(UpBlock(dim >> i, dim >> (i + 1)) for i in range(levels))
        self.head = nn.Conv2d(dim >> levels, out // side**2, 1)
        for vector in self.fill:
            nn.init.trunc_normal_(vector, std=0.02, a=-0.02, b=0.02)
        for part in (*self.blocks.modules(), self.head):
            if isinstance(part, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, nn.Conv2d):
                nn.init.trunc_normal_(part.weight, std=0.02)
            if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)) and part.bias is not None:
                nn.init.zeros_(part.bias)

    def _norm(self, norm: str, width: int) -> nn.Module:
        if norm == "layer":
            return LayerNorm2d(width, eps=1e-6)
        made: Any = SparseBatchNorm(width)
        made.active = self.active
        return made

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        flags = torch.ones_like(seen.index, dtype=torch.bool) if seen.valid is None else seen.valid
        self.active.say(flags.reshape(-1, 1, *self.grid))
        x = self.blocks[0](self._dense(0, seen))
        for i, block in enumerate(self.blocks[1:], start=1):
            x = block(x + self._dense(i, seen) if i < len(self.taps) else x)
        answer = cut(self.head(x), (self.side, self.side))
        return answer.gather(1, query.index.unsqueeze(-1).expand(-1, -1, answer.shape[-1]))

    def _dense(self, i: int, seen: Tokens) -> Tensor:
        """The i-th map, coarsest first, without holes and of the decoder's width."""
        size = (self.grid[0] << i, self.grid[1] << i)
        x = self.norms[i](seen.taps[self.taps[i]].mT.unflatten(2, size))
        flags = self.active.at(size)
        assert flags is not None
        return self.join[i](torch.where(flags, x, self.fill[i].to(x.dtype)))
