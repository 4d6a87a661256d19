"""Teachers follow the student. A teacher alone owns the pairs (module, twin), so each is saved and sharded once."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmssl.registry import register


@register("teacher/ema")
class EMA(nn.Module):
    """Twins that follow by an exponential moving average of weights and buffers (BYOL, MoCo v3, DINO, I-JEPA).

    Args:
        momentum: share of the old twin kept at each optimizer step, a schedule over progress.
        on: when twins follow: `after` the optimizer step (I-JEPA, DINO) or `before` the forward pass (MoCo v3).

    Raises:
        ValueError: for another word.
    """

    def __init__(self, *, momentum: Callable[[float], float], on: str = "after") -> None:
        super().__init__()
        if on not in ("after", "before"):
            raise ValueError(f"teacher.on has to be 'after' or 'before' (got {on!r})")
        self.momentum, self.on = momentum, on
        self.twins = nn.ModuleDict()
        self._students: dict[str, nn.Module] = {}

    def twin(self, name: str, module: nn.Module) -> nn.Module:
        """Makes the twin of a module under a name; all twins exist before anything is sharded."""
        twin = copy.deepcopy(module).requires_grad_(False)
        self.twins[name] = twin
        self._students[name] = module
        return twin

    def of(self, module: nn.Module) -> nn.Module:
        """The twin of a module."""
        for name, student in self._students.items():
            if student is module:
                return self.twins[name]
        raise KeyError(f"the teacher has no twin of this {type(module).__name__}")

    def copy(self) -> None:
        """Makes every twin equal to its student, as at the start: for students that were filled from a file."""
        for name, student in self._students.items():
            self.twins[name].load_state_dict(student.state_dict())

    @torch.no_grad()
    def follow(self, progress: float) -> None:
        """One step of every twin towards its student; floating buffers average, others are copied."""
        keep = self.momentum(progress)
        for name, student in self._students.items():
            twin = self.twins[name]
            old: list[Tensor] = list(twin.parameters())
            new = [p.detach() for p in student.parameters()]
            torch._foreach_lerp_(old, new, 1.0 - keep)  # pyright: ignore[reportPrivateImportUsage]  # has no public name
            for mine, theirs in zip(twin.buffers(), student.buffers(), strict=True):
                if mine.is_floating_point():
                    mine.lerp_(theirs, 1.0 - keep)
                else:
                    mine.copy_(theirs)
