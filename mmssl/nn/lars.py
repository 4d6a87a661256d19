"""Layer-wise adaptive rate scaling, which torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


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
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        update = p.grad
        assert update is not None
        if p.ndim > 1:
            update = update.add(p, alpha=group["weight_decay"])
            weight, change = p.norm(), update.norm()
            ratio = torch.where((weight > 0) & (change > 0), group["trust"] * weight / change, 1.0)
            update = update * ratio
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].mul_(group["momentum"]).add_(update)
        p.add_(state["momentum"], alpha=-group["lr"])
