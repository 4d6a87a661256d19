"""Counts the bytes of all tensors that are alive, operation by operation, and what they are."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

LABELS = ("weights", "teacher", "gradients", "optimizer", "batch", "activations")
"""What tensors are; whatever a step makes on its way is `activations`."""

_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


@dataclass
class _Storage:
    size: int
    born: int
    died: int | None = None
    label: str = "activations"


class Live(TorchDispatchMode):
    """While it is entered, notes when each storage comes and goes. Views count once, with the whole of their storage.

    Some tensors may be fake (see `mmssl.run.planning.weightless`): they have sizes and no values. Where a number out of
    one is asked for it is 1, and masks with values are turned into places, so that sizes stay known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events = 0
        self.marks: list[tuple[int, str]] = []
        self._alive: dict[int, _Storage] = {}
        self._all: list[_Storage] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        if func is torch.ops.aten._local_scalar_dense.default and _unknown(args[0]):
            return 1.0 if args[0].is_floating_point() else True
        if func in _INDEXED:
            args = (args[0], _places(args[1]), *args[2:])
        out = func(*args, **(kwargs or {}))
        self.note(out)
        self.events += 1
        return out

    def note(self, tree: Any, label: str | None = None) -> None:
        """Counts the tensors of a tree from now on, those that are not counted yet; a label says what they are."""
        for tensor in tensors(tree):
            # of a compressed matrix, whose parts cannot be asked for here, the tensor itself stands for its storage
            owner: Any = tensor.untyped_storage() if tensor.layout == torch.strided else tensor
            key = owner._cdata if tensor.layout == torch.strided else id(tensor)
            if key not in self._alive:
                size = owner.nbytes() if tensor.layout == torch.strided else _compressed(tensor)
                self._alive[key] = storage = _Storage(size, self.events)
                self._all.append(storage)
                weakref.finalize(owner, self._gone, key).atexit = False
            if label is not None:
                self._alive[key].label = label

    def mark(self, phase: str) -> None:
        """From here on operations belong to another phase of the step."""
        self.marks.append((self.events, phase))

    def _gone(self, key: int) -> None:
        if storage := self._alive.pop(key, None):
            storage.died = self.events

    def timeline(self) -> np.ndarray:
        """Bytes alive after each operation, of each of `LABELS`: (labels, events + 1) int64."""
        change = np.zeros((len(LABELS), self.events + 2), np.int64)
        for storage in self._all:
            row = LABELS.index(storage.label)
            change[row, storage.born] += storage.size
            if storage.died is not None:
                # what an operation frees was alive while it ran
                change[row, storage.died + 1] -= storage.size
        return change.cumsum(1)[:, :-1]

    def peaks(self) -> tuple[list[str], np.ndarray]:
        """The fullest moment of each phase: their names, and bytes of each label there, (labels, phases)."""
        lines = self.timeline()
        bounds = [*self.marks, (lines.shape[1], "")]
        names, columns = [], []
        for (start, name), (end, _) in pairwise(bounds):
            part = lines[:, start : max(end, start + 1)]
            names.append(name)
            columns.append(part[:, part.sum(0).argmax()])
        return names, np.stack(columns, 1)


def tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors in dicts, sequences and objects with fields."""
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dataclass_fields__"):
            yield from tensors([getattr(leaf, name) for name in leaf.__dataclass_fields__])


def total(tree: Any) -> int:
    """Bytes of all tensors of a tree, each storage once."""
    found: dict[int, int] = {}
    for tensor in tensors(tree):
        strided = tensor.layout == torch.strided
        key = tensor.untyped_storage()._cdata if strided else id(tensor)
        found[key] = tensor.untyped_storage().nbytes() if strided else _compressed(tensor)
    return sum(found.values())


def _unknown(tensor: Tensor) -> bool:
    """Whether a tensor is a fake number or truth; counts stay refused, since sizes would follow from them."""
    return isinstance(tensor, FakeTensor) and (tensor.is_floating_point() or tensor.dtype == torch.bool)


def _compressed(tensor: Tensor) -> int:
    """Bytes of a matrix that is kept without its zeros: values, and two numbers for the place of each at most."""
    return tensor._nnz() * (tensor.element_size() + 16)


def _places(indices: Iterable[Any]) -> list[Any]:
    """Indices in which masks whose values are known are lists of places; those of fake tensors stay as they are."""
    found = []
    for index in indices:
        known = isinstance(index, Tensor) and not isinstance(index, FakeTensor)
        masks = known and index.dtype in (torch.bool, torch.uint8)
        found += index.nonzero().unbind(-1) if masks else [index]
    return found


@contextmanager
def collected() -> Iterator[None]:
    """Python's search for cycles waits, so that two equal steps free their tensors after the same operations."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
        gc.collect()
