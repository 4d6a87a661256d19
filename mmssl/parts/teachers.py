"""Teachers follow the student. A teacher alone owns the pairs (module, twin), so each is saved and sharded once."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from mmssl import ranks
from mmssl.parts.norms import Schedule, at
from mmssl.registry import register


def still(module: nn.Module) -> nn.Module:
    """The module without gradient, dropout and drop path: what it says is a target."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
        elif isinstance(part, DropPath):
            part.drop_prob = 0.0
    return module.requires_grad_(False)


@register("teacher/ema")
class EMA(nn.Module):
    """Twins that follow by an exponential moving average of weights and buffers (BYOL, MoCo v3, DINO, I-JEPA).

    Twins have neither dropout nor drop path.

    Args:
        momentum: share of the old twin kept at each optimizer step, a number or a schedule over progress.
        when: when twins follow: `after` the optimizer step (I-JEPA, DINO) or `before` the forward pass (MoCo v3).
        copied: patterns of names, such as `*.embed.*`, whose twins are copies and no averages (Point-JEPA: only the
            transformer has a teacher).

    Raises:
        ValueError: for another word, a momentum outside [0, 1] or, when a module is twinned, a pattern without a match.
    """

    def __init__(self, *, momentum: float | Schedule, when: str = "after", copied: Sequence[str] = ()) -> None:
        super().__init__()
        if when not in ("after", "before"):
            raise ValueError(f"teacher.when has to be 'after' or 'before' (got {when!r})")
        for progress in (0.0, 1.0):
            if not 0 <= at(momentum, progress) <= 1:
                raise ValueError(
                    "teacher.momentum is the share of the old teacher that is kept and has to lie in [0, 1], usually "
                    f"from 0.99 to 1 (got {at(momentum, progress):g})"
                )
        self.momentum, self.when, self.copied = momentum, when, tuple(copied)
        self.twins = nn.ModuleDict()
        self._students: dict[str, nn.Module] = {}

    def twin(self, name: str, module: nn.Module) -> nn.Module:
        """Makes the twin of a module under a name; all twins exist before anything is sharded."""
        twin = still(copy.deepcopy(module))
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
        keep = at(self.momentum, progress)
        averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, student in self._students.items():
            theirs = dict((*student.named_parameters(), *student.named_buffers()))
            for place, value in (*self.twins[name].named_parameters(), *self.twins[name].named_buffers()):
                # where weights are shared out, a module and its twin lie in the same pieces
                mine, other = ranks.own(value), ranks.own(theirs[place].detach())
                if mine.is_floating_point() and not self._copies(f"{name}.{place}"):
                    averaged[0].append(mine)
                    averaged[1].append(other)
                else:
                    mine.copy_(other)
        torch._foreach_lerp_(*averaged, 1.0 - keep)  # pyright: ignore[reportPrivateImportUsage]  # has no public name

    def _copies(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.copied)

    @torch.no_grad()
    def distance(self) -> Tensor:
        """How far the twins are from their students, over the length of the students' weights.

        Of this rank's pieces where weights are shared out: one rank alone may ask, nothing is sent.
        """
        apart, size = [], []
        for name, student in self._students.items():
            old = [ranks.own(p) for p in self.twins[name].parameters()]
            new = [ranks.own(p.detach()) for p in student.parameters()]
            apart += torch._foreach_norm(torch._foreach_sub(old, new))  # pyright: ignore[reportPrivateImportUsage]
            size += torch._foreach_norm(new)  # pyright: ignore[reportPrivateImportUsage]
        return torch.stack(apart).norm() / torch.stack(size).norm().clamp(min=1e-12)
