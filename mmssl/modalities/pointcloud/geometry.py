"""Geometry of batches of point clouds in plain torch: farthest points, nearest points, Chamfer distances.

Distances are sums of squared differences, never |a|^2 - 2ab + |b|^2: that form loses all digits far from the origin,
and under autocast it would run in half precision. Indices carry no gradient; Chamfer distances do.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Distances held at once: large enough that a call is worth its overhead, small enough for a CPU's second-level cache.
_HELD = {"cpu": 1 << 19, "cuda": 1 << 25}


@torch.no_grad()
def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of all pairs, without gradient.

    Args:
        a: points (b, n, p).
        b: points (b, m, p).

    Returns:
        (b, n, m); float32 at least.
    """
    a, b = _wide(a), _wide(b)
    total = a.new_empty(a.shape[0], a.shape[1], b.shape[1])
    difference = torch.empty_like(total)
    # one coordinate after the other, each contiguous: three times as fast as differences (n, m, p), a third as large
    for axis, (x, y) in enumerate(zip(a.unbind(-1), b.unbind(-1), strict=True)):
        torch.sub(x.contiguous().unsqueeze(2), y.contiguous().unsqueeze(1), out=difference)
        if axis:
            total.addcmul_(difference, difference)
        else:
            torch.mul(difference, difference, out=total)
    return total


@torch.no_grad()
def farthest_points(points: Tensor, count: int, start: int | Tensor = 0) -> Tensor:
    """Farthest-point sampling: each point is the one farthest from all before it (Eldar et al. 1997; PointNet++).

    One loop over `count` for all clouds together. Of equally far points the first is taken.

    Args:
        points: (b, n, p).
        count: how many points to choose.
        start: the first point of every cloud, or one per cloud, (b,) int64.

    Returns:
        Places in the order of choice, (b, count) int64.

    Raises:
        ValueError: when a cloud has fewer points than are asked for.
    """
    b, n, _ = points.shape
    if count > n:
        raise ValueError(f"{count} farthest points are asked for, but the clouds have {n} points each")
    axes = [axis.contiguous() for axis in _wide(points).unbind(-1)]
    # distance to the nearest chosen point so far, and two buffers: nothing is allocated in the loop
    near = axes[0].new_full((b, n), float("inf"))
    distance, difference = torch.empty_like(near), torch.empty_like(near)
    chosen = torch.empty(b, count, dtype=torch.int64, device=points.device)
    last = torch.empty(b, 1, dtype=torch.int64, device=points.device)
    last[:, 0] = start
    for step in range(count):
        chosen[:, step : step + 1] = last
        distance.zero_()
        for axis in axes:
            torch.sub(axis, axis.gather(1, last), out=difference)
            distance.addcmul_(difference, difference)
        torch.minimum(near, distance, out=near)
        torch.argmax(near, dim=1, keepdim=True, out=last)
    return chosen


@torch.no_grad()
def nearest(query: Tensor, points: Tensor, k: int) -> Tensor:
    """The k nearest points of each query point, nearest first; only a part of all distances exists at a time.

    Args:
        query: (b, g, p).
        points: (b, n, p).
        k: how many.

    Returns:
        Places among the points, (b, g, k) int64.

    Raises:
        ValueError: when a cloud has fewer than k points.
    """
    (b, g), n = query.shape[:2], points.shape[1]
    if k > n:
        raise ValueError(f"{k} nearest points are asked for, but the clouds have {n} points each")
    rows = max(1, _HELD.get(query.device.type, 1 << 20) // n)
    clouds, queries = (max(1, rows // g), g) if rows >= g else (1, rows)
    found = torch.empty(b, g, k, dtype=torch.int64, device=query.device)
    for i in range(0, b, clouds):
        for j in range(0, g, queries):
            distance = squared_distances(query[i : i + clouds, j : j + queries], points[i : i + clouds])
            found[i : i + clouds, j : j + queries] = _smallest(distance, k)
    return found


@torch.no_grad()
def nearest_walk(points: Tensor) -> Tensor:
    """A greedy walk through all points (Point-JEPA's sequencer): neighbours in it are near one another in space.

    It starts at the point whose coordinates have the smallest sum, and goes on to the nearest point that is not yet
    visited. One loop over the points for all clouds together. Of equals the first is taken.

    Args:
        points: (b, n, p).

    Returns:
        Places in the order of the walk, (b, n) int64.
    """
    b, n, _ = points.shape
    points = _wide(points)
    distance = squared_distances(points, points)
    visited = torch.zeros(b, n, dtype=torch.bool, device=points.device)
    walk = torch.empty(b, n, dtype=torch.int64, device=points.device)
    here = points.sum(-1).argmin(1, keepdim=True)
    for step in range(n):
        walk[:, step : step + 1] = here
        visited.scatter_(1, here, True)
        away = distance.gather(1, here.unsqueeze(-1).expand(-1, -1, n)).squeeze(1)
        here = away.masked_fill(visited, torch.inf).argmin(1, keepdim=True)
    return walk


def _smallest(values: Tensor, k: int, fold: int = 4) -> Tensor:
    """Places of the k smallest values of each row, ascending, (..., k).

    Folded: the k smallest of n values lie in the k quadruples of smallest minimum, which is a search among n / 4 values
    and one among 4 k.
    """
    n = values.shape[-1]
    if k == 1:
        return values.argmin(-1, keepdim=True)
    if values.is_cuda or n % fold or n < 4 * fold * k:
        return values.topk(k, largest=False).indices
    lowest = values.unflatten(-1, (fold, n // fold)).amin(-2).topk(k, largest=False, sorted=False).indices
    step = torch.arange(0, n, n // fold, device=values.device)
    place = (lowest.unsqueeze(-2) + step.unsqueeze(-1)).flatten(-2)
    return place.gather(-1, values.gather(-1, place).topk(k, largest=False).indices)


def pick(points: Tensor, index: Tensor) -> Tensor:
    """Points at some places: (b, n, p) and (b, ...) int64 give (b, ..., p)."""
    flat = index.flatten(1).unsqueeze(-1).expand(-1, -1, points.shape[-1])
    return points.gather(1, flat).reshape(*index.shape, points.shape[-1])


def chamfer(a: Tensor, b: Tensor, norm: str = "l2") -> Tensor:
    """Chamfer distance of two sets of points, with gradient (Fan et al. 2017).

    `l2`: mean over a of the squared distance to the nearest of b, plus the reverse. `l1`: the mean of the two
    directions of the plain distance. Which point is nearest is found in parts; what is kept for the gradient grows with
    n + m, not with n m.

    Args:
        a: (b, n, p).
        b: (b, m, p).
        norm: `l2` or `l1`.

    Returns:
        One number per pair of sets, (b,); float32 at least.

    Raises:
        ValueError: for another norm.
    """
    if norm not in ("l2", "l1"):
        raise ValueError(f"a Chamfer distance's norm has to be 'l2' or 'l1' (got {norm!r})")
    a, b = _wide(a), _wide(b)
    there = a - pick(b, nearest(a, b, 1).squeeze(-1))
    back = b - pick(a, nearest(b, a, 1).squeeze(-1))
    if norm == "l2":
        return there.square().sum(-1).mean(-1) + back.square().sum(-1).mean(-1)
    # the norm's gradient is zero at zero, where a square root's would be infinite
    return 0.5 * (torch.linalg.vector_norm(there, dim=-1).mean(-1) + torch.linalg.vector_norm(back, dim=-1).mean(-1))


def _wide(points: Tensor) -> Tensor:
    """At least single precision: half precision cannot tell neighbours apart."""
    return points if points.dtype == torch.float64 else points.float()
