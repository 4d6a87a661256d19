"""Decoders whose attention stays within windows of the grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from mmssl.nn.init import xavier_
from mmssl.nn.patches import coordinates
from mmssl.nn.positions import SinCos
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec

# What is added to the logits of places that are neighbours only because a shifted grid is turned round.
_APART = -100.0


class WindowAttention(nn.Module):
    """Cosine attention within windows, with a bias made of relative positions (Swin V2, Liu et al. 2022).

    Logits are cosines over a temperature per head, plus what a small MLP makes of the logarithms of the offsets.

    Args:
        dim: width.
        heads: attention heads.
        window: sides of a window in tokens.
        dropout: in the MLP of the bias.
    """

    offsets: Tensor

    def __init__(self, dim: int, heads: int, window: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.meta_mlp = Mlp(len(window), 384, heads, act_layer=nn.ReLU, drop=dropout)
        self.tau = nn.Parameter(torch.ones(heads))
        place = coordinates(window)
        offset = place.unsqueeze(1) - place.unsqueeze(0)
        self.register_buffer("offsets", offset.sign() * offset.abs().log1p(), persistent=False)

    def forward(self, x: Tensor, apart: Tensor | None) -> Tensor:
        """What places read of one another, before `proj`.

        Args:
            x: (b, windows, places, dim).
            apart: (windows, places, places), added to the logits.
        """
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        query = F.normalize(query, dim=-1) / self.tau.clamp(min=0.01)[:, None, None]
        bias = self.meta_mlp(self.offsets).permute(2, 0, 1)
        if apart is not None:
            bias = bias + apart.unsqueeze(1)
        key, value = F.normalize(key, dim=-1).to(value.dtype), value
        read = F.scaled_dot_product_attention(
            query.to(value.dtype), key, value, attn_mask=bias.to(value.dtype), scale=1.0
        )
        return read.transpose(2, 3).flatten(3)


class WindowBlock(nn.Module):
    """A block of window attention and MLP, each normalised behind itself and then added (Swin V2).

    Args:
        grid: tokens per axis.
        dim: width.
        heads: attention heads.
        window: sides of a window; it has to divide the grid.
        shift: places by which the grid is shifted against the windows.
        mlp_ratio: hidden width of the MLP over the width.
        dropout: in the MLP of the position bias.
    """

    apart: Tensor | None

    def __init__(
        self,
        grid: tuple[int, ...],
        dim: int,
        heads: int,
        window: tuple[int, ...],
        shift: tuple[int, ...],
        mlp_ratio: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.grid, self.window, self.shift = grid, window, shift
        self.attn = WindowAttention(dim, heads, window, dropout)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.register_buffer("apart", self._apart() if any(shift) else None, persistent=False)

    def _cut(self, x: Tensor) -> Tensor:
        """A grid (b, *grid, d) as windows (b, windows, places, d)."""
        (rows, columns), (high, wide) = self.grid, self.window
        x = x.unflatten(2, (columns // wide, wide)).unflatten(1, (rows // high, high))
        return x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        """The inverse of `_cut`."""
        (rows, columns), (high, wide) = self.grid, self.window
        x = x.unflatten(2, (high, wide)).unflatten(1, (rows // high, columns // wide))
        return x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)

    def _apart(self) -> Tensor:
        """What keeps places of one window apart that the shift brought together from opposite edges."""
        torn = torch.zeros(1, *self.grid, 1)
        for axis, shift in enumerate(self.shift):
            place = torch.arange(self.grid[axis]).view([-1 if a == axis else 1 for a in range(len(self.grid))])
            torn += (2.0**axis * (place >= self.grid[axis] - shift)).unsqueeze(0).unsqueeze(-1)
        label = self._cut(torn)[0, ..., 0]
        return _APART * (label.unsqueeze(2) != label.unsqueeze(1)).float()

    def _attend(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, self.grid)
        axes = tuple(range(1, len(self.grid) + 1))
        if any(self.shift):
            x = x.roll(tuple(-shift for shift in self.shift), axes)
        x = self._join(self.attn(self._cut(x), self.apart))
        return (x.roll(self.shift, axes) if any(self.shift) else x).flatten(1, len(self.grid))

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """x (b, n, dim) in the order of the grid to the same, or to (b, t, dim) at the places `index` (b, t) alone."""
        read = self._attend(x)
        if index is not None:
            place = index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x, read = x.gather(1, place), read.gather(1, place)
        x = x + self.norm1(self.attn.proj(read))
        return x + self.norm2(self.mlp(x))


@register("predictor/window")
class Window(nn.Module):
    """Attention within shifted windows over the whole grid (Audio-MAE's decoder, Huang et al. 2022).

    Seen tokens are put back in their places, mask tokens fill all others, class tokens are left out. Blocks take turns
    between windows at rest and windows shifted by half of their first side: neighbours in time meet, bands of
    frequencies stay apart.

    Args:
        spec: sizes of the tokens, on a grid with two axes.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        dim: width of the decoder.
        depth: number of blocks.
        heads: attention heads.
        window: sides of a window, (time, frequency) in tokens; an axis that is shorter is one window.
        shift: by how many tokens every second block shifts its windows, per axis.
        position: position embedding, called as (spec, dim).
        mlp_ratio: hidden width of the MLPs over the width.
        dropout: in the MLP that makes the position bias.

    Raises:
        ValueError: for tokens without such a grid, or windows or heads that do not divide it.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        dim: int = 512,
        depth: int = 16,
        heads: int = 16,
        window: Sequence[int] = (4, 4),
        shift: Sequence[int] = (2, 0),
        position: Callable[[TokenSpec, int], nn.Module] = SinCos,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        grid = spec.grid
        if grid is None or len(grid) != 2:
            raise ValueError(f"predictor/window needs tokens on a grid with two axes (got {grid})")
        if dim % heads:
            raise ValueError(f"predictor.heads={heads} does not divide predictor.dim={dim}; choose a divisor of {dim}")
        sides = tuple(min(side, most) for side, most in zip(window, grid, strict=True))
        if any(have % side for have, side in zip(grid, sides, strict=True)):
            raise ValueError(
                f"predictor.window={list(window)} does not divide the grid of tokens {list(grid)}; choose divisors of "
                "its sides, or predictor/transformer"
            )
        moved = tuple(0 if side == have else s for side, have, s in zip(sides, grid, shift, strict=True))
        if any(not 0 <= s < side for s, side in zip(moved, sides, strict=True)):
            raise ValueError(f"predictor.shift={list(shift)} has to lie in a window of {list(sides)} tokens")
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.position = position(spec, dim)
        self.blocks = nn.ModuleList(
            WindowBlock(grid, dim, heads, sides, moved if i % 2 else (0, 0), mlp_ratio, dropout) for i in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(dim, 1e-6), nn.Linear(dim, out)
        self.register_buffer("places", coordinates(grid), persistent=False)
        self.grid = grid
        xavier_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    places: Tensor

    def _whole(self, seen: Tokens) -> Tensor:
        """Every place of the grid: the seen token, or the mask token, with its position."""
        assert seen.x is not None
        if seen.grid != self.grid:
            raise ValueError(
                f"predictor/window was built for the grid {self.grid} and got tokens on {seen.grid}; its windows "
                "are fixed"
            )
        known, b, n = self.embed(seen.x), seen.x.shape[0], len(self.places)
        x = self.mask_token.to(known.dtype).repeat(b, n, 1)
        index = seen.index
        if seen.valid is not None:  # padding goes to a place of its own behind the grid
            x = F.pad(x, (0, 0, 0, 1))
            index = index.masked_fill(~seen.valid, n)
        x = x.scatter(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]), known)[:, :n]
        every = torch.arange(n, device=x.device).expand(b, n)
        full = Tokens(raw=seen.raw, pos=self.places.expand(b, n, 2), index=every, grid=self.grid)
        return x + self.position(full).to(x.dtype)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query."""
        x = self._whole(seen)
        for block in self.blocks:
            x = block(x, query.index if block is self.blocks[-1] else None)
        return self.head(self.norm(x))
