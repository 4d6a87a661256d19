"""Terms: the sentences of an objective. Each asks the step for what it needs and returns (sum, weight)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmssl import ranks
from mmssl.registry import register
from mmssl.step import Look, Plan, Step
from mmssl.types import Tokens

Loss = Callable[[Tensor, Tensor], Tensor]


def regions(look: Look, at: str) -> tuple[Tensor, Tensor | None]:
    """Places (r, k, t) and validity of the tokens a loss is taken over: `hidden`, `visible` or `all`."""
    if at == "hidden":
        return look.mask.target_index
    if at == "visible":
        index, valid = look.mask.visible_index
        return index.unsqueeze(1), None if valid is None else valid.unsqueeze(1)
    if look.tokens.packed:
        return torch.arange(len(look.tokens.index), device=look.tokens.index.device)[None, None], None
    index = look.tokens.index if look.row is None else look.tokens.index[look.row]
    return index.unsqueeze(1), None


def request(plan: Plan, looks: Sequence[str], target: Any) -> None:
    """Tells looks what a target will ask them: it declares `asks` (`taught`) and `taps` (layers of the teacher)."""
    for name in looks:
        for what in getattr(target, "asks", ()):
            plan.ask(name, what)
        wanted = set(getattr(target, "taps", ()))
        if missing := wanted - set(plan.taps[name]):
            raise ValueError(f"the target reads layers {sorted(missing)}, but the encoder has {plan.taps[name]}")
        plan.looks[name].taught_taps |= wanted


@register("term/predict")
class Predict(nn.Module):
    """Predicts a target at some tokens from what the encoder saw.

    The term of MAE, SimMIM, CrossMAE, MaskFeat, BEiT, I-JEPA, V-JEPA, data2vec, MR-MAE, iBOT, VideoMAE, Audio-MAE,
    TERA, Point-MAE, GraphMAE, ReMasker: only predictor, target and loss differ. The sum over tokens is divided by
    their number in the global batch.

    Args:
        plan: sizes and twins.
        target: called as (plan, look), gives values for the tokens asked for; it never carries a gradient.
        loss: one number per token.
        predictor: called as (spec, width in, width out, taps); null for the features themselves, at places that were
            seen.
        head: name of a head behind the predictor, whose twin stands behind the target too (iBOT); null for none.
        normalize: applied to targets, called as (width), for instance `norm/layer`; null for none.
        at: which tokens: `hidden` (the masker's targets), `visible` or `all`; or a list of them, each averaged on its
            own and all of them summed (ReMasker: `[hidden, visible]`). A predictor with a method `both` answers hidden
            and visible tokens in one pass.
        reduce: `token` averages over all tokens asked for; `sample` over those of each row first, then over rows, those
            without any included (iBOT).
        look: which look, or a list of looks that share predictor and target and are averaged together.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look, region or word, or an encoder without the layers that are asked for.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        target: Callable[..., nn.Module],
        loss: Loss,
        predictor: Callable[..., nn.Module] | None = None,
        head: str | None = None,
        normalize: Callable[[int], nn.Module] | None = None,
        at: str | Sequence[str] = "hidden",
        reduce: str = "token",
        look: str | Sequence[str] = "x",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.at = [at] if isinstance(at, str) else list(at)
        if not self.at or len(set(self.at)) < len(self.at) or not set(self.at) <= {"hidden", "visible", "all"}:
            raise ValueError(f"a term's `at` has to be 'hidden', 'visible' or 'all', or a list of them (got {at!r})")
        if reduce not in ("token", "sample"):
            raise ValueError(f"a term's `reduce` has to be 'token' or 'sample' (got {reduce!r})")
        self.looks = plan.named([look] if isinstance(look, str) else look)
        for name in self.looks:
            plan.ask(name, "seen")
        first = self.looks[0]
        self.weight, self.loss, self.reduce, self.head = weight, loss, reduce, head
        self.look, self.target = first, target(plan, first)
        request(plan, self.looks, self.target)
        wide = int(self.target.dim)  # pyright: ignore[reportArgumentType]  # targets declare `dim`
        sizes = (plan.specs[first], plan.dims[first], wide, plan.taps[first])
        self.predictor = None if predictor is None else predictor(*sizes)
        if self.predictor is None and plan.dims[first] != wide:
            raise ValueError(
                f"features are {plan.dims[first]} wide and targets {wide}; give the term a predictor, such as "
                "predictor: {_target_: predictor/linear}"
            )
        if head is not None:
            wide = int(plan.head(head, wide).dim)  # pyright: ignore[reportArgumentType]  # heads declare `dim`
        self.normalize = None if normalize is None else normalize(wide)
        wanted = set(getattr(self.predictor, "taps", ()))
        for name in self.looks:
            if missing := wanted - set(plan.taps[name]):
                raise ValueError(f"the predictor reads layers {sorted(missing)}, but the encoder has {plan.taps[name]}")
            plan.looks[name].taps |= wanted
        self.signals: dict[str, Tensor] = {}

    def query(self, look: Look, at: str) -> tuple[Tokens, Tokens]:
        """The tokens a region asks for, with their clean raw values, and what was seen of their samples, (r k, ...)."""
        index, valid = regions(look, at)
        if index.shape[-1] == 0 and self.reduce == "token" and ranks.world() == 1:  # other ranks may have some
            raise ValueError(
                f"look {look.spec.name!r}: the masker asks for no token ({at}) in the whole batch, so that nothing "
                "is learned; raise masker.ratio or the scale of its blocks, or give samples more tokens"
            )
        row, seen, k = look.row, look.seen, index.shape[1]
        if k > 1:
            every = torch.arange(index.shape[0], device=index.device).repeat_interleave(k)
            row = every if row is None else row[every]
            prefix = None if seen.prefix is None else seen.prefix[every]
            seen = seen.take(_everywhere(seen)[every], every).but(
                prefix=prefix, taps={name: tap[every] for name, tap in seen.taps.items()}
            )
        return look.tokens.take(index.flatten(0, 1), row, None if valid is None else valid.flatten(0, 1)), seen

    def predict(self, step: Step, name: str | None = None) -> list[tuple[Tokens, Tensor]]:
        """Of each region the tokens asked for, and what is predicted there, (r k, t, o), in front of the head.

        Args:
            step: the step.
            name: of which look; the first one by default.
        """
        look = step[name or self.looks[0]]
        both: Callable[..., tuple[Tensor, Tensor]] | None = getattr(self.predictor, "both", None)
        if both is not None and set(self.at) == {"hidden", "visible"}:
            hidden, seen = self.query(look, "hidden")
            visible, _ = self.query(look, "visible")
            there, here = both(seen, hidden, visible)
            found = [(hidden, there), (visible, here)]
            return found if self.at[0] == "hidden" else found[::-1]
        asked = [self.query(look, at) for at in self.at]
        if self.predictor is None:
            return [(query, seen.at(query)) for query, seen in asked]
        return [(query, self.predictor(seen, query)) for query, seen in asked]

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum of the loss over the tokens asked for, and their number; (regions,) each where there are several."""
        found = [self.predict(step, name) for name in self.looks]
        regions = [self._region(step, list(asked)) for asked in zip(*found, strict=True)]
        if len(regions) == 1:
            return regions[0]
        sums, counts = zip(*regions, strict=True)
        return torch.stack(sums), torch.stack(counts)

    def _region(self, step: Step, asked: list[tuple[Tokens, Tensor]]) -> tuple[Tensor, Tensor]:
        """Sum and number over all looks."""
        kept = [counted(query) for query, _ in asked]
        # behind a head rows are wide: padding is left out before it
        packed = [flags is not None and self.head is not None for flags in kept]
        chosen = [flags if compact else None for flags, compact in zip(kept, packed, strict=True)]
        targets = self._targets(step, [query for query, _ in asked], chosen)
        sums, counts = [], []
        for i, (query, prediction) in enumerate(asked):
            if self.head is not None:
                prediction = step.heads[self.head](prediction if chosen[i] is None else prediction[chosen[i]])
            flags = kept[i]
            mask = step[self.looks[i]].mask if step[self.looks[i]].masked else None
            if mask is not None and mask.elements is not None:
                found = self._elements(prediction, targets[i], query, flags, mask.elements)
            else:
                losses = self.loss(prediction, targets[i])
                if chosen[i] is not None:
                    assert flags is not None
                    losses = losses.new_zeros(flags.shape).masked_scatter(flags, losses)
                found = self._reduced(losses, flags, query)
            sums.append(found[0])
            counts.append(found[1])
        return torch.stack(sums).sum(), torch.stack(counts).sum()

    @torch.no_grad()
    def _targets(self, step: Step, queries: list[Tokens], chosen: list[Tensor | None]) -> list[Tensor]:
        """Targets of every look, through the head's twin and normalised."""

        def head(values: Tensor) -> Tensor:
            if self.head is None:
                return values
            module = step.heads[self.head]
            return module(values) if step.teacher is None else step.teacher.of(module)(values)

        raw = [self.target(step[name], query) for name, query in zip(self.looks, queries, strict=True)]
        raw = [head(values if flags is None else values[flags]) for values, flags in zip(raw, chosen, strict=True)]
        if self.normalize is None:
            return raw
        normed = self.normalize(raw, step.progress)
        if self.training and hasattr(self.normalize, "follow"):
            if getattr(self.normalize, "whole", False):
                raw = [head(self.target(step[name], step[name].tokens)) for name in self.looks]
            self.normalize.follow(raw)  # pyright: ignore[reportCallIssue]  # a method of some normalisers
        return normed

    def _reduced(self, losses: Tensor, counted: Tensor | None, query: Tokens) -> tuple[Tensor, Tensor]:
        """Sum and number of a loss per token (r, t)."""
        # not a product: padding may hold what is not a number
        kept = losses if counted is None else torch.where(counted, losses, 0.0)
        if self.reduce == "token":
            count = float(losses.numel()) if counted is None else counted.sum()
            return kept.sum(), torch.as_tensor(count, dtype=losses.dtype, device=losses.device)
        ones = torch.ones_like(losses) if counted is None else counted.to(losses.dtype)
        if query.sample is not None:
            assert query.samples is not None
            sums, counts = (losses.new_zeros(query.samples).index_add(0, query.sample, x) for x in (kept, ones))
        else:
            sums, counts = kept.sum(-1), ones.sum(-1)
        return (sums / counts.clamp(min=1)).sum(), losses.new_tensor(float(len(sums)))

    def _elements(
        self, prediction: Tensor, target: Tensor, query: Tokens, counted: Tensor | None, elements: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss over some values of each token: the others are set equal, so that they add nothing."""
        repeats = query.index.shape[0] // elements.shape[0]
        marked = elements.repeat_interleave(repeats, 0).gather(
            1, query.index.unsqueeze(-1).expand(-1, -1, elements.shape[-1])
        )
        if counted is not None:
            marked = marked & counted.unsqueeze(-1)
        loss = self.loss(torch.where(marked, prediction.to(target.dtype), target), target)
        return loss.sum() * target.shape[-1], marked.sum().to(loss.dtype)


def counted(query: Tokens) -> Tensor | None:
    """Which of the tokens asked for are in the loss: neither padding nor naturally missing; None for all."""
    if query.given is None:
        return query.valid
    return query.given if query.valid is None else query.valid & query.given


def _everywhere(tokens: Tokens) -> Tensor:
    """Places 0 .. n - 1 of these tokens themselves, (b, n)."""
    return torch.arange(tokens.index.shape[1], device=tokens.index.device).expand_as(tokens.index)
