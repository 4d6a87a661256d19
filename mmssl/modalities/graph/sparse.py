"""Sums over neighbours, and over the few features that are not zero, as products with sparse matrices.

A layer of a graph network gathers a row per edge and adds them up. Written as a sparse matrix product that needs no row
per edge in memory, neither forward nor backward: on a CPU it takes a tenth of the time.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

_QUICK = ("cpu", "cuda")


@dataclass(eq=False)
class Adjacency:
    """Where a sparse matrix (t, s) has entries, sorted by row. Everything else is derived once, when first asked for.

    Args:
        row: row of each entry, ascending, (e,) int64: the target of an edge.
        col: its column, (e,) int64: the source of an edge.
        shape: (t, s).
    """

    row: Tensor
    col: Tensor
    shape: tuple[int, int]
    _heads: dict[int, tuple[Adjacency, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, target: Tensor, source: Tensor, shape: tuple[int, int]) -> Adjacency:
        """From edges in any order."""
        order = torch.argsort(target, stable=True)
        return cls(target[order], source[order], shape)

    def part(self, rows: Tensor) -> Adjacency:
        """Some rows, (r,) int64 without repetition, as a matrix (r, s)."""
        number = torch.full((self.shape[0],), -1, device=rows.device)
        number[rows] = torch.arange(len(rows), device=rows.device)
        row = number[self.row]
        kept = (row >= 0).nonzero().squeeze(1)
        return Adjacency.of(row[kept], self.col[kept], (len(rows), self.shape[1]))

    @cached_property
    def pattern(self) -> tuple[Tensor, Tensor]:
        """Row pointers (t + 1,) and columns (e,) of the compressed matrix, int32, which MKL takes as it is."""
        return _pointers(self.row, self.shape[0]), self.col.to(torch.int32)

    @cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pointers, rows and places of the entries, sorted by column."""
        order = torch.argsort(self.col, stable=True)
        return _pointers(self.col[order], self.shape[1]), self.row[order].to(torch.int32), order

    def heads(self, count: int) -> tuple[Adjacency, Tensor]:
        """The matrix of `count` heads side by side, (t count, s count), and its entries' places in (e, count)."""
        if count not in self._heads:
            head = torch.arange(count, device=self.row.device)
            row = (self.row[:, None] * count + head).flatten()
            col = (self.col[:, None] * count + head).flatten()
            order = torch.argsort(row, stable=True)
            shape = (self.shape[0] * count, self.shape[1] * count)
            self._heads[count] = Adjacency(row[order], col[order], shape), order
        return self._heads[count]


def _pointers(ascending: Tensor, rows: int) -> Tensor:
    pointers = torch.zeros(rows + 1, dtype=torch.int32, device=ascending.device)
    counts = torch.bincount(ascending, minlength=rows)
    torch.cumsum(counts, 0, out=pointers[1:]) if counts.dtype == torch.int32 else pointers[1:].copy_(counts.cumsum(0))
    return pointers


@dataclass(eq=False)
class SparseRows:
    """Features of nodes of which few are not zero, (n, v).

    Args:
        entries: where they are.
        values: (e,) float.
    """

    entries: Adjacency
    values: Tensor

    @classmethod
    def of(cls, x: Tensor) -> SparseRows:
        """From a dense matrix."""
        row, col = x.nonzero(as_tuple=True)
        return cls(Adjacency(row, col, (x.shape[0], x.shape[1])), x[row, col])

    def pick(self, rows: Tensor) -> SparseRows:
        """The rows at some places, (r,); a place of -1 gives a row of zeros."""
        pointers = self.entries.pattern[0].to(torch.int64)
        start = pointers[rows.clamp(min=0)]
        count = torch.where(rows >= 0, pointers[rows.clamp(min=0) + 1] - start, 0)
        row = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), count)
        before = torch.cumsum(count, 0) - count
        place = start[row] + torch.arange(len(row), device=rows.device) - before[row]
        return SparseRows(
            Adjacency(row, self.entries.col[place], (len(rows), self.entries.shape[1])), self.values[place]
        )


def propagate(values: Tensor, x: Tensor, entries: Adjacency) -> Tensor:
    """The product of a sparse matrix with a dense one, with gradients of both.

    Args:
        values: of the matrix's entries, (e,).
        x: (s, d).
        entries: where the matrix (t, s) has them.

    Returns:
        (t, d): row i is the sum of values[k] * x[col[k]] over the entries k of row i.
    """
    if x.device.type not in _QUICK or (x.device.type == "cpu" and not torch.backends.mkl.is_available()):
        out = x.new_zeros(entries.shape[0], x.shape[1])
        return out.index_add(0, entries.row, values.unsqueeze(1) * x[entries.col])
    with torch.autocast(x.device.type, enabled=False):
        if x.dtype in (torch.float16, torch.bfloat16):  # the libraries behind know float and double
            x = x.float()
        return _Propagate.apply(values.to(x.dtype), x, entries)  # pyright: ignore[reportReturnType]


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, entries: Adjacency) -> Tensor:
        ctx.entries = entries
        ctx.save_for_backward(values, x if ctx.needs_input_grad[0] else None)
        return _matrix(entries.pattern, values, entries.shape) @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (values, x), entries, grad = ctx.saved_tensors, ctx.entries, grads[0].contiguous()
        of_values = of_x = None
        if ctx.needs_input_grad[0]:
            zero = _matrix(entries.pattern, torch.zeros_like(values), entries.shape)
            of_values = torch.sparse.sampled_addmm(zero, grad, x.t(), beta=0.0).values()
        if ctx.needs_input_grad[1]:
            pointers, rows, order = entries.transposed
            of_x = _matrix((pointers, rows), values[order], (entries.shape[1], entries.shape[0])) @ grad
        return of_values, of_x, None


def _matrix(pattern: tuple[Tensor, Tensor], values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse ")
        return torch.sparse_csr_tensor(*pattern, values, shape, check_invariants=False)


def softmax(logits: Tensor, entries: Adjacency) -> Tensor:
    """Softmax of (e, h) over the entries of each row."""
    rows, index = entries.shape[0], entries.row.unsqueeze(1).expand_as(logits)
    top = logits.new_full((rows, logits.shape[1]), -torch.inf)
    top = top.scatter_reduce(0, index, logits.detach(), "amax")
    power = torch.exp(logits - top.index_select(0, entries.row))
    total = power.new_zeros(top.shape).index_add(0, entries.row, power)
    return power / total.index_select(0, entries.row)
