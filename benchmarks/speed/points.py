"""What geometry of point clouds costs: Point-MAE's groups, and its Chamfer distance with gradient, of 32 clouds.

Grouping: farthest-point sampling and nearest points, 1024 points into 64 groups of 32. Chamfer: both directions between
the 38 groups of each cloud that are hidden and predictions of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.harness import TOLERANCE, in_turn
from mmssl.modalities.pointcloud.geometry import chamfer, farthest_points, nearest, pick

GOAL = 0.60
WHAT = "Point-MAE's grouping and Chamfer distance with gradient, 32 clouds of 1024 points"
SAME = "the same groups, in the same order, and the same distance; the reference is plain torch, batched"
CLOUDS, POINTS, GROUPS, SIZE, HIDDEN = 32, 1024, 64, 32, 38


def grouped(points: Tensor) -> Tensor:
    """Ours: places of each group's points."""
    return nearest(pick(points, farthest_points(points, GROUPS)), points, SIZE)


def sampled(points: Tensor, count: int) -> Tensor:
    """Farthest-point sampling as commonly written: one loop for all clouds, with masks."""
    b, n, _ = points.shape
    near, every = points.new_full((b, n), float("inf")), torch.arange(b)
    last, chosen = torch.zeros(b, dtype=torch.int64), torch.empty(b, count, dtype=torch.int64)
    for i in range(count):
        chosen[:, i] = last
        distance = (points - points[every, last].unsqueeze(1)).square().sum(-1)
        closer = distance < near
        near[closer] = distance[closer]
        last = near.max(-1).indices
    return chosen


def gathered(centres: Tensor, points: Tensor) -> Tensor:
    """The nearest points of centres, all distances at once."""
    return (centres.unsqueeze(2) - points.unsqueeze(1)).square().sum(-1).topk(SIZE, largest=False).indices


def grouped_plainly(points: Tensor) -> Tensor:
    """The reference."""
    return gathered(points[torch.arange(len(points)).unsqueeze(1), sampled(points, GROUPS)], points)


def chamfer_plainly(a: Tensor, b: Tensor) -> Tensor:
    """The reference: all differences at once."""
    distance = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)
    return distance.min(2).values.mean(1) + distance.min(1).values.mean(1)


def measure(pairs: int) -> dict[str, Any]:
    """Both together, and each on its own."""
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(CLOUDS, POINTS, 3, generator=draw)
    made, true = (torch.randn(CLOUDS * HIDDEN, SIZE, 3, generator=draw) for _ in range(2))

    def learned(distance: Any) -> float:
        answer = made.clone().requires_grad_()
        loss = distance(answer, true).mean()
        loss.backward()
        return float(loss.detach())

    assert torch.equal(grouped(points), grouped_plainly(points))
    losses = {"ours": learned(chamfer), "reference": learned(chamfer_plainly)}
    assert abs(losses["ours"] / losses["reference"] - 1) < TOLERANCE
    whole = in_turn(
        lambda: (grouped(points), learned(chamfer)), lambda: (grouped_plainly(points), learned(chamfer_plainly)), pairs
    )
    parts = {
        "grouping": in_turn(lambda: grouped(points), lambda: grouped_plainly(points), pairs),
        "chamfer": in_turn(lambda: learned(chamfer), lambda: learned(chamfer_plainly), pairs),
    }
    few = {name: {key: part[key] for key in ("ours_ms", "reference_ms", "ratio")} for name, part in parts.items()}
    return {"loss": losses, **whole, "parts": few}
