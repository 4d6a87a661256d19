"""Two streams made one: tokens of the one read those of the other; and the term that trains it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from mmssl.parts.encoders.alibi import DistanceBias
from mmssl.registry import register
from mmssl.step import Look, Plan, Step
from mmssl.types import Tokens


class FusionBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each behind a LayerNorm.

    One norm serves both sides of the cross-attention; only the maps out of attention and of the MLP have biases.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = norm(dim), norm(dim), norm(dim)
        self.attn = Attention(dim, heads, qkv_bias=False)
        self.query = nn.Linear(dim, dim, bias=False)
        self.memory = nn.Linear(dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def cross(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """What x (b, n, dim) reads of memory (b, m, dim) under a bias (b, heads, n, m)."""
        query, (key, value) = self.query(x), self.memory(memory).chunk(2, -1)
        split = [y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (query, key, value)]
        return self.proj(F.scaled_dot_product_attention(*split, attn_mask=bias).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, memory: Tensor, own: Tensor, across: Tensor) -> Tensor:
        """x (b, n, dim) with memory (b, m, dim), under biases among x and across to memory."""
        x = x + self.attn(self.norm1(x), attn_mask=own)
        x = x + self.cross(self.norm2(x), self.norm2(memory), across)
        return x + self.mlp(self.norm3(x))


@register("fusion/alibi")
class Alibi(nn.Module):
    """Tokens of one stream read those of another, nearer ones more: CROMA's joint encoder and its X-ALiBi.

    Weights keep torch's own initialisation, as in the reference code.

    Args:
        width: width of both streams.
        depth: number of blocks.
        heads: attention heads; they have to divide the width.
        mlp_ratio: hidden width of the MLPs over the width.
        norm_eps: epsilon of the layer norms.

    Raises:
        ValueError: when heads do not divide the width.
    """

    def __init__(
        self, width: int, *, depth: int = 6, heads: int = 16, mlp_ratio: float = 4.0, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"fusion.heads={heads} does not divide the encoders' width {width}; choose a divisor")
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.dim, self.bias = width, DistanceBias(heads)
        self.blocks = nn.ModuleList(FusionBlock(width, heads, mlp_ratio, norm) for _ in range(depth))
        self.norm = norm(width)

    def forward(self, tokens: Tokens, memory: Tokens) -> Tokens:
        """The tokens with what they read of the memory in `x`, (b, n, width); without prefix."""
        assert tokens.x is not None and memory.x is not None
        x = tokens.x
        own, across = self.bias(tokens, tokens, x.dtype), self.bias(tokens, memory, x.dtype)
        for block in self.blocks:
            x = block(x, memory.x, own, across)
        return tokens.but(x=self.norm(x), prefix=None, taps={})


@register("term/fuse")
class Fuse(nn.Module):
    """Two masked streams of one grid are fused, and all their raw values predicted from it (CROMA's joint autoencoder).

    The tokens of the first look read those of the second; a decoder answers at every place for both streams at once.
    Each stream's loss is over its own values and its own hidden tokens, divided by their number in the global batch;
    the two are summed.

    Args:
        plan: sizes.
        fusion: called as (width), then as (first tokens, second tokens), for instance `fusion/alibi`.
        predictor: a decoder that answers hidden and visible tokens in one pass, such as `predictor/transformer`.
        loss: one number per token.
        looks: the two looks; the first gives the places that are decoded. Both drop what they hide.
        normalize: applied to the values of both streams of a token together, for instance `norm/standard`; null for
            none.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for another number of looks, streams of two grids or widths, looks that drop nothing, or a predictor
            that answers at hidden tokens only.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        fusion: Callable[[int], Any],
        predictor: Callable[..., Any],
        loss: Callable[[Tensor, Tensor], Tensor],
        looks: Sequence[str] = ("a", "b"),
        normalize: Callable[[int], nn.Module] | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.looks, self.loss, self.weight = plan.named(looks), loss, weight
        if len(self.looks) != 2:
            raise ValueError(f"term/fuse brings two looks together (got {self.looks}); name two under `looks`")
        check_streams(plan, self.looks)
        self.widths = [plan.specs[name].raw for name in self.looks]
        self.fusion = fusion(plan.dims[self.looks[0]])
        self.predictor = predictor(plan.specs[self.looks[0]], int(self.fusion.dim), sum(self.widths), ())
        if not hasattr(self.predictor, "both"):
            raise ValueError("term/fuse asks for hidden and visible tokens in one pass; take predictor/transformer")
        self.normalize = None if normalize is None else normalize(sum(self.widths))
        self.signals: dict[str, Tensor] = {}

    def predict(self, step: Step) -> Tensor:
        """What is predicted of both streams at every place, (r, n, first + second)."""
        first, second = (step[name] for name in self.looks)
        if len(first.seen.index) != len(second.seen.index):
            raise ValueError(f"term/fuse: looks {self.looks} have different numbers of masks; give them maskers alike")
        mask, n = first.mask, first.tokens.index.shape[1]
        asked = [mask.invert().visible_index, mask.visible_index]
        queries = [first.tokens.take(index, first.row, valid) for index, valid in asked]
        answers = torch.cat(self.predictor.both(self.fusion(first.seen, second.seen), *queries), 1)
        # padding goes to a place behind the last, so that it overwrites nothing
        index = torch.cat([index if valid is None else index.where(valid, n) for index, valid in asked], 1)
        whole = answers.new_zeros(len(answers), n + 1, answers.shape[-1])
        return whole.scatter(1, index.unsqueeze(-1).expand_as(answers), answers)[:, :n]

    @torch.no_grad()
    def target(self, step: Step) -> Tensor:
        """The values of both streams at every place, normalised together, (r, n, first + second)."""
        raw = torch.cat([_rows(step[name], step[name].tokens.raw) for name in self.looks], -1)
        return raw if self.normalize is None else self.normalize([raw], step.progress)[0]

    def _asked(self, look: Look) -> Tensor:
        """The tokens of a stream that are in its loss, (r, n)."""
        asked = look.mask.targets.any(1)
        for flags in (look.tokens.valid, look.tokens.given):
            asked = asked if flags is None else asked & _rows(look, flags)
        return asked

    def count(self, step: Step) -> Tensor:
        """What `forward` divides by, without encoding anything."""
        return torch.stack([self._asked(step[name]).sum() for name in self.looks])

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sums of the loss over each stream's hidden tokens, and their numbers, (2,) each."""
        pairs = zip(self.predict(step).split(self.widths, -1), self.target(step).split(self.widths, -1), strict=True)
        sums, counts = [], []
        for name, (answer, target) in zip(self.looks, pairs, strict=True):
            asked = self._asked(step[name])
            sums.append(torch.where(asked, self.loss(answer, target), 0.0).sum())
            counts.append(asked.sum().to(target.dtype))
        return torch.stack(sums), torch.stack(counts)


def check_streams(plan: Plan, looks: Sequence[str]) -> None:
    """Asks for what the looks see, and refuses looks that cannot be fused.

    Raises:
        ValueError: naming the looks.
    """
    one, other = looks
    for name in looks:
        spec = plan.ask(name, "seen")
        if (spec.masker is None and spec.mask is None) or not getattr(spec.corruptor, "drops", False):
            raise ValueError(
                f"term/fuse: look {name!r} has to hide tokens by dropping them; give it a masker and corruptor/drop"
            )
    grids = plan.specs[one].grid, plan.specs[other].grid
    if None in grids or grids[0] != grids[1]:
        raise ValueError(
            f"term/fuse: looks {one!r} and {other!r} have tokens on grids {grids[0]} and {grids[1]}; cut both streams "
            "into one grid by their tokenizers' size and patch"
        )
    if plan.dims[one] != plan.dims[other]:
        raise ValueError(
            f"term/fuse: encoders are {plan.dims[one]} and {plan.dims[other]} wide; give both streams one width"
        )


def _rows(look: Look, values: Tensor) -> Tensor:
    """Values of samples, one row for each mask."""
    return values if look.row is None else values[look.row]
