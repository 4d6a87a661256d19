"""Latent regression (CAE): hidden tokens are answered through latents, which have a target of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mmssl.nn.init import xavier_
from mmssl.nn.mlp import LeanMlp
from mmssl.nn.positions import SinCos
from mmssl.parts.encoders.vit import key_mask
from mmssl.parts.regions import counted, request
from mmssl.parts.terms import Loss, Predict
from mmssl.plan import Plan
from mmssl.registry import register
from mmssl.step import Step
from mmssl.types import Tokens, TokenSpec

Position = Callable[[TokenSpec, int], nn.Module]
_norm = partial(nn.LayerNorm, eps=1e-6)


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"heads={heads} does not divide the encoder's width {width}; choose a divisor of {width}")


class RegressorBlock(nn.Module):
    """CAE's block: queries read visible tokens and themselves, then are normalised, then pass an MLP.

    Keys have no bias: it would cancel in the softmax.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k, self.norm_v, self.norm = _norm(dim), _norm(dim), _norm(dim), _norm(dim)
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.proj, self.mlp = nn.Linear(dim, dim), Mlp(dim, int(dim * mlp_ratio))
        self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, memory: Tensor, place: Tensor, known: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (r, t, dim) at `place` read them and the memory (r, s, dim) at `known`."""
        every = torch.cat([memory, x], 1)
        keys = self.norm_k(every + torch.cat([known, place], 1))

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.q(self.norm_q(x + place))), split(self.k(keys)), split(self.v(self.norm_v(every)))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        # the norm's output takes the place of the stream
        x = self.norm(x + self.drop_path(self.gamma1 * self.proj(read)))
        return x + self.drop_path(self.gamma2 * self.mlp(x))


@register("predictor/regressor")
class Regressor(nn.Module):
    """Mask tokens become latents by cross-attention to visible tokens and one another (CAE, Chen et al. 2022).

    Visible tokens are read as the encoder gave them and stay so; class tokens are left out. The answer is normalised.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width, which is also this one's.
        out: width of the answer; a linear map ends it where this is not the encoder's.
        taps: layers that the encoder can give; none is read.
        depth: number of blocks.
        heads: attention heads; they have to divide the encoder's width.
        position: position embedding, called as (spec, width).
        mlp_ratio: hidden width of the MLPs over the width.
        layer_scale: initial value of layer-scale.
        drop_path: stochastic depth at the last block, rising linearly from 0.

    Raises:
        ValueError: when heads do not divide the width.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        depth: int = 4,
        heads: int = 12,
        position: Position = SinCos,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        _check_heads(width, heads)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.position = position(spec, width)
        self.blocks = nn.ModuleList(
            RegressorBlock(width, heads, mlp_ratio, layer_scale, drop_path * i / max(depth - 1, 1))
            for i in range(depth)
        )
        self.norm = _norm(width)
        self.head = nn.Identity() if out == width else nn.Linear(width, out)
        for part in (self.blocks, self.head):
            xavier_(part)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Latents (r, t, out) at the places of the query."""
        assert seen.x is not None
        x = self.mask_token.to(seen.x.dtype).expand(*query.index.shape, -1)
        place, known = self.position(query).to(x.dtype), self.position(seen).to(x.dtype)
        mask = None
        if seen.valid is not None or query.valid is not None:
            flags = [torch.ones_like(t.index, dtype=torch.bool) if t.valid is None else t.valid for t in (seen, query)]
            mask = torch.cat(flags, 1)[:, None, None, :]
        for block in self.blocks:
            x = block(x, seen.x, place, known, mask)
        return self.head(self.norm(x))


@register("predictor/blocks")
class Blocks(nn.Module):
    """Self-attention blocks over seen tokens alone; it answers only where there are features (CAE's decoder).

    Args:
        spec: sizes of the tokens.
        width: the encoder's width, which is also this one's.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        depth: number of blocks.
        heads: attention heads; they have to divide the encoder's width.
        position: position embedding, called as (spec, width).
        mlp_ratio: hidden width of the MLPs over the width.
        layer_scale: initial value of layer-scale, null for none.
        drop_path: stochastic depth at the last block, rising linearly from 0.

    Raises:
        ValueError: when heads do not divide the width.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        depth: int = 4,
        heads: int = 12,
        position: Position = SinCos,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = 0.1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        _check_heads(width, heads)
        self.position = position(spec, width)
        self.blocks = nn.ModuleList(
            Block(
                width, heads, mlp_ratio, qkv_bias=True, init_values=layer_scale,
                drop_path=drop_path * i / max(depth - 1, 1), mlp_layer=LeanMlp,
                norm_layer=_norm,  # pyright: ignore[reportArgumentType]  # timm declares a class but calls it: any maker does
            )
            for i in range(depth)
        )  # fmt: skip
        self.norm, self.head = _norm(width), nn.Linear(width, out)
        for part in (self.blocks, self.head):
            xavier_(part)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query, all of which must be among the seen tokens."""
        assert seen.x is not None
        x, mask = seen.x + self.position(seen).to(seen.x.dtype), key_mask(seen, 0)
        for block in self.blocks:
            x = block(x) if mask is None else block(x, attn_mask=mask)
        return self.head(seen.but(x=self.norm(x)).at(query))


class Through(nn.Module):
    """A regressor, and a decoder that sees its latents alone."""

    def __init__(
        self,
        regressor: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.regressor, self.decoder = regressor(spec, width, width, taps), decoder(spec, width, out, taps)
        self.taps = (*getattr(self.regressor, "taps", ()), *getattr(self.decoder, "taps", ()))

    def decode(self, latent: Tensor, query: Tokens) -> Tensor:
        """Answers (r, t, out) from latents (r, t, width) at the places of the query."""
        return self.decoder(query.but(x=latent), query)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        return self.decode(self.regressor(seen, query), query)


@register("term/regress")
class Regress(Predict):
    """Predicts a target of hidden tokens from latents, and latents from visible tokens (CAE).

    The decoder sees the latents and nothing else, so that the encoder need not know of its task. The latents have a
    target of their own: for CAE `target/seen`, what the encoder makes of the hidden tokens alone.

    Args:
        plan: sizes and twins.
        regressor: from visible tokens to latents of the encoder's width; called as a predictor is.
        predictor: the decoder, from latents to answers, likewise.
        target: called as (plan, look), gives values for the hidden tokens.
        loss: of answers, one number per token.
        latent: the latents' target, called as (plan, look).
        latent_loss: of latents, one number per token.
        latent_weight: factor of the latents' part; the term's value holds it.
        normalize: applied to targets of answers, called as (width), for instance `norm/layer`; null for none.
        look: which look.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look, or a target of latents that is not as wide as they are.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        regressor: Callable[..., nn.Module],
        predictor: Callable[..., nn.Module],
        target: Callable[..., nn.Module],
        loss: Loss,
        latent: Callable[..., nn.Module],
        latent_loss: Loss,
        latent_weight: float = 2.0,
        normalize: Callable[[int], nn.Module] | None = None,
        look: str = "x",
        weight: float = 1.0,
    ) -> None:
        super().__init__(
            plan, target=target, loss=loss, predictor=partial(Through, regressor, predictor), normalize=normalize,
            look=look, weight=weight,
        )  # fmt: skip
        self.latent, self.latent_loss, self.latent_weight = latent(plan, look), latent_loss, latent_weight
        request(plan, self.looks, self.latent)
        wide: Any = self.latent.dim
        if wide != plan.dims[look]:
            raise ValueError(f"latents are {plan.dims[look]} wide, as the encoder is, but their target is {wide}")

    def count(self, step: Step) -> Tensor:
        """What `forward` divides by, without encoding anything."""
        return super().count(step).repeat(2)

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sums of both losses over the hidden tokens, the latents' weighted, and the number of tokens of each."""
        look, through = step[self.looks[0]], self.predictor
        assert isinstance(through, Through)
        query, seen = self.query(look, "hidden")
        latent = through.regressor(seen, query)
        sums, count = self._region(step, [(query, through.decode(latent, query))])
        held, _ = self._reduced(self.latent_loss(latent, self.latent(look, query)), counted(query), query)
        self.signals["latent"] = (held / count.clamp(min=1)).detach()
        return torch.stack([sums, self.latent_weight * held]), torch.stack([count, count])
