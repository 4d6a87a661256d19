"""What ranks tell one another. Imports torch only; on one process nothing is sent.

The loss of a run is the sum of what the ranks return. So a tensor that went to all ranks collects, on its way back, the
gradients of all of them: `gather` and `total` are differentiable in that sense, and N ranks train what one rank would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Number of ranks that train together; 1 without `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this rank, from 0 on."""
    return dist.get_rank() if world() > 1 else 0


def _lengths(n: int, device: torch.device) -> list[int]:
    """A plain number of every rank, in the order of ranks."""
    own = torch.tensor([n], device=device)
    found = [torch.zeros_like(own) for _ in range(world())]
    dist.all_gather(found, own)
    return torch.cat(found).tolist()


class _Gather(torch.autograd.Function):
    """Joins the rows of all ranks; the gradient of a rank's rows is the sum of what all ranks say of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: list[int]) -> Tensor:
        # collectives want equal shapes, so that all are padded to the longest
        padded = x.new_zeros(max(lengths), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        ctx.lengths = lengths
        return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad.split(ctx.lengths)[rank()], None


class _Total(torch.autograd.Function):
    """Adds up over ranks, in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone().contiguous()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone().contiguous()
        dist.all_reduce(grad)
        return grad


def gather(x: Tensor) -> Tensor:
    """The tensors of all ranks, joined along the first axis in the order of ranks; with gradient where `x` has one.

    Args:
        x: (n, ...); n may differ between ranks, the other axes may not.

    Returns:
        (sum of n, ...), the same on every rank.
    """
    if world() == 1:
        return x
    gathered = _Gather.apply(x, _lengths(len(x), x.device))
    assert isinstance(gathered, Tensor)
    return gathered


def total(x: Tensor) -> Tensor:
    """The sum over ranks, the same shape, the same on every rank; with gradient where `x` has one."""
    if world() == 1:
        return x
    summed = _Total.apply(x)
    assert isinstance(summed, Tensor)
    return summed


def offset(n: int, device: torch.device | None = None) -> int:
    """How many rows the ranks before this one hold, where this one holds n."""
    return 0 if world() == 1 else sum(_lengths(n, device or torch.device("cpu"))[: rank()])


def smallest(n: int, device: torch.device | None = None) -> int:
    """The smallest of a plain number that every rank has."""
    return n if world() == 1 else min(_lengths(n, device or torch.device("cpu")))


def largest(n: int, device: torch.device | None = None) -> int:
    """The largest of a plain number that every rank has."""
    return n if world() == 1 else max(_lengths(n, device or torch.device("cpu")))


def agreed(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Which of several things hold on all ranks; one message, none where there is nothing to ask."""
    if world() == 1 or not flags:
        return list(flags)
    held = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(held, dist.ReduceOp.MIN)
    return held.bool().tolist()


def lockstep(module: object) -> bool:
    """Whether a module's weights are shared out among ranks, so that all of them have to call it equally often."""
    return hasattr(module, "unshard")


def own(x: Tensor) -> Tensor:
    """This rank's piece of a tensor that is shared out among ranks; any other tensor as it is. No message is sent."""
    piece: Any = getattr(x, "to_local", None)
    return x if piece is None else piece()


def lengths(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each tensor, (k,); of whole tensors, also where they are shared out. One message at most.

    Args:
        tensors: of one dtype and device, either all of them shared out or none.
    """
    norms = torch.stack(torch._foreach_norm([own(x) for x in tensors]))  # pyright: ignore[reportPrivateImportUsage]
    if not hasattr(tensors[0], "to_local"):
        return norms
    return total(norms.square()).sqrt()
