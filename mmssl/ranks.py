"""What ranks tell one another, outside of gradients. Imports torch only; on one process nothing is sent."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Number of ranks that train together; 1 without `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this rank, from 0 on."""
    return dist.get_rank() if world() > 1 else 0


def gather(x: Tensor) -> Tensor:
    """The tensors of all ranks, joined along the first axis in the order of ranks, without gradient.

    Args:
        x: (n, ...); n may differ between ranks, the other axes may not.

    Returns:
        (sum of n, ...), the same on every rank.
    """
    x = x.detach()
    if world() == 1:
        return x
    count = torch.tensor([len(x)], device=x.device)
    counts = [torch.zeros_like(count) for _ in range(world())]
    dist.all_gather(counts, count)
    lengths = [int(c) for c in counts]
    # collectives want equal shapes, so that all are padded to the longest
    padded = x.new_zeros(max(lengths), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])
