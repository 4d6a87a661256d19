"""Modules whose weights have sizes and no memory: a step can then be counted on a machine that could not take it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

# Tensors from so many numbers on are never filled; statistics, filters and tables of positions are smaller.
_LARGE = 2**20
_COPIES = (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default)


class Idle(TorchDispatchMode):
    """While it is entered, large tensors are made but never filled: pages of memory that nobody writes cost nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation; on a large tensor, in place or a copy, nothing is done."""
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.numel() >= _LARGE:
            if func in _COPIES:
                said = {key: (kwargs or {}).get(key) for key in ("dtype", "device")}
                return torch.empty_like(first, **{key: value for key, value in said.items() if value is not None})
            if func._schema.name.endswith("_"):
                return first
        return func(*args, **(kwargs or {}))


def hidden(module: nn.Module) -> Iterator[nn.Module]:
    """The module, and networks that parts keep in tuples, where checkpoints and optimizers do not see them."""
    yield module
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, tuple):
                for one in value:
                    if isinstance(one, nn.Module):
                        yield from hidden(one)


def empty(module: nn.Module, device: torch.device) -> None:
    """Takes the values of all weights away, in place: each becomes a fake tensor on the device.

    Buffers that are not floating-point numbers, and small ones, keep their values: sizes may follow from them.
    What is computed from data alone is computed; what meets a weight is fake.
    """
    mode, done = FakeTensorMode(allow_non_fake_inputs=True), dict[int, Tensor]()
    for part in (inner for root in hidden(module) for inner in root.modules()):
        for name, weight in part._parameters.items():
            if weight is not None:
                fake: Any = done.get(id(weight))
                if fake is None:
                    fake = nn.Parameter(_fake(mode, weight, device), weight.requires_grad)
                    done[id(weight)] = fake
                part._parameters[name] = fake
        for name, value in part._buffers.items():
            if value is not None:
                large = value.is_floating_point() and value.numel() >= _LARGE
                part._buffers[name] = _fake(mode, value, device) if large else value.to(device)


def _fake(mode: FakeTensorMode, value: Tensor, device: torch.device) -> Tensor:
    fake: FakeTensor = mode.from_tensor(value.detach())
    return fake if fake.device == device else fake.to(device)
