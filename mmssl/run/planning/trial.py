"""Two steps of a run through its own trainer, with every tensor counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor

from mmssl.config import build
from mmssl.evaluation.features import untouched
from mmssl.run.device import Flops
from mmssl.run.planning.live import Live, collected
from mmssl.run.planning.weightless import Idle, empty, hidden
from mmssl.run.strategies import prepare
from mmssl.run.trainer import Settings, lightning_trainer, quiet

# Two: the state of the optimizer is there from the second one on.
_STEPS = 2


@dataclass(frozen=True)
class Counted:
    """What a step was counted to take.

    Args:
        samples: of a pass.
        forward: operations of the forward pass, one pass.
        backward: operations of the backward pass, one pass.
        lines: bytes of each of `LABELS` after each operation of the second step, (labels, operations).
        peaks: the same at the fullest moment of each phase, (labels, phases).
        state: bytes that the optimizer keeps.
    """

    samples: int
    forward: int
    backward: int
    lines: np.ndarray
    peaks: np.ndarray
    state: int


class _Watch(Flops):
    """Tells the counter where phases begin, and what gradients and the optimizer's state are."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self.live, self.forward, self.state, self.begun = live, 0, 0, list[int]()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The forward pass begins."""
        self.begun.append(self.live.events)
        self.live.note({key: value for key, value in batch.items() if key != "later"}, "batch")
        self.live.note([list(one.values()) for one in batch.get("later", ())], "batch")
        self.live.mark("forward")
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Any) -> None:
        """The backward pass begins."""
        if self._counter is not None:
            self.forward = self._counter.get_total_flops()
        self.live.mark("backward")

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """All gradients are there."""
        self.live.note([p.grad for p in pl_module.parameters() if p.grad is not None], "gradients")

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        """The optimizer steps."""
        self.live.mark("optimizer")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The state of the optimizer is there."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        kept = [tensor for state in trainer.optimizers[0].state.values() for tensor in state.values()]
        kept = [tensor for tensor in kept if isinstance(tensor, torch.Tensor)]
        self.live.note(kept, "optimizer")
        self.state = sum(tensor.untyped_storage().nbytes() for tensor in kept)


class _Given:
    """A loader of batches that are there already."""

    def __init__(self, pieces: list[dict[str, Any]]) -> None:
        self.pieces = pieces

    def __len__(self) -> int:
        return _STEPS * len(self.pieces)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(_STEPS):
            # as the loader of a run does, which see
            first, *later = [dict(piece) for piece in self.pieces]
            yield first | {"later": later} if later else first
            yield from later


class Trial:
    """A recipe whose steps can be counted, one after the other.

    Args:
        tree: a checked configuration.
        data: its data.
        settings: its trainer.
        weightless: whether weights have sizes and no memory; what is then asked of their values cannot be known.
    """

    def __init__(self, tree: Mapping[str, Any], data: Any, settings: Settings, weightless: bool = True) -> None:
        self.data, self.settings, self.weightless = data, settings, weightless
        self.device = torch.device("cuda" if settings.gpus else "cpu")
        facts = data.facts()
        if weightless:
            with Idle():
                self.module = build.module(tree, facts)
        else:
            self.module = build.module(tree, facts)
        if weightless:
            empty(self.module, self.device)
            # the trainer moves modules, which weights without values cannot follow
            for word in ("to", "cpu"):
                object.__setattr__(self.module, word, self._stay)
        prepare(
            self.module, checkpoint_activations=settings.checkpoint_activations, compiled=False, sync_batchnorm=False
        )
        self.module.steps = _STEPS

    def _stay(self, *_: Any, **__: Any) -> Any:
        return self.module

    def batch(self, samples: int) -> dict[str, Any]:
        """A training batch of so many samples; those of small data come several times."""
        count = len(self.data.dataset("train"))
        return self.data.batch([(0, i % count) for i in range(samples)])

    def tokens(self) -> dict[str, dict[str, Any]]:
        """Of each look: its network, tokens of a sample, and how many of them are visible; None where not known."""
        found, samples = {}, self.data.batch_size if self.data.full else min(8, self.data.batch_size)
        with untouched(), torch.no_grad():
            step = self.module.begin(self.batch(samples))
            for name, look in step.looks.items():
                rows = len(step.batch["id"])
                tokens = look.tokens
                whole = tokens.index.numel() if tokens.valid is None else int(tokens.valid.sum())
                seen = None
                if look.masked and not isinstance(visible := look.mask.visible, FakeTensor):
                    kept = visible.sum() if tokens.valid is None or look.row is not None else (
                        visible & tokens.valid.view_as(visible)
                    ).sum()  # fmt: skip
                    seen = round(float(kept) / (rows if tokens.packed else len(visible)), 1)
                found[name] = {"network": look.spec.network, "tokens": round(whole / rows, 1), "visible": seen}
        return found

    def count(self, samples: int, passes: int = 1) -> Counted:
        """Takes two steps with so many samples in each of some passes."""
        live = Live()
        watch = _Watch(live)
        pieces = [self.batch(samples) for _ in range(passes)]
        module: Any = self.module
        for parameter in module.parameters():
            parameter.grad = None
        module.latest = {}
        teacher = [] if module.teacher is None else [*module.teacher.parameters(), *module.teacher.buffers()]
        live.note(teacher, "teacher")
        theirs = {id(tensor) for tensor in teacher}
        everything = (*module.parameters(), *module.buffers(), *_kept(module))
        live.note([tensor for tensor in everything if id(tensor) not in theirs], "weights")
        given = replace(
            self.settings, devices=1, nodes=1, strategy="auto", accumulate=passes, compile=False, max_epochs=None,
            max_steps=_STEPS,
        )  # fmt: skip
        with untouched(), quiet(), collected(), live:
            trainer = lightning_trainer(given, _STEPS, [watch], [])
            trainer.fit(module, train_dataloaders=_Given(pieces))
        start = watch.begun[(_STEPS - 1) * passes]
        live.marks = [mark for mark in live.marks if mark[0] >= start]
        peaks = live.peaks()[1]
        step = (watch.step or 0) // passes
        return Counted(samples, watch.forward, step - watch.forward, live.timeline()[:, start:], peaks, watch.state)


def _kept(module: torch.nn.Module) -> list[torch.Tensor]:
    """Weights of networks that hide from the module."""
    return [tensor for one in hidden(module) if one is not module for tensor in one.state_dict().values()]
