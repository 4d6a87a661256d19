"""A head that gathers the most alike neighbours of a token, and a target that is what its twin gathered (DMT-JEPA)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.nn.init import trunc_normal_
from mmssl.parts.targets import full, gathered
from mmssl.registry import register
from mmssl.step import Look, Plan
from mmssl.types import Tokens


def around(grid: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Places of the cells around each cell of a grid, which goes on at the other side, (n, 3 ** axes - 1) int64.

    Raises:
        ValueError: for a grid with fewer than three cells along an axis.
    """
    if min(grid) < 3:
        raise ValueError(f"neighbours need a grid of at least three tokens along each axis (got {grid})")
    places = torch.arange(torch.Size(grid).numel(), device=device).reshape(grid)
    axes = tuple(range(len(grid)))
    steps = [step for step in itertools.product((-1, 0, 1), repeat=len(grid)) if any(step)]
    return torch.stack([places.roll(tuple(-s for s in step), axes).flatten() for step in steps], 1)


class ClassAttention(nn.Module):
    """One query reads itself and some tokens (Touvron et al. 2021): attention and MLP behind a norm each, no scale."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(dim, int(dim * mlp_ratio)), nn.Linear(int(dim * mlp_ratio), dim)

    def forward(self, x: Tensor, query: Tensor, valid: Tensor | None, onto: Tensor) -> Tensor:
        """What the query (..., 1, d) reads of itself and of x (..., m, d) is added to `onto`, and the MLP follows."""
        both = self.norm1(torch.cat([query, x], -2))
        q, k, v = (
            part(tokens).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for part, tokens in ((self.q, both[..., :1, :]), (self.k, both), (self.v, both))
        )
        mask = None if valid is None else F.pad(valid, (1, 0), value=True)[..., None, None, :]
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(-3, -2).flatten(-2)
        onto = onto + self.proj(read)
        return onto + self.fc2(F.gelu(self.fc1(self.norm2(onto))))


@register("head/neighbours")
class Neighbours(nn.Module):
    """Two blocks of class attention and a norm, over all tokens or over those around each (DMT-JEPA, Mo et al. 2024).

    Over all tokens, for `project` of `term/predict`: the mean of the tokens is a query that reads them all, and what it
    finds is added to every token. Around each token: of the cells beside it on the grid, which goes on at the other
    side, those most alike to it; the mean of all tokens reads them, and what it has read is the token's new value.

    Args:
        width: width of the features, and of what it gives.
        heads: attention heads.
        nearest: how many of the cells around a token are taken.
        depth: number of blocks.
        mlp_ratio: hidden width of the MLPs over the width.
        norm_eps: epsilon of the layer norms.

    Raises:
        ValueError: when heads do not divide the width; when called, for tokens that are not a whole grid, or more
            neighbours than there are.
    """

    mixes = True

    def __init__(
        self, width: int, *, heads: int = 12, nearest: int = 4, depth: int = 2, mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads or nearest < 1:
            raise ValueError(
                f"head/neighbours: heads={heads} has to divide the features' width of {width}, and nearest to be at "
                f"least 1 (got {nearest})"
            )
        self.dim, self.nearest = width, nearest
        self.blocks = nn.ModuleList(ClassAttention(width, heads, mlp_ratio, norm_eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, norm_eps)
        trunc_normal_(self)

    def forward(self, tokens: Tokens, local: bool = False) -> Tokens:
        """The tokens with new values; `local` takes those around each token."""
        assert tokens.x is not None
        return tokens.but(x=self.norm(self._around(tokens) if local else self._all(tokens, tokens.x)))

    def _all(self, tokens: Tokens, x: Tensor) -> Tensor:
        for block in self.blocks:
            query = tokens.but(x=x).pool("mean").unsqueeze(1)
            x = block(x, query, tokens.valid, x)
        return x

    def _around(self, tokens: Tokens) -> Tensor:
        x, grid = tokens.x, tokens.grid
        assert x is not None
        if grid is None or tokens.valid is not None or x.shape[1] != torch.Size(grid).numel():
            raise ValueError("head/neighbours: a token's neighbours are known on a whole grid of tokens only")
        places = around(grid, x.device)
        if self.nearest > places.shape[1]:
            raise ValueError(f"head/neighbours: nearest={self.nearest}, but a token has {places.shape[1]} neighbours")
        unit = F.normalize(x, dim=-1)
        alike = (unit[:, places] * unit.unsqueeze(2)).sum(-1)
        chosen = places.expand(len(x), -1, -1).gather(2, alike.topk(self.nearest, -1).indices)
        near = (
            x.unsqueeze(1)
            .expand(-1, x.shape[1], -1, -1)
            .gather(2, chosen.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))
        )
        found = x.mean(1, keepdim=True).unsqueeze(1).expand(-1, x.shape[1], -1, -1)
        for block in self.blocks:
            found = block(near, found, None, found)
        return found.squeeze(2)


@register("target/neighbours")
class GatheredNeighbours(nn.Module):
    """The teacher's features, standardised, then what a head's twin gathers around each token (DMT-JEPA).

    Args:
        plan: sizes and twins.
        look: the look whose tokens are meant.
        head: name of the head, `head/neighbours`.
    """

    asks = ("taught",)

    def __init__(self, plan: Plan, look: str, *, head: str) -> None:
        super().__init__()
        self.head, self.dim = head, int(plan.head(head, plan.dims[look]).dim)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Values of the tokens asked for, (r, t, d)."""
        module, teacher = look.step.heads[self.head], look.step.teacher
        features = look.taught
        assert features.x is not None
        plain = features.but(x=F.layer_norm(full(features.x), features.x.shape[-1:]))
        made = (module if teacher is None else teacher.of(module))(plain, local=True)
        return gathered(look, query, made)
