"""Losses that are foretold: the term that learns to, and the guide that asks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.parts.regions import asked, counted, foreseen
from mmssl.parts.targets import full
from mmssl.registry import register, suggest
from mmssl.step import Look, Plan, Step
from mmssl.types import Tokens, TokenSpec


def ranking(guess: Tensor, losses: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """How well guesses order the losses of each row: the cross entropy of each ordered pair, and whether it is right.

    Args:
        guess: foretold losses (r, t); only their differences matter.
        losses: what is ordered, (r, t).
        kept: which tokens take part, (r, t); None for all.

    Returns:
        The sum over pairs, where equal losses add nothing, and the number of pairs in the right order.
    """
    apart, gap = guess.unsqueeze(1) - guess.unsqueeze(2), losses.unsqueeze(1) - losses.unsqueeze(2)
    above = torch.sigmoid(apart)
    cost = torch.where(gap > 0, -torch.log(above + 1e-6), -torch.log(1 - above + 1e-6))
    differ, right = gap != 0, apart * gap > 0
    if kept is not None:
        pairs = kept.unsqueeze(1) & kept.unsqueeze(2)
        differ, right = differ & pairs, right & pairs
    return torch.where(differ, cost, 0.0).sum(), right.sum()


@register("term/rank")
class Rank(nn.Module):
    """Foretells which tokens of a row another term finds harder, pair by pair (HPM, Wang et al. 2023).

    A predictor of its own answers where that term asked, the mean of its answer is the guess. The loss is the mean of
    the binary cross entropy over all ordered pairs of tokens of a row; the losses themselves carry no gradient. The
    predictor has a twin where the run has a teacher, which `guide/loss` asks.

    Args:
        plan: sizes and twins.
        of: the term whose losses are foretold, in front of this one and of `term/predict`'s kind.
        predictor: called as (spec, width in, width out, taps).
        look: the look it asks about.
        width: width of the answer, whose mean is the guess; null for the number of raw values of a token (HPM).
        weight: factor of this term in the objective.

    Raises:
        ValueError: for a term that is not there, or does not come before.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        of: str,
        predictor: Callable[..., nn.Module],
        look: str = "x",
        width: int | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if of not in plan.before:
            known = ", ".join(plan.before) or "none"
            raise ValueError(
                f"objective.{plan.term}.of={of!r}: a term in front of it in the objective is meant, and there is "
                f"{known}{suggest(of, plan.before)}"
            )
        spec = plan.ask(plan.named([look])[0], "seen")
        sizes = (plan.specs[look], plan.dims[look], width or plan.specs[look].raw, plan.taps[look])
        self.of, self.look, self.weight, self.predictor = of, look, weight, predictor(*sizes)
        spec.taps |= set(getattr(self.predictor, "taps", ()))
        plan.twin(f"term_{plan.term}", self.predictor)
        self.signals: dict[str, Tensor] = {}

    @torch.no_grad()
    def count(self, step: Step) -> Tensor:
        """What `forward` divides by: the ordered pairs of two tokens of a row."""
        look, at = step[self.look], step.terms[self.of].at[0]
        return pairs(asked(look, at, *foreseen(look, at), bare=True))

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum of the loss over pairs, and their number."""
        if (self.of, self.look) not in step.losses:
            raise ValueError(f"term/rank: objective.{self.of} tells no losses of tokens of look {self.look!r}")
        term = step.terms[self.of]
        query, losses = step.losses[self.of, self.look][0]
        guess = full(self.predictor(term.query(step[self.look], term.at[0])[1], query)).mean(-1)
        count = pairs(query)
        total, right = ranking(guess, losses[:, -guess.shape[1] :], counted(query))
        self.signals["right"] = right / count.clamp(min=1)
        return total, count.to(total.dtype)


def pairs(query: Tokens) -> Tensor:
    """Number of ordered pairs of tokens of a row."""
    flags = counted(query)
    each = torch.full_like(query.index[:, 0], query.index.shape[1]) if flags is None else flags.sum(1)
    return (each * (each - 1)).sum()


@register("guide/loss")
class Foretold:
    """The loss that a term foretells at each token when the teacher sees the whole view (HPM).

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        term: name of that term, a `term/rank`.
    """

    asks = ("taught",)

    def __init__(self, spec: TokenSpec, width: int, *, term: str = "order") -> None:
        self.term = term

    @torch.no_grad()
    def __call__(self, look: Look) -> Tensor:
        """Scores (b, n)."""
        step = look.step
        if self.term not in step.terms:
            hint = suggest(self.term, step.terms)
            raise ValueError(f"guide.term={self.term!r}: the objective has {', '.join(step.terms)}{hint}")
        predictor: Any = step.terms[self.term].predictor
        predictor = predictor if step.teacher is None else step.teacher.of(predictor)
        both: Callable[..., tuple[Tensor, Tensor]] | None = getattr(predictor, "both", None)
        if both is None:
            return full(predictor(look.taught, look.tokens)).mean(-1)
        nothing = look.tokens.take(look.tokens.index[:, :0])
        return full(both(look.taught, nothing, look.tokens)[1]).mean(-1)
