"""A vision transformer that leaves out, while it trains, what its other tokens say too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.nn.positions import SinCos
from mmssl.parts.encoders.vit import ViT, walk
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


def redundancy(x: Tensor) -> Tensor:
    """The mean cosine of each token with the others of its sample, (b, n) of (b, n, d)."""
    unit = F.normalize(x, dim=-1)
    return ((unit * unit.sum(1, keepdim=True)).sum(-1) - 1) / max(x.shape[1] - 1, 1)


@register("encoder/pruned")
class Pruned(ViT):
    """`encoder/vit` that drops its most redundant tokens on the way (Hybrid Distillation, Shi et al. 2023).

    Of L blocks and k shares, the i-th drop stands before block int(i L / k): the tokens that are most alike to the
    others, by the mean cosine, go. Layers that are tapped are cut to the tokens that are left at the end, so that a
    term at `kept` finds all of them. When it does not train, all tokens stay.

    Args:
        spec: sizes of the tokens.
        dim: width.
        depth: number of blocks.
        heads: attention heads; they have to divide the width.
        drop: shares of the tokens then left that go; of n tokens n - int(n share) stay.
        position: position embedding, called as (spec, dim).
        mlp_ratio: hidden width of the MLPs over the width.
        qkv_bias: whether queries, keys and values have biases.
        norm_eps: epsilon of the layer norms.
        class_token: whether a class token goes in front; it stays.
        drop_path: stochastic depth at the last block, rising linearly from 0.
        layer_scale: initial value of layer-scale, None for none.
        final_norm: whether a LayerNorm ends the encoder.
        init: `xavier`, `trunc_normal` or `beit`, as in encoder/vit.

    Raises:
        ValueError: for shares outside [0, 1), or more of them than blocks; when called, for padding.
    """

    def __init__(
        self,
        spec: TokenSpec,
        *,
        dim: int,
        depth: int,
        heads: int,
        drop: Sequence[float] = (0.3, 0.3, 0.3),
        position: Callable[[TokenSpec, int], nn.Module] = SinCos,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        class_token: bool = True,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        final_norm: bool = True,
        init: str = "xavier",
    ) -> None:
        super().__init__(
            spec, dim=dim, depth=depth, heads=heads, position=position, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias,
            norm_eps=norm_eps, class_token=class_token, drop_path=drop_path, layer_scale=layer_scale,
            final_norm=final_norm, init=init,
        )  # fmt: skip
        if not 0 < len(drop) <= depth or not all(0.0 <= share < 1.0 for share in drop):
            raise ValueError(
                f"encoder.drop has to be shares in [0, 1), one to {depth} of them, one for each drop (got {list(drop)})"
            )
        self.drop = {i * depth // len(drop): share for i, share in enumerate(drop)}

    def left(self, n: int) -> int:
        """How many of n tokens the encoder gives."""
        for share in self.drop.values() if self.training else ():
            n -= int(n * share)
        return n

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes tokens; see encoder/vit. While it trains only those that are left come out, in their order."""
        if not self.training:
            return super().forward(tokens, taps)
        if tokens.valid is not None or tokens.packed:
            raise ValueError("encoder/pruned needs samples of equal length, without padding; use encoder/vit")
        x, count, _ = self._placed(tokens)
        kept, stops = dict[str, Tensor](), [*self.drop, self.depth]
        place = torch.arange(tokens.index.shape[1], device=x.device).expand_as(tokens.index)
        for i, (start, share) in enumerate(self.drop.items()):
            n = place.shape[1]
            like = redundancy(x[:, count:].detach())
            stay = torch.argsort(like, dim=1, stable=True)[:, : n - int(n * share)].sort(1).values
            place = place.gather(1, stay)
            rows = F.pad(stay + count, (count, 0))
            rows[:, :count] = torch.arange(count, device=x.device)
            x, kept = _pick(x, rows), {name: _pick(tap, rows) for name, tap in kept.items()}
            x, found = walk(self.blocks[start : stops[i + 1]], x, taps, first=start)  # pyright: ignore[reportArgumentType]
            kept |= found
        x = self.norm(x)
        return tokens.take(place).but(x=x[:, count:], prefix=x[:, :count] if count else None, taps=kept)


def _pick(x: Tensor, rows: Tensor) -> Tensor:
    """Some tokens of each sample."""
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
