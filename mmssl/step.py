"""One training step, computed on demand. A term asks a look for what it needs; nothing runs before that, or twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.joining import chunks, concat, join, joined, signature, split
from mmssl.plan import LookSpec as LookSpec
from mmssl.plan import Plan as Plan
from mmssl.types import Mask, Tokens, View


class Step:
    """The looks of one training step.

    Args:
        batch: views by name, `id` and `epoch` per sample, perhaps `copy`, labels and side channels.
        specs: how each look is made.
        networks: the networks that looks name, each with `tokenizer`, `embed` and `encoder`.
        teacher: gives the twin of a module; None where the run has no teacher.
        seed: the run's seed.
        progress: share of the training done, in [0, 1]; every schedule is a function of it.
        heads: heads by name.
        number: how many optimizer steps were taken before; what the whole batch shares is drawn from it.
        chunk: encodes at most so many rows at once and once more on the way back, so that memory does not bound the
            batch (gradient caching, Gao et al. 2021); None for all at once.
        terms: terms by name, for those that speak about others, and for guides.
    """

    def __init__(
        self,
        batch: Mapping[str, Any],
        specs: Mapping[str, LookSpec],
        networks: Mapping[str, Any],
        teacher: Any = None,
        seed: int = 0,
        progress: float = 0.0,
        heads: Mapping[str, Any] | None = None,
        number: int = 0,
        chunk: int | None = None,
        terms: Mapping[str, Any] | None = None,
    ) -> None:
        self.batch, self.networks, self.teacher, self.progress = batch, networks, teacher, progress
        self.heads, self.chunk, self.terms = heads or {}, chunk, terms or {}
        # by term and look, of each region: the tokens asked for and the loss of each, detached
        self.losses: dict[tuple[str, str], list[tuple[Tokens, Tensor]]] = {}
        # likewise the tokens asked for and what was answered there, with gradient
        self.answered: dict[tuple[str, str], list[tuple[Tokens, Tensor]]] = {}
        self.draws = Draws.of(seed, batch["epoch"], batch["id"], batch.get("copy"), number)
        self.looks = {name: Look(self, spec) for name, spec in specs.items()}
        self._encoded: dict[tuple[str, str], Tokens] = {}
        self._made: dict[Any, Any] = {}
        self._answers: dict[tuple[str, str, str, str, str | None], Tensor] = {}

    def __getitem__(self, name: str) -> Look:
        return self.looks[name]

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What several parts need alike: made when the first of them asks."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def cut(self, look: Look) -> Tokens:
        """The clean tokens of a look; looks of one network at the same views share them, with masks of their own."""
        return self.once((look.spec.network, look.spec.views), lambda: look.cut(look.views))

    def encoded(self, kind: str, look: Look) -> Tokens:
        """Features of a look; looks that are encoded alike and have as many tokens share one call of the encoder."""
        if (kind, look.spec.name) not in self._encoded:
            group = self._group(kind, look)
            parts = list(group.values())
            taps = tuple(sorted(set[str]().union(*(self[name].taps(kind) for name in group))))
            with torch.set_grad_enabled(torch.is_grad_enabled() and kind != "taught"):
                whole = self._encode(look.network_of(kind).encoder, join(parts), taps)
            for name, features in zip(group, split(whole, parts), strict=True):
                self._encoded[kind, name] = features
        return self._encoded[kind, look.spec.name]

    def _group(self, kind: str, first: Look) -> dict[str, Tokens]:
        """The embedded tokens of all looks that can share a call with this one, by name."""
        network, group = first.network_of(kind), {first.spec.name: first.prepared(kind)}
        like = signature(group[first.spec.name])
        if like is None or not network.joins:
            return group
        others = {
            name: look.prepared(kind) for name, look in self.looks.items()
            if look is not first and (kind, name) not in self._encoded and kind in look.kinds
            and look.network_of(kind) is network
        }  # fmt: skip
        alike = [signature(tokens) == like for tokens in others.values()]
        if ranks.lockstep(network.encoder):  # lengths may differ between ranks, the number of calls may not
            alike = ranks.agreed(alike, self.draws.keys.device)
        return group | {name: tokens for (name, tokens), yes in zip(others.items(), alike, strict=True) if yes}

    def _encode(self, encoder: Any, tokens: Tokens, taps: tuple[str, ...]) -> Tokens:
        """All at once, or in chunks that are encoded again in the backward pass."""
        if self.chunk is None or tokens.packed:
            return encoder(tokens, taps)
        count = -(-len(tokens.index) // self.chunk)
        if ranks.lockstep(encoder):
            count = ranks.largest(count, tokens.index.device)
        if count <= 1:
            return encoder(tokens, taps)
        parts = chunks(tokens, count)
        if not torch.is_grad_enabled():
            return joined([encoder(part, taps) for part in parts])
        again: list[Any] = [checkpoint(encoder, part, taps, use_reentrant=False) for part in parts]
        return joined(again)

    def answer(self, look: Look, head: str, what: str, pool: str, layer: str | None = None) -> Tensor:
        """What a head makes of a look's pooled features; heads that are `joint` see all looks that ask, in one call."""
        key = (head, what, pool, layer)
        if (look.spec.name, *key) not in self._answers:
            module = self.heads[head]
            joint = getattr(module, "joint", False)
            group = [one for one in self.looks.values() if one is look or (joint and key in one.spec.answers)]
            if what == "taught" and self.teacher is not None:
                module = self.teacher.of(module)
            with torch.set_grad_enabled(torch.is_grad_enabled() and what != "taught"):
                pooled = [one.pooled(what, pool, layer) for one in group]
                answers = module(pooled[0] if len(pooled) == 1 else torch.cat(pooled))
            for one, rows in zip(group, answers.split([len(x) for x in pooled]), strict=True):
                self._answers[(one.spec.name, *key)] = rows
        return self._answers[(look.spec.name, *key)]


