"""What geometry of points costs: grouping and Chamfer distances, against the same written as plain loops over clouds.

Grouping: farthest-point sampling and nearest points of `clouds` clouds of `points` points into `groups` x `size`.
`loops` is the plain version, one cloud and one point after the other; `batched` the common one in torch, one loop over
groups for all clouds with boolean masks, and all distances through topk. All give the same groups, which is checked.
Chamfer: both directions between two batches of clouds with gradient, against all distances at once.

    python benchmarks/points.py [clouds=32 points=1024 groups=64 size=32 threads=1 device=cpu repeats=7]
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time

import torch

from mmssl.modalities.pointcloud.geometry import chamfer, farthest_points, nearest, pick


def ours(points, groups, size):
    chosen = farthest_points(points, groups)
    return chosen, nearest(pick(points, chosen), points, size)


def loops(points, groups, size):
    chosen, members = [], []
    for cloud in points:
        near, last, row, own = cloud.new_full((len(cloud),), float("inf")), 0, [], []
        for _ in range(groups):
            row.append(last)
            near = torch.minimum(near, (cloud - cloud[last]).square().sum(-1))
            last = int(near.argmax())
        for place in row:
            own.append((cloud - cloud[place]).square().sum(-1).argsort()[:size])
        chosen.append(torch.tensor(row))
        members.append(torch.stack(own))
    return torch.stack(chosen).to(points.device), torch.stack(members)


def batched(points, groups, size):
    b, n, _ = points.shape
    near = points.new_full((b, n), float("inf"))
    last, every = torch.zeros(b, dtype=torch.int64, device=points.device), torch.arange(b, device=points.device)
    chosen = torch.empty(b, groups, dtype=torch.int64, device=points.device)
    for i in range(groups):
        chosen[:, i] = last
        distance = (points - points[every, last].unsqueeze(1)).square().sum(-1)
        closer = distance < near
        near[closer] = distance[closer]
        last = near.max(-1).indices
    centres = points[every.unsqueeze(1), chosen]
    return chosen, (centres.unsqueeze(2) - points.unsqueeze(1)).square().sum(-1).topk(size, largest=False).indices


def all_pairs(a, b):
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    return distance.min(2).values.mean(1) + distance.min(1).values.mean(1)


def milliseconds(call, repeats, device):
    took = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return 1000 * statistics.median(took[1:])


def trained(distance, a, b):
    """Distance and gradient, as in training."""
    a = a.clone().requires_grad_()
    distance(a, b).mean().backward()


def peak_mb(call, device):
    """Memory that a call needs beyond what was in use: of the device, or of the process's high-water mark."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def main() -> None:
    given = {"clouds": 32, "points": 1024, "groups": 64, "size": 32, "threads": 1, "device": "cpu", "repeats": 7}
    given |= {key: value if key == "device" else int(value) for key, value in (w.split("=") for w in sys.argv[1:])}
    torch.set_num_threads(given["threads"])
    device, sizes = given["device"], (given["groups"], given["size"])
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(given["clouds"], given["points"], 3, generator=generator).to(device) for _ in range(2))
    # ours first: the high-water mark of a process only rises
    memory = {f.__name__: peak_mb(lambda f=f: trained(f, a, b), device) for f in (chamfer, all_pairs)}
    results = [f(a, *sizes) for f in (ours, loops, batched)]
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))
    grouping = {f.__name__: milliseconds(lambda f=f: f(a, *sizes), given["repeats"], device)
                for f in (ours, loops, batched)}  # fmt: skip
    distance = {f.__name__: milliseconds(lambda f=f: trained(f, a, b), given["repeats"], device)
                for f in (chamfer, all_pairs)}  # fmt: skip
    print(json.dumps({
        **given, "grouping_ms": {name: round(ms, 2) for name, ms in grouping.items()},
        "times_loops": round(grouping["loops"] / grouping["ours"], 2),
        "times_batched": round(grouping["batched"] / grouping["ours"], 2),
        "chamfer_with_gradient_ms": {name: round(ms, 2) for name, ms in distance.items()},
        "chamfer_peak_mb": {name: round(mb, 1) for name, mb in memory.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
