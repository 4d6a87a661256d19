"""What flows through a training step: views, tokens and (from masks.py) masks. Imports torch only.

Letters in shapes: b samples, r mask rows (r = b, or m rows per sample), n tokens, t tokens asked for, k target blocks,
d width, v raw values of a token, p coordinates.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmssl.masks import Mask as Mask

POOLS = ("mean", "sum", "max", "meanmax", "cls")


@dataclass(frozen=True)
class View:
    """One view of a batch, as the loader made it.

    Args:
        data: what the tokenizer of the modality reads: a tensor with the batch in front, or anything with `.to()`.
        modality: name of the modality, for pictures and messages; no part branches on it.
    """

    data: Any
    modality: str

    def to(self, *args: Any, **kwargs: Any) -> View:
        """The view with its data moved, as `Tensor.to` does."""
        return View(self.data.to(*args, **kwargs), self.modality)

    def pin_memory(self) -> View:
        """The view in page-locked memory, so that copies to a GPU overlap with work."""
        return View(self.data.pin_memory(), self.modality)


@dataclass(frozen=True)
class TokenSpec:
    """What parts must know of the tokens before they are built: sizes come from data facts, never from a dummy batch.

    Args:
        raw: number of raw values of a token (v), for instance 16 * 16 * 3.
        pos: number of coordinates of a token (p).
        grid: tokens per axis, where tokens lie on a grid; its product is the number of tokens.
        cell: size of a grid cell in input samples per axis, for instance (16, 16) pixels.
        channels: channels of the input, where it has any.
        count: number of tokens where every sample has the same, but they lie on no grid (groups of points).
    """

    raw: int
    pos: int
    grid: tuple[int, ...] | None = None
    cell: tuple[int, ...] | None = None
    channels: int | None = None
    count: int | None = None

    @property
    def length(self) -> int | None:
        """Number of tokens where every sample has the same, else None."""
        return self.count if self.grid is None else math.prod(self.grid)


@dataclass(frozen=True)
class Tokens:
    """What every modality becomes. Dense: every field starts with (b, n). Packed: with (n,), and `sample` says whose.

    Args:
        raw: what each token was made of (pixels, bins, offsets, features, cells), (b, n, v). No objective asks for the
            modality.
        pos: coordinates, (b, n, p): (row, col), (time, row, col), (x, y, z), (column).
        index: place of each token in the full sequence of its sample, (b, n) int64.
        x: embeddings, (b, n, d); None until the embedding has run.
        valid: False for padding only, (b, n); None means that all are valid.
        given: False for what is naturally missing: hidden, never in a loss, may be asked for; None means all given.
        sample: owner of each token of a packed batch, (n,) int64, ascending; None for a dense batch.
        stream: which view each token came from where several are joined, (b, n) int64.
        edges: pairs of places over the flattened tokens, (2, e) int64; graphs only.
        edge_attr: (e, f).
        edge_weight: per edge (e,), or per layer and edge (l, e).
        grid: tokens per axis, when the tokens are the whole grid in row-major order or were gathered from it.
        prefix: class and register tokens in front of the sequence, (b, q, d).
        taps: named intermediate layers, each (b, q + n, d) with the prefix in front.
        samples: number of samples of a packed batch, a plain int so that nothing waits for the device.
        count: number of tokens of the full sequence where it is the same for all samples, but there is no grid.
        condition: what encoder and predictor are told about each sample, (b, k): how noisy it is (UMD).
    """

    raw: Tensor
    pos: Tensor
    index: Tensor
    x: Tensor | None = None
    valid: Tensor | None = None
    given: Tensor | None = None
    sample: Tensor | None = None
    stream: Tensor | None = None
    edges: Tensor | None = None
    edge_attr: Tensor | None = None
    edge_weight: Tensor | None = None
    grid: tuple[int, ...] | None = None
    prefix: Tensor | None = None
    taps: dict[str, Tensor] = field(default_factory=dict)
    samples: int | None = None
    count: int | None = None
    condition: Tensor | None = None

    @property
    def packed(self) -> bool:
        """Whether samples of unequal length lie one behind the other."""
        return self.sample is not None

    def but(self, **changes: Any) -> Tokens:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def take(self, index: Tensor, row: Tensor | None = None, valid: Tensor | None = None) -> Tokens:
        """The tokens at `index`, without prefix, taps and edges.

        Args:
            index: positions in this sequence, (r, t) int64; of a packed batch (1, t), over the flattened tokens.
            row: which sample each of the r rows reads, (r,); None where r = b in order, and for a packed batch.
            valid: False where an index is only padding, (r, t).

        Returns:
            Tokens (r, t, ...), or packed tokens (t, ...).
        """
        assert not self.packed or (row is None and valid is None), "a packed batch is one row"

        def pick(field: Tensor | None) -> Tensor | None:
            if field is None:
                return None
            if self.packed:
                return field[index[0]]
            field = field if row is None else field[row]
            if field.dim() == 2:
                return field.gather(1, index)
            return field.gather(1, index.unsqueeze(-1).expand(-1, -1, field.shape[-1]))

        kept = pick(self.valid)
        if valid is not None:
            kept = valid if kept is None else kept & valid
        return self.but(
            raw=pick(self.raw), pos=pick(self.pos), index=pick(self.index), x=pick(self.x), valid=kept,
            given=pick(self.given), stream=pick(self.stream), sample=pick(self.sample) if self.packed else None,
            edges=None, edge_attr=None, edge_weight=None, prefix=None, taps={},
            condition=self.condition if row is None or self.condition is None else self.condition[row],
        )  # fmt: skip

    def layer(self, name: str) -> Tokens:
        """The tokens as a layer that was kept gave them: in `x` and `prefix` in place of the output."""
        tap, n = self.taps[name], self.index.shape[-1]
        if self.packed or tap.shape[1] == n:
            return self.but(x=tap, prefix=None)
        return self.but(x=tap[:, -n:], prefix=tap[:, :-n])

    def at(self, query: Tokens, values: Tensor | None = None) -> Tensor:
        """Embeddings at the places of `query`, (b, t, d); every place asked for must be among these tokens.

        Args:
            query: tokens whose `index` (and `sample`, where packed) says which places are wanted.
            values: what to look up instead of `x`, (b, n, ...).
        """
        values = self.x if values is None else values
        assert values is not None
        if self.sample is not None:
            assert query.sample is not None and self.samples is not None
            count = self.sample.new_zeros(self.samples).index_add_(0, self.sample, torch.ones_like(self.sample))
            start = torch.cumsum(count, 0) - count
            return values[start[query.sample] + query.index]
        if self.index is query.index:
            return values
        size = int(self.length)
        slot = self.index.new_zeros(self.index.shape[0], size)
        slot.scatter_(1, self.index, torch.arange(self.index.shape[1], device=slot.device).expand_as(self.index))
        chosen = slot.gather(1, query.index)
        return values.gather(1, chosen.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

    @property
    def length(self) -> int:
        """Number of places of the full sequence these tokens were taken from."""
        if self.grid is not None:
            return math.prod(self.grid)
        return int(self.index.max()) + 1 if self.count is None else self.count

    def pool(self, how: str = "mean") -> Tensor:
        """One vector per sample, (b, d), or (b, 2 d) for `meanmax`.

        Args:
            how: `mean`, `sum` or `max` of the valid tokens, `meanmax`, the maximum and the mean side by side, or `cls`,
                the first prefix token.

        Raises:
            ValueError: for another word, or `cls` where the encoder has no class token.
        """
        assert self.x is not None
        if how == "cls":
            if self.prefix is None or self.prefix.shape[1] == 0:
                raise ValueError("pool=cls, but this encoder has no class token; use pool=mean")
            return self.prefix[:, 0]
        if how == "meanmax":
            return torch.cat([self.pool("max"), self.pool("mean")], -1)
        if how not in ("mean", "sum", "max"):
            raise ValueError(f"pool has to be one of {', '.join(POOLS)} (got {how!r})")
        if self.sample is not None:
            assert self.samples is not None
            out = self.x.new_zeros(self.samples, self.x.shape[-1])
            if how == "max":
                return out.scatter_reduce(0, self.sample[:, None].expand_as(self.x), self.x, "amax", include_self=False)
            count = out.new_zeros(self.samples).index_add_(0, self.sample, torch.ones_like(self.x[:, 0]))
            total = out.index_add_(0, self.sample, self.x)
            return total if how == "sum" else total / count.clamp(min=1).unsqueeze(-1)
        x = self.x
        if self.valid is not None:
            x = x.masked_fill(~self.valid.unsqueeze(-1), -torch.inf if how == "max" else 0.0)
        if how == "max":
            return x.amax(1)
        total = x.sum(1)
        if how == "sum":
            return total
        return total / (x.shape[1] if self.valid is None else self.valid.sum(1, keepdim=True).clamp(min=1))

    def pack(self) -> Tokens:
        """Dense to packed: padding goes, samples of unequal length follow one another. Edges are renumbered."""
        if self.sample is not None:
            return self
        b, n = self.index.shape
        valid = torch.ones_like(self.index, dtype=torch.bool) if self.valid is None else self.valid
        owner = torch.arange(b, device=valid.device).unsqueeze(1).expand(b, n)[valid]
        place = torch.cumsum(valid.flatten().long(), 0) - 1

        def pick(field: Tensor | None) -> Tensor | None:
            return None if field is None else field[valid]

        return self.but(
            raw=pick(self.raw), pos=pick(self.pos), index=pick(self.index), x=pick(self.x), valid=None,
            given=pick(self.given), stream=pick(self.stream), sample=owner, samples=b,
            edges=None if self.edges is None else place[self.edges],
        )  # fmt: skip

    def dense(self) -> Tokens:
        """Packed to dense: samples are padded to the longest, `valid` says where. Edges are renumbered."""
        if self.sample is None:
            return self
        samples = self.samples
        assert samples is not None
        count = torch.bincount(self.sample, minlength=samples)
        n = int(count.max())
        start = torch.cumsum(count, 0) - count
        slot = torch.arange(len(self.sample), device=count.device) - start[self.sample]
        valid = torch.arange(n, device=count.device) < count.unsqueeze(1)

        def spread(field: Tensor | None) -> Tensor | None:
            if field is None:
                return None
            out = field.new_zeros(samples, n, *field.shape[1:])
            out[self.sample, slot] = field
            return out

        return self.but(
            raw=spread(self.raw), pos=spread(self.pos), index=spread(self.index), x=spread(self.x), valid=valid,
            given=spread(self.given), stream=spread(self.stream), sample=None, samples=None,
            edges=None if self.edges is None else (self.sample * n + slot)[self.edges],
        )  # fmt: skip
