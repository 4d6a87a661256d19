"""Graphs as arrays in files: what users keep their own in. Nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MASKS = ("train_mask", "val_mask", "test_mask")


def from_arrays(arrays: Mapping[str, Any], where: str = "") -> Any:
    """A graph from arrays, checked.

    Args:
        arrays: `edge_index` (2, e) of whole numbers, sources in the first row, targets in the second; `x` (n, v) or
            none; `edge_attr` (e,) or (e, f), `y`, and `train_mask`, `val_mask`, `test_mask` (n,) if there are any;
            `num_nodes` where there is no `x`, else the highest number in `edge_index` tells.
        where: the file, for messages.

    Returns:
        A `torch_geometric.data.Data`.

    Raises:
        ValueError: naming the array and what is wrong with it.
    """
    from torch_geometric.data import Data

    place = f"{where}: " if where else ""
    if "edge_index" not in arrays:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise ValueError(
            f"{place}a graph needs the array `edge_index` (2, edges), and `x` (nodes, features); found {found}"
        )
    edges = _edges(arrays["edge_index"], place)
    x = None if "x" not in arrays else _features(arrays["x"], place)
    if x is not None:
        n = len(x)
    elif "num_nodes" in arrays:
        n = int(arrays["num_nodes"])
    else:
        n = int(edges.max()) + 1 if edges.numel() else 0
    if n == 0:
        raise ValueError(f"{place}the graph is empty: it has no node; leave it out, or give it `x` with a row per node")
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= n):
        bad = int(edges.min()) if int(edges.min()) < 0 else int(edges.max())
        raise ValueError(
            f"{place}edge_index names node {bad}, but there are {n} nodes (0 to {n - 1}); nodes are counted from 0, "
            "and every one of them needs a row in `x`"
        )
    extra = {key: _per_node(arrays[key], n, key, place).bool() for key in _MASKS if key in arrays}
    if "edge_attr" in arrays:
        extra["edge_attr"] = torch.as_tensor(np.array(arrays["edge_attr"])).float().reshape(edges.shape[1], -1)
    if "y" in arrays:
        extra["y"] = torch.as_tensor(np.array(arrays["y"])).to(torch.int64)
    return Data(edge_index=edges, num_nodes=n, **({} if x is None else {"x": x}), **extra)


def _edges(array: Any, place: str) -> Tensor:
    array = np.asarray(array)
    if array.ndim != 2 or array.shape[0] != 2 or array.dtype.kind not in "iu":
        hint = "; transpose it" if array.ndim == 2 and array.shape[1] == 2 else ""
        raise ValueError(
            f"{place}edge_index has to be of shape (2, edges) and of whole numbers (got {array.shape} of "
            f"{array.dtype}){hint}"
        )
    return torch.from_numpy(array.astype(np.int64))


def _features(array: Any, place: str) -> Tensor:
    array = np.asarray(array)
    if array.ndim != 2 or array.dtype.kind not in "fiub" or array.shape[1] == 0:
        raise ValueError(
            f"{place}x has to be of shape (nodes, features) and of numbers (got {array.shape} of {array.dtype})"
        )
    x = torch.from_numpy(array.astype(np.float32))
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x).all(1)).nonzero()[0])
        raise ValueError(f"{place}x holds values that are not finite, first in node {bad}; fill or remove them")
    return x


def _per_node(array: Any, n: int, key: str, place: str) -> Tensor:
    values = torch.as_tensor(np.array(array))
    if values.shape != (n,):
        raise ValueError(f"{place}{key} has to have one value for each of the {n} nodes (got {tuple(values.shape)})")
    return values
