"""Layer-wise adaptive rate scaling, which torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmssl import ranks


class LARS(Optimizer):
    """Momentum SGD whose rate is scaled per tensor by |w| / |g + decay w| (You, Gitman, Ginsburg 2017).

    One-dimensional tensors (norms and biases) are neither decayed by their group nor adapted, as in SimCLR and BYOL.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: momentum of the scaled step.
        trust: trust coefficient, factor of the ratio.
        weight_decay: decay added to the gradient before the ratio is taken.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        trust: float = 0.001,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ratios stay on the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in moved if p.ndim > 1]
            updates: dict[Tensor, Any] = {p: p.grad for p in moved}
            updates |= {p: updates[p].add(p, alpha=group["weight_decay"]) for p in matrices}
            if matrices:
                weight, change = ranks.lengths([*matrices, *(updates[p] for p in matrices)]).chunk(2)
                ratio = torch.where((weight > 0) & (change > 0), group["trust"] * weight / change, 1.0)
                for p, scale in zip(matrices, ratio, strict=True):
                    ranks.own(updates[p]).mul_(scale)
            for p in moved:
                self._update(p, updates[p], group)
        return loss

    def _update(self, p: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].mul_(group["momentum"]).add_(update)
        p.add_(state["momentum"], alpha=-group["lr"])
