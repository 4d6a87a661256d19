"""Terms: the sentences of an objective. Each asks the step for what it needs and returns (sum, weight)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

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
    index = look.tokens.index if look.row is None else look.tokens.index[look.row]
    return index.unsqueeze(1), None


@register("term/predict")
class Predict(nn.Module):
    """Predicts a target at some tokens from what the encoder saw.

    The term of MAE, SimMIM, CrossMAE, MaskFeat, BEiT, I-JEPA, V-JEPA, data2vec, MR-MAE, VideoMAE, Audio-MAE, Point-MAE,
    GraphMAE, ReMasker: only predictor, target and loss differ. The sum over tokens is divided by their number in the
    global batch.

    Args:
        plan: sizes and twins.
        predictor: called as (spec, width in, width out, taps).
        target: called as (plan, look), gives values for the tokens asked for; it never carries a gradient.
        loss: one number per token.
        at: which tokens: `hidden` (the masker's targets), `visible` or `all`.
        look: which look.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look or region, or an encoder without the layers that are asked for.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        predictor: Callable[..., nn.Module],
        target: Callable[..., nn.Module],
        loss: Loss,
        at: str = "hidden",
        look: str = "x",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if at not in ("hidden", "visible", "all"):
            raise ValueError(f"a term's `at` has to be 'hidden', 'visible' or 'all' (got {at!r})")
        if look not in plan.looks:
            raise ValueError(f"a term names look {look!r}, but the run has {', '.join(sorted(plan.looks))}")
        self.look, self.at, self.weight, self.loss = look, at, weight, loss
        self.target = target(plan, look)
        self.predictor = predictor(plan.specs[look], plan.dims[look], self.target.dim, plan.taps[look])
        wanted = set(getattr(self.predictor, "taps", ()))
        if missing := wanted - set(plan.taps[look]):
            raise ValueError(f"the predictor reads layers {sorted(missing)}, but the encoder has {plan.taps[look]}")
        plan.looks[look].taps |= wanted

    def predict(self, step: Step) -> tuple[Tokens, Tensor]:
        """The tokens asked for, with their clean raw values, and what is predicted there, (r k, t, o)."""
        look = step[self.look]
        index, valid = regions(look, self.at)
        row, seen, k = look.row, look.seen, index.shape[1]
        if k > 1:
            every = torch.arange(index.shape[0], device=index.device).repeat_interleave(k)
            row = every if row is None else row[every]
            prefix = None if seen.prefix is None else seen.prefix[every]
            seen = seen.take(_everywhere(seen)[every], every).but(
                prefix=prefix, taps={name: tap[every] for name, tap in seen.taps.items()}
            )
        query = look.tokens.take(index.flatten(0, 1), row, None if valid is None else valid.flatten(0, 1))
        return query, self.predictor(seen, query)

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum of the loss over the tokens asked for, and their number."""
        query, prediction = self.predict(step)
        loss = self.loss(prediction, self.target(step[self.look], query))
        counted = query.valid
        if query.given is not None:
            counted = query.given if counted is None else counted & query.given
        if counted is None:
            return loss.sum(), loss.new_tensor(float(loss.numel()))
        return (loss * counted).sum(), counted.sum().to(loss.dtype)


def _everywhere(tokens: Tokens) -> Tensor:
    """Places 0 .. n - 1 of these tokens themselves, (b, n)."""
    return torch.arange(tokens.index.shape[1], device=tokens.index.device).expand_as(tokens.index)