class Look:
    """Everything that can be known about one look; each property is computed at most once, and only if asked for."""

    def __init__(self, step: Step, spec: LookSpec) -> None:
        self.step, self.spec = step, spec
        self.network = step.networks[spec.network]
        self.draws = step.draws.named(spec.name)
        self._projected: dict[str, Tokens] = {}

    def cut(self, views: list[View]) -> Tokens:
        """Views as tokens; several as one sequence."""
        parts = [self.network.tokenizer(view) for view in views]
        return parts[0] if len(parts) == 1 else concat(parts)

    @cached_property
    def views(self) -> list[View]:
        """The clean views."""
        return [self.step.batch[name] for name in self.spec.views]

    @cached_property
    def tokens(self) -> Tokens:
        """The clean tokens of the whole: geometry and raw values, not embedded."""
        return self.step.cut(self)

    @cached_property
    def embedded(self) -> Tokens:
        """The clean tokens of the whole, embedded by the student, with what the embedding gives on its way as taps."""
        return self.network.embed(self.tokens)

    @cached_property
    def score(self) -> Tensor | None:
        """What the guide says of each token, (b, n); None without a guide."""
        guide = self.spec.guide
        # kept for all who ask later: a guide that trains has its gradient also where only a mask is counted
        with torch.set_grad_enabled(torch.is_grad_enabled() or getattr(guide, "training", False)):
            return None if guide is None else guide(self)

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
    def masked(self) -> bool:
        """Whether the look has a mask."""
        return self.spec.masker is not None or self.spec.mask is not None

    @property
    def row(self) -> Tensor | None:
        """The sample each mask row belongs to; None where rows are samples in order, or nothing is masked."""
        return self.mask.row if self.masked else None

    def _kind(self, what: str) -> str:
        """Which encoding answers a question.

        Without a corruptor what is seen is the whole; without a teacher what is taught is the whole, where that is
        encoded anyway.
        """
        if what == "seen" and self.spec.corruptor is None:
            return "whole"
        if what == "taught" and self.step.teacher is None:
            return "whole" if "whole" in {self._kind(other) for other in self.spec.asked - {"taught"}} else "taught"
        return what

    @cached_property
    def kinds(self) -> frozenset[str]:
        """The encodings that terms ask for: `seen`, `whole`, `taught`."""
        return frozenset(self._kind(what) for what in self.spec.asked)

    def taps(self, kind: str) -> set[str]:
        """The layers that an encoding has to keep."""
        if kind == "taught":
            return self.spec.taught_taps
        return self.spec.taps | (self.spec.taught_taps if self.step.teacher is None else set())

    def network_of(self, kind: str) -> Any:
        """The network of an encoding: the teacher's for `taught`, where there is one."""
        return self.step.teacher.of(self.network) if kind == "taught" and self.step.teacher else self.network

    def prepared(self, kind: str) -> Tokens:
        """Embedded tokens, ready to be encoded."""
        network = self.network_of(kind)
        if kind == "seen":
            return self._corrupted(network)
        with torch.set_grad_enabled(torch.is_grad_enabled() and kind != "taught"):
            return network.prepare(self.tokens)

    def _corrupted(self, network: Any) -> Tokens:
        """The view through mask and corruptor, embedded."""
        corruptor, draws, tokens = self.spec.corruptor, self.draws.named("corrupt"), self.tokens
        if corruptor.on == "view":
            return network.embed(self.cut([corruptor(view, self, draws) for view in self.views]))
        if corruptor.on == "embedded":
            return corruptor(self.embedded, self.mask if self.masked else None, draws)
        kept = corruptor(tokens, self.mask if self.masked else None, draws)
        # an embedding with statistics over all tokens (a batch norm) has to see those that are dropped, too
        whole = getattr(network.embed, "whole", False) and getattr(corruptor, "drops", False)
        embedded = network.embed(tokens, kept, self.row) if whole else network.embed(kept)
        after = getattr(corruptor, "after", None)  # one that also acts behind the embedding
        return embedded if after is None else after(embedded, self.mask, draws)

    def _features(self, what: str) -> Tokens:
        features = self.step.encoded(self._kind(what), self)
        if what == "seen" and hasattr(self.spec.corruptor, "apart"):  # samples that were mixed come apart
            return self.spec.corruptor.apart(features, self.mask)
        return features

    @property
    def seen(self) -> Tokens:
        """What the encoder makes of the view through mask and corruptor; of the whole where there is no corruptor."""
        return self._features("seen")

    def projected(self, head: str | None) -> Tokens:
        """`seen` through a head (by name), token by token; one that `mixes` gets all, one with `looks` those of all."""
        seen = self.seen
        if head is None:
            return seen
        if head not in self._projected:
            module = self.step.heads[head]
            if names := getattr(module, "looks", ()):
                joined = self.step.once((head, "joined"), lambda: module([self.step[name].seen for name in names]))
                self._projected[head] = dict(zip(names, joined, strict=True))[self.spec.name]
            elif getattr(module, "mixes", False):
                self._projected[head] = module(seen)
            else:
                prefix = None if seen.prefix is None else module(seen.prefix)
                self._projected[head] = seen.but(x=module(seen.x), prefix=prefix)
        return self._projected[head]

    @property
    def whole(self) -> Tokens:
        """What the encoder makes of all of it, with gradient."""
        return self._features("whole")

    @cached_property
    def taught(self) -> Tokens:
        """What the teacher makes of all of it, without gradient; the student itself where the run has no teacher."""
        tokens = self._features("taught")
        taps = {name: tap.detach() for name, tap in tokens.taps.items()}
        prefix = None if tokens.prefix is None else tokens.prefix.detach()
        return tokens.but(x=None if tokens.x is None else tokens.x.detach(), prefix=prefix, taps=taps)

    def pooled(self, what: str, pool: str, layer: str | None = None) -> Tensor:
        """Features of `seen`, `whole` or `taught` as rows (r, d): one per sample, or per valid token with `token`."""
        tokens = self.taught if what == "taught" else self._features(what)
        tokens = tokens if layer is None else tokens.layer(layer)
        if pool != "token":
            return tokens.pool(pool)
        assert tokens.x is not None
        return tokens.x if tokens.packed else tokens.x.flatten(0, 1) if tokens.valid is None else tokens.x[tokens.valid]

    def answer(self, head: str | None, what: str, pool: str, layer: str | None = None) -> Tensor:
        """What a head (by name) makes of the pooled features of `seen` or `taught`, (r, o); of the twins if taught."""
        if head is None:
            return self.pooled(what, pool, layer)
        if what == "taught" and self.step.teacher is None and self._kind("taught") == self._kind("seen"):
            return self.step.answer(self, head, "seen", pool, layer).detach()
        return self.step.answer(self, head, what, pool, layer)
