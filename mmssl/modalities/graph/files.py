"""Graphs as arrays in files: what users keep their own in. Nothing is ever unpickled."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

MASKS = ("train_mask", "val_mask", "test_mask")
_CHUNK = 1 << 24  # numbers looked at together


def read_arrays(blob: bytes) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` archive; nothing is unpickled.

    Raises:
        ValueError: where the bytes are no such archive, are cut off, or hold Python objects.
    """
    broken = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, OSError, NotImplementedError)
    try:
        with zipfile.ZipFile(io.BytesIO(blob)), np.load(io.BytesIO(blob), allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (*broken, RuntimeError, ValueError) as error:
        raise ValueError(
            f"not a readable .npz archive of arrays ({error}); it may be cut off, or hold Python objects: write it "
            "with numpy.savez from arrays of numbers"
        ) from error


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
    n = check_arrays(arrays, place)
    edges = torch.from_numpy(np.asarray(arrays["edge_index"]).astype(np.int64))
    extra: dict[str, Any] = {key: per_node(arrays[key], n, key, place) for key in MASKS if key in arrays}
    if "x" in arrays:
        check_finite(arrays["x"], "x", place)
        extra["x"] = torch.from_numpy(np.asarray(arrays["x"]).astype(np.float32))
    if "edge_attr" in arrays:
        check_finite(arrays["edge_attr"], "edge_attr", place)
        values = np.asarray(arrays["edge_attr"]).astype(np.float32)
        extra["edge_attr"] = torch.from_numpy(values if values.ndim == 2 else values[:, None])
    if "y" in arrays and np.asarray(arrays["y"]).dtype.kind in "fiub":
        extra["y"] = torch.as_tensor(np.array(arrays["y"]))
    return Data(edge_index=edges, num_nodes=n, **extra)


def check_arrays(arrays: Mapping[str, Any], place: str) -> int:
    """Checks shapes and types of a graph's arrays and the nodes its edges name.

    Returns:
        The number of nodes.

    Raises:
        ValueError: naming the array and what is wrong with it.
    """
    if "edge_index" not in arrays:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise ValueError(
            f"{place}a graph needs the array `edge_index` (2, edges), and `x` (nodes, features); found {found}"
        )
    edges = np.asarray(arrays["edge_index"])
    if edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype.kind not in "iu":
        hint = "; transpose it" if edges.ndim == 2 and edges.shape[1] == 2 else ""
        hint = "; cast it with .astype('int64')" if edges.ndim == 2 and edges.dtype.kind == "f" else hint
        raise ValueError(
            f"{place}edge_index has to be of shape (2, edges) and of whole numbers (got {edges.shape} of "
            f"{edges.dtype}){hint}"
        )
    low, high = (int(edges.min()), int(edges.max())) if edges.size else (0, -1)
    n = _count(arrays, high + 1, place)
    if n == 0:
        raise ValueError(f"{place}the graph is empty: it has no node; leave it out, or give it `x` with a row per node")
    if low < 0 or high >= n:
        raise ValueError(
            f"{place}edge_index names node {low if low < 0 else high}, but there are {n} nodes (0 to {n - 1}); nodes "
            "are counted from 0, and every one of them needs a row in `x`"
        )
    attributes = np.asarray(arrays.get("edge_attr", np.zeros(edges.shape[1])))
    if attributes.ndim not in (1, 2) or len(attributes) != edges.shape[1] or attributes.dtype.kind not in "fiub":
        raise ValueError(
            f"{place}edge_attr has to hold numbers, one row for each of the {edges.shape[1]} edges (got "
            f"{attributes.shape} of {attributes.dtype}); give every column of edge_index its row"
        )
    return n


def _count(arrays: Mapping[str, Any], named: int, place: str) -> int:
    """The number of nodes: rows of `x`, else `num_nodes`, else what the edges name."""
    said = np.asarray(arrays.get("num_nodes", named))
    if said.size != 1 or said.dtype.kind not in "iu" or int(said.reshape(())) < 0:
        raise ValueError(f"{place}num_nodes has to be one whole number (got {said.tolist()!r})")
    if "x" not in arrays:
        return int(said.reshape(()))
    x = np.asarray(arrays["x"])
    if x.ndim != 2 or x.dtype.kind not in "fiub" or x.shape[1] == 0:
        raise ValueError(f"{place}x has to be of shape (nodes, features) and of numbers (got {x.shape} of {x.dtype})")
    if "num_nodes" in arrays and int(said.reshape(())) != len(x):
        raise ValueError(
            f"{place}x has {len(x)} rows, but num_nodes is {int(said.reshape(()))}; leave num_nodes away, or give "
            "every node a row"
        )
    return len(x)


def check_finite(values: Any, key: str, place: str) -> int:
    """Looks at all values of an array, a part at a time, so that a mapped file is never in memory as a whole.

    Returns:
        How many are not zero.

    Raises:
        ValueError: where one is no finite number.
    """
    rows, filled = max(1, _CHUNK // max(1, int(np.prod(values.shape[1:])))), 0
    for start in range(0, len(values), rows):
        part = np.asarray(values[start : start + rows])
        good = np.isfinite(part.reshape(len(part), -1)).all(1)
        if not good.all():
            owner = "node" if key == "x" else "edge"
            raise ValueError(
                f"{place}{key} holds values that are not finite, first in {owner} {start + int(good.argmin())}; fill "
                "or remove them"
            )
        filled += int(np.count_nonzero(part))
    return filled


def per_node(array: Any, n: int, key: str, place: str) -> Tensor:
    """A mask of nodes, (n,) bool.

    Raises:
        ValueError: where there is not one truth value for each node.
    """
    values = np.array(array)
    if values.shape != (n,) or values.dtype.kind not in "iub" or not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"{place}{key} has to be true or false for each of the {n} nodes (got {values.shape} of {values.dtype}); "
            f"from numbers of nodes make it by: mask = numpy.zeros({n}, bool); mask[numbers] = True"
        )
    return torch.from_numpy(values.astype(bool))


def node_labels(array: Any, n: int, place: str) -> Tensor:
    """Labels of nodes, (n,) int64, -1 where there is none.

    Raises:
        ValueError: where there is not one whole number for each node.
    """
    values = np.array(array)
    values = values[:, 0] if values.shape == (n, 1) else values
    if values.shape != (n,) or values.dtype.kind not in "fiub":
        raise ValueError(
            f"{place}y has to be one whole number for each of the {n} nodes, -1 for none (got {values.shape} of "
            f"{values.dtype})"
        )
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), -1.0, values)
    whole = values.astype(np.int64)
    if not (whole == values).all():
        raise ValueError(
            f"{place}y holds {values[whole != values][0]}, which is no class; probes need whole numbers from 0 on. "
            "Turn a continuous target into classes, or leave y out"
        )
    return torch.from_numpy(np.maximum(whole, -1))
