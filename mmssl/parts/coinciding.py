"""A term over two predictions of the same tokens from different views of the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.plan import Plan
from mmssl.registry import register, suggest
from mmssl.step import Step
from mmssl.types import Tokens


@register("term/coincide")
class Coincide(nn.Module):
    """What two decoders make of a token that is hidden from both should be alike (Point-CMAE, Ren et al. 2024).

    The mean over tokens hidden in both looks of 1 - cosine of what the last norms of two `term/predict` read there;
    both move. The looks have to show the same view, each with a mask of its own.

    Args:
        plan: names of the terms in front.
        terms: the two terms, which stand in front; their predictors have `keeps: true`.
        eps: added to each token's loss, as in the released code.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for anything else than two terms in front; when called, for a predictor that keeps nothing.
    """

    def __init__(self, plan: Plan, *, terms: Sequence[str], eps: float = 1e-8, weight: float = 1.0) -> None:
        super().__init__()
        if len(terms) != 2 or terms[0] == terms[1]:
            raise ValueError(f"a term's `terms` has to name two other terms (got {list(terms)})")
        for name in terms:
            if name not in plan.before:
                raise ValueError(
                    f"a term's `terms` names {name!r}, which is no term in front of it{suggest(name, plan.before)}"
                )
        self.terms, self.eps, self.weight = tuple(terms), eps, weight
        self.signals: dict[str, Tensor] = {}

    @torch.no_grad()
    def count(self, step: Step) -> Tensor:
        """Tokens that both looks hide."""
        first, second = (step[step.terms[name].look].mask.targets[:, 0] for name in self.terms)
        return (first & second).sum()

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum over the tokens hidden in both looks, and their number."""
        (query, one), (other, two) = (self._kept(step, name) for name in self.terms)
        hidden = step[step.terms[self.terms[1]].look].mask.targets[:, 0].gather(1, query.index)
        flags = hidden if query.valid is None else hidden & query.valid
        # places that only one look hides are looked up too, and left out
        losses = 1.0 - F.cosine_similarity(one.float(), other.at(query, two).float(), dim=-1) + self.eps
        return torch.where(flags, losses, 0.0).sum(), flags.sum().to(losses.dtype)

    def _kept(self, step: Step, name: str) -> tuple[Tokens, Tensor]:
        """The tokens a term asked for in this step, and what its predictor kept there."""
        term = step.terms[name]
        kept = getattr(term.predictor, "kept", None)
        if kept is None or len(term.looks) > 1 or kept.shape[:2] != step.losses[name, term.look][0][1].shape:
            raise ValueError(
                f"term/coincide reads what the predictor of term {name!r} kept of hidden tokens, but there is nothing: "
                f"set objective.{name}.predictor.keeps=true, with one look and at=hidden"
            )
        term.predictor.kept = None
        return step.losses[name, term.look][0][0], kept
