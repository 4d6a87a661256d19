"""A decoder whose queries know what was seen nearby (Latent MIM)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmssl.nn.init import xavier_
from mmssl.nn.positions import SinCos
from mmssl.parts.cross_view import MemoryBlock
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("predictor/cued")
class Cued(nn.Module):
    """Queries at the places asked for, and one more, read one another and what was seen (Latent MIM, Wei et al. 2024).

    A query is a learned mask token, its position and a cue: the seen tokens' embeddings, averaged by a softmax over the
    products of positions, which has no weights. Each block is self-attention, cross-attention to the seen tokens and
    their positions, and an MLP, each behind its norms. The further query has no place and is not answered.

    Args:
        spec: sizes of the tokens.
        width: width of the features.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        dim: width of the decoder.
        depth: number of blocks.
        heads: attention heads.
        cue: whether queries have the cue.
        position: position embedding, called as (spec, dim); class tokens get zeros.
        mlp_ratio: hidden width of the MLPs over the width.
        norm_eps: epsilon of the layer norms.

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
        dim: int = 512,
        depth: int = 3,
        heads: int = 16,
        cue: bool = True,
        position: Callable[[TokenSpec, int], nn.Module] = SinCos,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"predictor.heads={heads} does not divide predictor.dim={dim}; choose a divisor of {dim}")
        self.embed, self.position, self.cue = nn.Linear(width, dim), position(spec, dim), cue
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.blocks = nn.ModuleList(
            MemoryBlock(dim, heads, int(dim * mlp_ratio), "own", "pre", 0.0, norm_eps) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(dim, norm_eps), nn.Linear(dim, out)
        for part in (self.embed, self.blocks, self.head):
            xavier_(part)
        nn.init.normal_(self.class_token, std=0.02)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        assert seen.x is not None
        known, here, there = self.embed(seen.x), self.position(seen), self.position(query)
        asked = self.mask_token.to(known.dtype) + there
        if self.cue:
            near = there @ here.mT * here.shape[-1] ** -0.5
            if seen.valid is not None:
                near = near.masked_fill(~seen.valid.unsqueeze(1), -torch.inf)
            asked = asked + near.softmax(-1).to(known.dtype) @ known
        memory, hollow = known + here, None if seen.valid is None else ~seen.valid
        if seen.prefix is not None:
            memory = torch.cat([self.embed(seen.prefix), memory], 1)
            hollow = None if hollow is None else nn.functional.pad(hollow, (seen.prefix.shape[1], 0), value=False)
        x = torch.cat([self.class_token.to(known.dtype).expand(len(asked), -1, -1), asked], 1)
        padding = None if query.valid is None else nn.functional.pad(~query.valid, (1, 0), value=False)
        for block in self.blocks:
            last = query.index.shape[1] if block is self.blocks[-1] else None
            x = block(x, memory, padding, hollow, last)
        return self.head(self.norm(x[:, -query.index.shape[1] :]))
