"""The one LightningModule: a step, its terms, and nothing else. No evaluation, no data, no branch on a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmssl.nn.network import Network
from mmssl.parts.optim import Optim
from mmssl.step import LookSpec, Plan, Step
from mmssl.types import Tokens, View


class SSLModule(lightning.LightningModule):
    """Trains networks on a sum of terms.

    The loss of a term is its sum divided by its weight over the *global* batch, so that any number of ranks trains the
    same objective, also where ranks hold unequal counts.

    Args:
        networks: networks by name; `main` is the one that is kept.
        looks: how each look is made.
        objective: terms by name, each called with a `Plan`.
        heads: what makes the head of each name, called as (width); those that no term names are refused.
        optim: how to optimise.
        batch_size: samples of a step over all ranks and accumulation steps.
        teacher: follows the networks, and what terms twin; None for none.
        seed: the run's seed.
        keep: `student` or `teacher`: which branch evaluation and export take.
        chunk: samples encoded at once, see `Step`; None for all.

    Raises:
        ValueError: when `keep` is teacher and there is none, or a corruptor does not fit its encoder.
    """

    networks: Any  # an nn.ModuleDict of Network
    heads: Any  # an nn.ModuleDict
    objective: Any  # an nn.ModuleDict of terms, called with a Step; each has a `weight`

    def __init__(
        self,
        networks: Mapping[str, Network],
        looks: Mapping[str, LookSpec],
        objective: Mapping[str, Callable[[Plan], nn.Module]],
        optim: Optim,
        batch_size: int,
        teacher: Any = None,
        seed: int = 0,
        keep: str = "student",
        heads: Mapping[str, Callable[[int], nn.Module]] | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if keep not in ("student", "teacher") or (keep == "teacher" and teacher is None):
            raise ValueError(f"keep has to be 'student', or 'teacher' in a run with a teacher (got {keep!r})")
        self.networks = nn.ModuleDict(networks)
        self.corruptors = nn.ModuleDict({n: s.corruptor for n, s in looks.items() if s.corruptor is not None})
        self.looks, self.optim, self.batch_size, self.seed, self.keep = looks, optim, batch_size, seed, keep
        self.teacher = teacher
        if teacher is not None:
            for name, network in self.networks.items():
                teacher.twin(name, network)
        self._makers, self._widths = heads or {}, dict[str, int]()
        self.heads = nn.ModuleDict()
        self.chunk = chunk
        if chunk is not None and not all(network.joins for network in networks.values()):
            raise ValueError("trainer.chunk: an encoder with batch norm cannot be computed in chunks; set it to null")
        plan = Plan(
            looks=looks,
            specs={name: networks[spec.network].spec for name, spec in looks.items()},
            dims={name: networks[spec.network].dim for name, spec in looks.items()},
            taps={name: networks[spec.network].encoder.tap_names for name, spec in looks.items()},
            networks={name: networks[spec.network] for name, spec in looks.items()},
            head=self._head,
            taught=teacher is not None,
        )
        self.objective = nn.ModuleDict({name: term(plan) for name, term in objective.items()})
        if unused := sorted(set(self._makers) - set(self.heads)):
            raise ValueError(f"heads.{unused[0]}: no term names this head; give a term head: {unused[0]}, or remove it")
        self.latest: dict[str, Tensor] = {}
        self.steps = 0
        self._led = -1

    def _head(self, name: str, width: int) -> nn.Module:
        """The head of a name, made for features of this width when the first term asks; and its twin."""
        if name not in self._makers:
            raise ValueError(f"a term names head {name!r}, but the run has {', '.join(sorted(self._makers)) or 'none'}")
        if name not in self.heads:
            self.heads[name], self._widths[name] = self._makers[name](width), width
            if self.teacher is not None:
                self.teacher.twin(f"head_{name}", self.heads[name])
        if self._widths[name] != width:
            raise ValueError(f"heads.{name} reads features of {self._widths[name]} and of {width}; give two heads")
        return self.heads[name]

    @property
    def kept(self) -> Network:
        """The network that is evaluated and taken away."""
        main = self.networks["main"]
        return main if self.keep == "student" else self.teacher.of(main)

    @property
    def progress(self) -> float:
        """Share of the training done, in [0, 1]: optimizer steps taken over steps planned."""
        return min(self.global_step / max(self.steps, 1), 1.0)

    def forward(self, view: View) -> Tokens:
        """Features of a whole view by the kept network."""
        return self.kept(view)

    def begin(self, batch: Mapping[str, Any]) -> Step:
        """The step of a batch; nothing runs before a term asks."""
        given = (self.teacher, self.seed, self.progress, self.heads, self.global_step, self.chunk)
        return Step(batch, self.looks, self.networks, *given)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> Tensor:
        """The weighted sum of all terms, scaled so that averaging over ranks gives the global objective."""
        step = self.begin(batch)
        sums, weights = zip(*(term(step) for term in self.objective.values()), strict=True)
        scale, total = 1.0, torch.cat([w.detach().float().reshape(-1) for w in weights])
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(total)
            scale = float(dist.get_world_size())
        loss, counts = sums[0].new_zeros(()), total.split([w.numel() for w in weights])
        for i, (name, term) in enumerate(self.objective.items()):
            value = (sums[i].reshape(-1) / counts[i].clamp(min=1e-12)).sum()
            loss = loss + scale * term.weight * value
            self.latest[name] = value.detach()
            self.latest |= {f"{name}/{key}": signal.detach() / scale for key, signal in term.signals.items()}
        self.latest["loss"] = loss.detach() / scale
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets the rates of this step; a teacher that follows before the forward pass does so now."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert not isinstance(optimizer, list)
        self.lr = self.optim.set(optimizer, self.progress)
        if self.teacher is not None and self.teacher.when == "before" and self._led != self.global_step:
            self._led = self.global_step  # once per optimizer step, also while gradients accumulate
            self.teacher.follow(self.progress)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps; a teacher that follows after the step does so before any callback looks."""
        progress = self.progress
        super().optimizer_step(*args, **kwargs)
        if self.teacher is not None and self.teacher.when == "after":
            self.teacher.follow(progress)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer over everything that trains."""
        return self.optim.build(self, self.batch_size)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Forgets the gradients of what is still frozen, and clips: all gradients together, or each on its own."""
        self.optim.freeze(optimizer, self.progress)
        if self.optim.clip_each and self.optim.clip is not None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    torch.nn.utils.clip_grad_norm_(parameter, self.optim.clip)
            return
        if self.optim.clip is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.optim.clip, gradient_clip_algorithm="norm")
