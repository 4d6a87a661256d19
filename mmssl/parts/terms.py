"""Terms: the sentences of an objective. Each asks the step for what it needs and returns (sum, weight)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl import ranks
from mmssl.parts.regions import (
    asked,
    beside,
    blocks_of,
    check_borrowed,
    counted,
    everywhere,
    foreseen,
    marked,
    named_regions,
    regions,
    request,
)
from mmssl.registry import register
from mmssl.step import Look, Plan, Step
from mmssl.types import Tokens

Loss = Callable[..., Tensor]


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
        project: name of a head between the encoder and the predictor (Latent MIM, DMT-JEPA), whose twin targets name
            themselves; it may join the tokens of several looks (`head/exchange`). Null for none.
        normalize: applied to targets, called as (width), for instance `norm/layer`; null for none.
        at: which tokens: `hidden` (the masker's targets), `visible`, `all`, or `kept`, those that the encoder gave
            (encoder/pruned); or a list of them, each averaged on its own and all of them summed (ReMasker: `[hidden,
            visible]`); `hidden.0` are those of the first stream. A predictor with a method `both` answers hidden and
            visible tokens in one pass.
        reduce: `token` averages over all tokens asked for; `sample` over those of each row first, then over rows, those
            without any included (iBOT); `asked` likewise over the rows that have any (MultiMAE).
        look: which look, or a list of looks that share predictor and target and are averaged together.
        memory: a further look, whose features the predictor gets as a third argument (CroCo, SiamMAE): those of each
            row's sample, or the row's own where both looks have several masks; null for none.
        class_token: whether the class token is asked too and counts as one more token of each row (dBOT, DMAE); for
            predictors and targets that have a method `with_class`.
        of: name of an earlier term whose predictor answers, in place of one of its own (A2MIM, UMD); null for none.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look, term, region or word, or an encoder without the layers that are asked for.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        target: Callable[..., nn.Module],
        loss: Loss,
        predictor: Callable[..., nn.Module] | None = None,
        head: str | None = None,
        project: str | None = None,
        normalize: Callable[[int], nn.Module] | None = None,
        at: str | Sequence[str] = "hidden",
        reduce: str = "token",
        look: str | Sequence[str] = "x",
        memory: str | None = None,
        class_token: bool = False,
        of: str | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.at = named_regions(at)
        if reduce not in ("token", "sample", "asked"):
            raise ValueError(f"a term's `reduce` has to be 'token', 'sample' or 'asked' (got {reduce!r})")
        self.looks = plan.named([look] if isinstance(look, str) else look)
        for name in self.looks:
            plan.ask(name, "seen")
        first = self.looks[0]
        self.weight, self.loss, self.reduce, self.head = weight, loss, reduce, head
        self.name, self.memory, self.class_token, self.of = plan.term, memory, class_token, of
        if memory is not None:
            plan.ask(plan.named([memory])[0], "seen")
        self.look, self.target = first, target(plan, first)
        request(plan, self.looks, self.target)
        wide = int(self.target.dim)  # pyright: ignore[reportArgumentType]  # targets declare `dim`
        width, self.project = plan.dims[first], project
        if project is not None:
            width = max([plan.joint(project, name) for name in self.looks])  # one head has one width
        sizes = (plan.specs[first], width, wide, plan.taps[first])
        self.predictor = None if predictor is None else predictor(*sizes)
        check_borrowed(plan, of, self.predictor)
        if self.predictor is None and of is None and width != wide:
            raise ValueError(
                f"features are {width} wide and targets {wide}; give the term a predictor, such as "
                "predictor: {_target_: predictor/linear}"
            )
        if head is not None:
            wide = int(plan.head(head, wide).dim)  # pyright: ignore[reportArgumentType]  # heads declare `dim`
        self.normalize = None if normalize is None else normalize(wide)
        for part in (self.predictor, self.target) if class_token else ():
            if not hasattr(part, "with_class"):
                raise ValueError(
                    f"class_token=true: {type(part).__name__} says nothing at the class token; set class_token to false"
                )
        wanted = set(getattr(self.predictor, "taps", ()))
        for name in self.looks:
            if missing := wanted - set(plan.taps[name]):
                raise ValueError(f"the predictor reads layers {sorted(missing)}, but the encoder has {plan.taps[name]}")
            plan.looks[name].taps |= wanted
        self.signals: dict[str, Tensor] = {}

    @torch.no_grad()
    def count(self, step: Step) -> Tensor:
        """What `forward` divides by, without encoding anything."""
        counts = []
        for at in self.at:
            total = step.draws.keys.new_zeros(())
            for look in (step[name] for name in self.looks):
                index, valid = foreseen(look, at)
                query = asked(look, at, index, valid, bare=True)
                flags, elements = counted(query), look.mask.elements if look.masked else None
                if elements is not None:
                    total = total + marked(query, flags, elements).sum()
                elif self.reduce == "token":
                    total = total + (query.index.numel() if flags is None else flags.sum())
                    total = total + len(query.index) * self.class_token
                elif self.reduce == "asked" and flags is not None:
                    total = total + flags.any(-1).sum()
                else:
                    total = total + (len(query.index) if query.samples is None else query.samples)
            # a predictor may answer several times in training
            counts.append(total * getattr(self.answering(step), "decodings", 1) if self.training else total)
        return counts[0] if len(counts) == 1 else torch.stack(counts)

    def answering(self, step: Step) -> Any:
        """The predictor: its own, or that of another term."""
        return self.predictor if self.of is None else step.terms[self.of].predictor

    def query(self, look: Look, at: str) -> tuple[Tokens, Tokens]:
        """The tokens a region asks for, with their clean raw values, and what was seen of their samples, (r k, ...)."""
        index, valid = regions(look, at)
        if index.shape[-1] == 0 and self.reduce == "token" and ranks.world() == 1:  # other ranks may have some
            raise ValueError(
                f"look {look.spec.name!r}: the masker asks for no token ({at}) in the whole batch, so that nothing "
                "is learned; raise masker.ratio or the scale of its blocks, or give samples more tokens"
            )
        seen, every = look.projected(self.project), blocks_of(index)
        if every is not None:
            prefix = None if seen.prefix is None else seen.prefix[every]
            seen = seen.take(everywhere(seen)[every], every).but(
                prefix=prefix, taps={name: tap[every] for name, tap in seen.taps.items()}
            )
        return asked(look, at, index, valid), seen

    def predict(self, step: Step, name: str | None = None) -> list[tuple[Tokens, Tensor]]:
        """Of each region the tokens asked for, and what is predicted there, (r k, t, o), in front of the head.

        Args:
            step: the step.
            name: of which look; the first one by default.
        """
        look = step[name or self.looks[0]]
        found = self._answers(look)
        return [(query, answer[:, 1:]) for query, answer in found] if self.class_token else found

    def _answers(self, look: Look) -> list[tuple[Tokens, Tensor]]:
        """As `predict`, with the answer at the class token in front where that is asked for."""
        predictor = self.answering(look.step)
        both: Callable[..., tuple[Tensor, Tensor]] | None = getattr(predictor, "both", None)
        if both is not None and set(self.at) == {"hidden", "visible"} and not (self.class_token or self.memory):
            hidden, seen = self.query(look, "hidden")
            visible, _ = self.query(look, "visible")
            there, here = both(seen, hidden, visible)
            found = [(hidden, there), (visible, here)]
            return found if self.at[0] == "hidden" else found[::-1]
        found = [self.query(look, at) for at in self.at]
        if predictor is None:
            return [(query, seen.at(query)) for query, seen in found]
        if self.class_token and look.seen.prefix is None:
            raise ValueError("class_token=true, but this encoder has no class token; set encoder.class_token=true")
        answer: Any = predictor.with_class if self.class_token else predictor
        if self.memory is None:
            return [(query, answer(seen, query)) for query, seen in found]
        memory = look.step[self.memory].seen
        return [(query, answer(seen, query, beside(memory, look, query))) for query, seen in found]

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum of the loss over the tokens asked for, and their number; (regions,) each where there are several."""
        found = [self._answers(step[name]) for name in self.looks]
        step.answered |= {(self.name, name): asked for name, asked in zip(self.looks, found, strict=True)}
        reduced = [self._region(step, list(asked)) for asked in zip(*found, strict=True)]
        if len(reduced) == 1:
            return reduced[0]
        sums, counts = zip(*reduced, strict=True)
        return torch.stack(sums), torch.stack(counts)

    def _region(self, step: Step, asked: list[tuple[Tokens, Tensor]]) -> tuple[Tensor, Tensor]:
        """Sum and number over all looks."""
        kept = [self._with_class(counted(query)) for query, _ in asked]
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
                # a loss that compares the tokens of a row has to know which of them count
                known = (flags,) if getattr(self.loss, "within", False) else ()
                losses = self.loss(prediction, targets[i], *known)
                if chosen[i] is not None:
                    assert flags is not None
                    losses = losses.new_zeros(flags.shape).masked_scatter(flags, losses)
                step.losses.setdefault((self.name, self.looks[i]), []).append((query, losses.detach()))
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

        target: Any = self.target.with_class if self.class_token else self.target
        raw = [target(step[name], query) for name, query in zip(self.looks, queries, strict=True)]
        raw = [head(values if flags is None else values[flags]) for values, flags in zip(raw, chosen, strict=True)]
        if self.normalize is None:
            return raw
        normed = self.normalize(raw, step.progress)
        if self.training and hasattr(self.normalize, "follow"):
            if getattr(self.normalize, "whole", False):
                raw = [head(self.target(step[name], step[name].tokens)) for name in self.looks]
            self.normalize.follow(raw)  # pyright: ignore[reportCallIssue]  # a method of some normalisers
        return normed

    def _with_class(self, flags: Tensor | None) -> Tensor | None:
        """Flags of tokens (r, t), with the class token in front where it is asked for."""
        return F.pad(flags, (1, 0), value=True) if self.class_token and flags is not None else flags

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
        number = (counts > 0).sum().to(losses.dtype) if self.reduce == "asked" else losses.new_tensor(float(len(sums)))
        return (sums / counts.clamp(min=1)).sum(), number

    def _elements(
        self, prediction: Tensor, target: Tensor, query: Tokens, counted: Tensor | None, elements: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss over some values of each token: the others are set equal, so that they add nothing."""
        chosen = marked(query, counted, elements)
        loss = self.loss(torch.where(chosen, prediction.to(target.dtype), target), target)
        return loss.sum() * target.shape[-1], chosen.sum().to(loss.dtype)
