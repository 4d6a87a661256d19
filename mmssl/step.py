"""One training step, computed on demand. A term asks a look for what it needs; nothing runs before that, or twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.types import Mask, Tokens, TokenSpec, View, concat

Masker = Callable[[Tokens, Draws, float, Tensor | None], Mask]


@dataclass
class LookSpec:
    """How one look at a batch is made.

    Args:
        name: its key under `looks:`.
        views: the views it reads; several are joined as tokens of one sequence, with a `stream` id.
        masker: where to hide; None for a look at the whole.
        corruptor: how to hide. It declares `on`: `view` (values before the tokenizer), `tokens` (cut but not yet
            embedded: dropping) or `embedded` (mask tokens).
        network: which network encodes it.
        mask: the name of a look whose mask is shared, `~name` for its complement; None for a mask of its own.
        guide: scores tokens for the masker (a loss predictor, a teacher's attention); None for none.
        taps: layers that terms ask the encoder for, collected when the run is built.
        taught_taps: likewise of the teacher.
    """

    name: str
    views: tuple[str, ...]
    masker: Masker | None = None
    corruptor: Any = None
    network: str = "main"
    mask: str | None = None
    guide: Callable[[Look], Tensor] | None = None
    taps: set[str] = field(default_factory=set)
    taught_taps: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Plan:
    """What a term must know of the model to be built.

    Args:
        looks: how each look is made; a term adds the taps it needs.
        specs: sizes of the tokens of each look.
        dims: width of the features of each look.
        taps: names of the layers that the encoder of each look can give.
        twin: a copy of a module that follows as the teacher does; (name, module) to module.
    """

    looks: Mapping[str, LookSpec]
    specs: Mapping[str, TokenSpec]
    dims: Mapping[str, int]
    taps: Mapping[str, tuple[str, ...]]
    twin: Callable[[str, nn.Module], nn.Module]


class Step:
    """The looks of one training step.

    Args:
        batch: views by name, `id` and `epoch` per sample, perhaps `copy`, labels and side channels.
        specs: how each look is made.
        networks: the networks that looks name, each with `tokenizer`, `embed` and `encoder`.
        teacher: gives the twin of a module; None where the run has no teacher.
        seed: the run's seed.
        progress: share of the training done, in [0, 1]; every schedule is a function of it.
    """

    def __init__(
        self,
        batch: Mapping[str, Any],
        specs: Mapping[str, LookSpec],
        networks: Mapping[str, Any],
        teacher: Any = None,
        seed: int = 0,
        progress: float = 0.0,
    ) -> None:
        self.batch, self.networks, self.teacher, self.progress = batch, networks, teacher, progress
        self.draws = Draws.of(seed, batch["epoch"], batch["id"], batch.get("copy"))
        self._looks = {name: Look(self, spec) for name, spec in specs.items()}

    def __getitem__(self, name: str) -> Look:
        return self._looks[name]


class Look:
    """Everything that can be known about one look; each property is computed at most once, and only if asked for."""

    def __init__(self, step: Step, spec: LookSpec) -> None:
        self.step, self.spec = step, spec
        self.network = step.networks[spec.network]
        self.draws = step.draws.named(spec.name)

    def _cut(self, views: list[View]) -> Tokens:
        parts = [self.network.tokenizer(view) for view in views]
        return parts[0] if len(parts) == 1 else concat(parts)

    @cached_property
    def views(self) -> list[View]:
        """The clean views."""
        return [self.step.batch[name] for name in self.spec.views]

    @cached_property
    def tokens(self) -> Tokens:
        """The clean tokens of the whole: geometry and raw values, not embedded."""
        return self._cut(self.views)

    @cached_property
    def score(self) -> Tensor | None:
        """What the guide says of each token, (b, n); None without a guide."""
        return None if self.spec.guide is None else self.spec.guide(self)

    @cached_property
    def mask(self) -> Mask:
        """Where tokens are hidden."""
        if self.spec.mask is not None:
            other = self.step[self.spec.mask.removeprefix("~")].mask
            return other.invert() if self.spec.mask.startswith("~") else other
        assert self.spec.masker is not None, f"look {self.spec.name!r} has no masker"
        tokens, score = self.tokens, self.score  # kept for all who ask later, so not without gradient
        with torch.no_grad():
            return self.spec.masker(tokens, self.draws.named("mask"), self.step.progress, score)

    @property
    def row(self) -> Tensor | None:
        """The sample each mask row belongs to; None where rows are samples in order, or nothing is masked."""
        return None if self.spec.masker is None and self.spec.mask is None else self.mask.row

    @cached_property
    def seen(self) -> Tokens:
        """What the encoder makes of the view through mask and corruptor; of the whole where there is no corruptor."""
        corruptor, taps = self.spec.corruptor, tuple(sorted(self.spec.taps))
        if corruptor is None:
            return self.whole
        draws, tokens, embed = self.draws.named("corrupt"), self.tokens, self.network.embed
        # an embedding with statistics over all tokens (a batch norm) has to see them all
        late = corruptor.on == "embedded" or (corruptor.on == "tokens" and getattr(embed, "whole", False))
        if corruptor.on == "view":
            tokens = self._cut([corruptor(view, self, draws) for view in self.views])
        elif not late:
            tokens = corruptor(tokens, self.mask, draws)
        tokens = embed(tokens)
        if late:
            tokens = corruptor(tokens, self.mask, draws)
        return self.network.encoder(tokens, taps)

    @cached_property
    def whole(self) -> Tokens:
        """What the encoder makes of all of it, with gradient."""
        return self.network.encode(self.tokens, tuple(sorted(self.spec.taps)))

    @cached_property
    def taught(self) -> Tokens:
        """What the teacher makes of all of it, without gradient; the student itself where the run has no teacher."""
        network = self.network if self.step.teacher is None else self.step.teacher.of(self.network)
        with torch.no_grad():
            return network.encode(self.tokens, tuple(sorted(self.spec.taught_taps)))
