"""Terms: the sentences of an objective. Each asks the step for what it needs and returns (sum, weight)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    if look.tokens.packed:
        return torch.arange(len(look.tokens.index), device=look.tokens.index.device)[None, None], None
    index = look.tokens.index if look.row is None else look.tokens.index[look.row]
    return index.unsqueeze(1), None


@register("term/predict")
class Predict(nn.Module):
    """Predicts a target at some tokens from what the encoder saw.

    The term of MAE, SimMIM, CrossMAE, MaskFeat, BEiT, I-JEPA, V-JEPA, data2vec, MR-MAE, VideoMAE, Audio-MAE, TERA,
    Point-MAE, GraphMAE, ReMasker: only predictor, target and loss differ. The sum over tokens is divided by their
    number in the global batch.

    Args:
        plan: sizes and twins.
        predictor: called as (spec, width in, width out, taps).
        target: called as (plan, look), gives values for the tokens asked for; it never carries a gradient.
        loss: one number per token.
        at: which tokens: `hidden` (the masker's targets), `visible` or `all`; or a list of them, each averaged on its
            own and all of them summed (ReMasker: `[hidden, visible]`). A predictor with a method `both` answers hidden
            and visible tokens in one pass.
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
        at: str | Sequence[str] = "hidden",
        look: str = "x",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.at = [at] if isinstance(at, str) else list(at)
        if not self.at or len(set(self.at)) < len(self.at) or not set(self.at) <= {"hidden", "visible", "all"}:
            raise ValueError(f"a term's `at` has to be 'hidden', 'visible' or 'all', or a list of them (got {at!r})")
        if look not in plan.looks:
            raise ValueError(f"a term names look {look!r}, but the run has {', '.join(sorted(plan.looks))}")
        self.look, self.weight, self.loss = look, weight, loss
        self.target = target(plan, look)
        self.predictor = predictor(plan.specs[look], plan.dims[look], self.target.dim, plan.taps[look])
        wanted = set(getattr(self.predictor, "taps", ()))
        if missing := wanted - set(plan.taps[look]):
            raise ValueError(f"the predictor reads layers {sorted(missing)}, but the encoder has {plan.taps[look]}")
        plan.looks[look].taps |= wanted

    def query(self, look: Look, at: str) -> tuple[Tokens, Tokens]:
        """The tokens a region asks for, with their clean raw values, and what was seen of their samples, (r k, ...)."""
        index, valid = regions(look, at)
        row, seen, k = look.row, look.seen, index.shape[1]
        if k > 1:
            every = torch.arange(index.shape[0], device=index.device).repeat_interleave(k)
            row = every if row is None else row[every]
            prefix = None if seen.prefix is None else seen.prefix[every]
            seen = seen.take(_everywhere(seen)[every], every).but(
                prefix=prefix, taps={name: tap[every] for name, tap in seen.taps.items()}
            )
        return look.tokens.take(index.flatten(0, 1), row, None if valid is None else valid.flatten(0, 1)), seen

    def predict(self, step: Step) -> list[tuple[Tokens, Tensor]]:
        """Of each region the tokens asked for, and what is predicted there, (r k, t, o)."""
        look = step[self.look]
        both: Callable[..., tuple[Tensor, Tensor]] | None = getattr(self.predictor, "both", None)
        if both is not None and set(self.at) == {"hidden", "visible"}:
            hidden, seen = self.query(look, "hidden")
            visible, _ = self.query(look, "visible")
            there, here = both(seen, hidden, visible)
            found = [(hidden, there), (visible, here)]
            return found if self.at[0] == "hidden" else found[::-1]
        asked = [self.query(look, at) for at in self.at]
        return [(query, self.predictor(seen, query)) for query, seen in asked]

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum of the loss over the tokens asked for, and their number; (regions,) each where there are several."""
        found = [self._region(step, *asked) for asked in self.predict(step)]
        if len(found) == 1:
            return found[0]
        sums, counts = zip(*found, strict=True)
        return torch.stack(sums), torch.stack(counts)

    def _region(self, step: Step, query: Tokens, prediction: Tensor) -> tuple[Tensor, Tensor]:
        look = step[self.look]
        target, counted = self.target(look, query), query.valid
        if query.given is not None:
            counted = query.given if counted is None else counted & query.given
        elements = None if look.spec.masker is None and look.spec.mask is None else look.mask.elements
        if elements is not None:
            return self._elements(prediction, target, query, counted, elements)
        loss = self.loss(prediction, target)
        if counted is None:
            return loss.sum(), loss.new_tensor(float(loss.numel()))
        # not a product: padding may hold what is not a number
        return torch.where(counted, loss, 0.0).sum(), counted.sum().to(loss.dtype)

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


def _everywhere(tokens: Tokens) -> Tensor:
    """Places 0 .. n - 1 of these tokens themselves, (b, n)."""
    return torch.arange(tokens.index.shape[1], device=tokens.index.device).expand_as(tokens.index)
