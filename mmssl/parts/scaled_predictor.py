"""A decoder that reads one layer of the encoder and answers on a finer or coarser grid than that of the tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from mmssl.nn.patches import cut, fold
from mmssl.parts.predictors import Transformer
from mmssl.parts.seen_targets import layer_name
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("predictor/scaled")
class Scaled(Transformer):
    """MAE's decoder on one layer of the encoder, whose answers are scaled up or down (LocalMIM, Wang et al. 2023).

    Mask tokens are everywhere where nothing was seen. Up by 2 or 4, the decoded map goes through deconvolutions of side
    and stride 2, to half the width each, with a LayerNorm over channels and a GELU between them; down, it is averaged
    over squares of tokens. A 1 x 1 convolution ends it, so that a token answers with scale x scale places.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer, of all places of a token.
        taps: layers that the encoder can give.
        layer: which layer: a name, or the share of blocks below it, which gets a LayerNorm of its own; null for the
            encoder's output, which has one.
        scale: places per token and axis: 4, 2 or 1; or 1/2 where two by two tokens share an answer.
        dim: width of the decoder.
        depth: number of blocks.
        heads: attention heads.

    Raises:
        ValueError: for a layer that the encoder does not have, another scale, or one that does not fit.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        layer: str | float | None = None,
        scale: float = 1,
        dim: int = 256,
        depth: int = 1,
        heads: int = 8,
    ) -> None:
        super().__init__(spec, width, out, taps, dim=dim, depth=depth, heads=heads)
        if scale not in (4, 2, 1, 0.5):
            raise ValueError(f"predictor.scale has to be 4, 2, 1 or 0.5 (got {scale:g})")
        places = int(max(scale, 1)) ** 2
        if out % places or spec.grid is None or len(spec.grid) != 2 or (scale < 1 and any(n % 2 for n in spec.grid)):
            raise ValueError(
                f"predictor.scale={scale:g} does not fit a target of {out} values on the grid {spec.grid}: it needs a "
                "target of scale x scale cells per token, and half a scale an even number of tokens on both axes"
            )
        self.taps = () if layer is None else (layer_name(layer, taps),)
        self.before = nn.LayerNorm(width, eps=1e-6) if self.taps else nn.Identity()
        self.grid, self.down = spec.grid, scale < 1
        steps, deconvolution = list[nn.Module](), partial(nn.ConvTranspose2d, kernel_size=2, stride=2)
        for level in range(places.bit_length() // 2):
            steps += [LayerNorm2d(dim >> level, eps=1e-6), nn.GELU()] if level else []
            steps.append(deconvolution(dim >> level, dim >> (level + 1)))
        self.head = nn.Sequential(*steps, nn.Conv2d(dim >> (places.bit_length() // 2), out // places, 1))

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        if self.taps:
            layer = self.before(seen.taps[self.taps[0]])
            count = seen.index.shape[1]
            seen = seen.but(x=layer[:, -count:], prefix=layer[:, :-count] if layer.shape[1] > count else None)
        if not self.down:
            return self._cells(self.norm(self._decode(seen, query, query.index.shape[1])))
        x = self._pooled(seen)
        return x.gather(1, query.index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

    def _cells(self, x: Tensor) -> Tensor:
        """Tokens (r, t, dim) to their places, (r, t, out); deconvolutions see one token each."""
        maps = self.head(x.mT.unsqueeze(-1))
        return cut(maps, (maps.shape[3], maps.shape[3]))

    def _pooled(self, seen: Tokens) -> Tensor:
        """Answers at all places, (r, n, out), which two by two tokens share.

        Raises:
            ValueError: for rows that are padded.
        """
        if seen.valid is not None:
            raise ValueError("predictor.scale=0.5 needs masks that leave equally many tokens; use masker/random")
        r, n = len(seen.index), self.grid[0] * self.grid[1]
        hidden = torch.ones(r, n, dtype=torch.bool, device=seen.index.device).scatter_(1, seen.index, False)
        # seen places in front, so that what follows them are the others in ascending order
        order = torch.argsort(hidden.to(torch.uint8), dim=1, stable=True)[:, seen.index.shape[1] :]
        rest: Any = Tokens(order[..., None][..., :0].float(), self._where(order), order, grid=self.grid)
        x = self.norm(self._decode(seen, rest, n))
        place = torch.cat([seen.index, order], 1).unsqueeze(-1).expand_as(x)
        maps = fold(torch.zeros_like(x).scatter(1, place, x), self.grid, (1, 1))
        answers = self.head(nn.functional.avg_pool2d(maps, 2))
        return answers.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(2).mT

    def _where(self, index: Tensor) -> Tensor:
        """Row and column of places."""
        return torch.stack([index // self.grid[1], index % self.grid[1]], -1).float()
