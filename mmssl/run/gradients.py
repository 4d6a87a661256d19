"""What a run says of its gradients: their norms by module, and parameters that none reaches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from mmssl import ranks
from mmssl.run.metrics import Metrics

_MAIN = "networks.main."
_SHOWN = 20


class Gradients(lightning.Callback):
    """Hands the norms of the gradient to `Metrics` where a row is due, and names idle parameters after the first step.

    Norms are those before clipping, over all ranks and passes; they stay on the device until the row is written.

    Args:
        metrics: writes the rows.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._looked = False

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        """Looks at the gradients of the step, which are complete now."""
        if not self._looked and trainer.is_global_zero:
            tell_idle(pl_module)
        self._looked = True
        if self.metrics.due(trainer.global_step + 1, trainer.max_steps):
            self.metrics.norms = norms(pl_module)


def norms(module: nn.Module) -> dict[str, Tensor]:
    """The L2 norm of the gradient of all parameters, as `grad/all`, and of each module of a run, by its key.

    Modules are the slots of the main network (`grad/encoder`), those of other networks (`grad/audio.encoder`), heads
    (`grad/heads.proj`) and terms (`grad/objective.pixels`).
    """
    found = [(_module_of(name), p.grad) for name, p in module.named_parameters() if p.grad is not None]
    if not found:
        return {}
    lengths = ranks.lengths([gradient for _, gradient in found])
    columns: dict[str, list[Tensor]] = {"all": [lengths]}
    for (name, _), length in zip(found, lengths.split(1), strict=True):
        columns.setdefault(name, []).append(length)
    return {f"grad/{name}": torch.linalg.vector_norm(torch.cat(parts)) for name, parts in columns.items()}


def idle(module: nn.Module) -> Iterator[str]:
    """Names of parameters that train and have no gradient."""
    return (name for name, p in module.named_parameters() if p.requires_grad and p.grad is None)


def tell_idle(module: nn.Module) -> None:
    """Says on standard error which parameters the first step did not reach; several ranks would not go on with them."""
    if names := list(idle(module)):
        more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        print(
            f"no gradient reached {', '.join(names[:_SHOWN])}{more} in the first step: no term depends on them, so "
            "they do not train, and several ranks would stop. Leave the part out that they belong to.",
            file=sys.stderr,
        )


def _module_of(parameter: str) -> str:
    """The key of the module that a parameter belongs to."""
    if parameter.startswith(_MAIN):
        return parameter.removeprefix(_MAIN).split(".")[0]
    kind, *rest = parameter.split(".")
    return ".".join(rest[:2]) if kind == "networks" else ".".join([kind, *rest[:1]])
