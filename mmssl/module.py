"""The one LightningModule: a step, its terms, and nothing else. No evaluation, no data, no branch on a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import lightning
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmssl import ranks
from mmssl.nn.network import Network
from mmssl.nn.sharding import shard
from mmssl.parts.optim import Optim
from mmssl.parts.regions import request
from mmssl.plan import Heads
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
        self.looks, self.optim, self.batch_size, self.seed = looks, optim, batch_size, seed
        self.keep, self.teacher = keep, teacher
        for name, network in self.networks.items():
            self._twin(name, network)
        made = Heads(heads or {}, self._twin)
        self.heads, self.chunk = made.made, chunk
        if chunk is not None and not all(network.joins for network in networks.values()):
            raise ValueError("trainer.chunk: an encoder with batch norm cannot be computed in chunks; set it to null")
        plan = Plan(
            looks=looks,
            specs={name: networks[spec.network].spec for name, spec in looks.items()},
            dims={name: networks[spec.network].dim for name, spec in looks.items()},
            taps={name: networks[spec.network].encoder.tap_names for name, spec in looks.items()},
            networks={name: networks[spec.network] for name, spec in looks.items()},
            head=made,
            twin=self._twin,
            taught=teacher is not None,
        )
        self.guides = nn.ModuleDict({n: s.guide for n, s in looks.items() if isinstance(s.guide, nn.Module)})
        for name, spec in looks.items():
            request(plan, [name], spec.guide)
        self.objective = nn.ModuleDict()
        for name, term in objective.items():
            self.objective[name] = term(replace(plan, term=name, before=tuple(self.objective)))
        made.check()
        self.latest: dict[str, Tensor] = {}
        self._passes: list[Step] = []  # of an optimizer step, those that are still to come
        self._counted: tuple[list[Tensor], int] = [], 1
        self.steps = 0
        # what this rank asks of all, and how many asked for it in the last step: so ranks agree without a message more
        self.wishes = self.heard = torch.zeros(3)
        self._led = -1

    def _twin(self, name: str, module: nn.Module) -> None:
        """Makes the teacher's twin of a module, where there is a teacher."""
        if self.teacher is not None:
            self.teacher.twin(name, module)

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
        given = (self.teacher, self.seed, self.progress, self.heads, self.global_step, self.chunk, self.objective)
        return Step(batch, self.looks, self.networks, *given)

    def _next(self, batch: Mapping[str, Any]) -> tuple[Step, list[Tensor], int]:
        """The step of a batch; where it is one of several passes (`later`), the terms' numbers in all, and how many."""
        if later := batch.get("later"):
            self._passes = [self.begin(one) for one in (batch, *later)]
            found = [[term.count(step) for step in self._passes] for term in self.objective.values()]
            self._counted = [torch.stack(counts).sum(0) for counts in found], len(self._passes)
        elif not self._passes:
            return self.begin(batch), [], 1
        return self._passes.pop(0), *self._counted

    def training_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> Tensor:
        """The weighted sum of all terms, scaled so that averaging over ranks and passes gives the global objective."""
        step, counts, passes = self._next(batch)
        sums, weights = zip(*(term(step) for term in self.objective.values()), strict=True)
        signals = {f"{name}/{key}": x for name, term in self.objective.items() for key, x in term.signals.items()}
        told = [*(counts or weights), *sums, *signals.values(), self.wishes.to(sums[0].device)]
        sizes = [value.numel() for value in told]
        dtype = torch.promote_types(sums[0].dtype, torch.float32)
        everyone = torch.cat([value.detach().reshape(-1).to(dtype) for value in told])
        if (world := ranks.world()) > 1:
            dist.all_reduce(everyone)  # the one message of a step beside the gradients
        known = everyone.split(sizes)
        k = len(sums)
        loss, self.latest = sums[0].new_zeros(()), {"loss": everyone.new_zeros(())}
        for i, (name, term) in enumerate(self.objective.items()):
            count = known[i].clamp(min=1e-12) / passes
            loss = loss + world * term.weight * (sums[i].reshape(-1) / count).sum()
            self.latest[name] = (known[k + i] / count).sum()
            self.latest["loss"] = self.latest["loss"] + term.weight * self.latest[name]
        self.latest |= {name: value.reshape(()) / world for name, value in zip(signals, known[2 * k : -1], strict=True)}
        self.heard = known[-1]
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
        """Steps and forgets the gradients; a teacher that follows after the step does so before any callback looks."""
        progress = self.progress
        super().optimizer_step(*args, **kwargs)
        # Lightning would keep gradients until the next backward pass, beside all activations
        self.optimizers(use_pl_optimizer=False).zero_grad()  # pyright: ignore[reportAttributeAccessIssue]  # there is one
        if self.teacher is not None and self.teacher.when == "after":
            self.teacher.follow(progress)

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: a step begins without gradients, as the one before forgot its own."""

    def configure_model(self) -> None:
        """Shares weights out among ranks where the strategy has a mesh (trainer.strategy=fsdp)."""
        if self.device_mesh is not None:
            shard(self, self.device_mesh["data_parallel"])

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
            self.optim.clip_apart(optimizer)
        elif self.optim.clip is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.optim.clip, gradient_clip_algorithm="norm")
