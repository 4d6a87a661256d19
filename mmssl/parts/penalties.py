"""Terms that keep something small, beside those that teach."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmssl.parts.regions import counted
from mmssl.plan import Plan
from mmssl.registry import register, suggest
from mmssl.step import Step


@register("term/square")
class Square(nn.Module):
    """The mean square of what an embedding gives on its way: the feature penalty of wav2vec 2.0 and HuBERT.

    Args:
        plan: the looks.
        tap: name of the layer of the embedding; `conv` of `tokenizer/waveform`.
        look: whose embedding.
        weight: factor of this term in the objective.
    """

    def __init__(self, plan: Plan, *, tap: str = "conv", look: str = "x", weight: float = 10.0) -> None:
        super().__init__()
        self.look, self.tap, self.weight = plan.named([look])[0], tap, weight
        self.signals: dict[str, Tensor] = {}

    @torch.no_grad()
    def count(self, step: Step) -> Tensor:
        """What `forward` divides by, without encoding anything."""
        tokens = step[self.look].tokens
        flags = counted(tokens)
        return tokens.index.new_tensor(tokens.index.numel()) if flags is None else flags.sum()

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum over tokens of the mean square, and their number.

        Raises:
            ValueError: for an embedding without this layer.
        """
        tokens = step[self.look].embedded
        if self.tap not in tokens.taps:
            known = ", ".join(tokens.taps) or "none"
            raise ValueError(f"term/square: the embedding gives no {self.tap!r}, it has {known}")
        squares = tokens.taps[self.tap].square().mean(-1)
        flags = counted(tokens)
        kept = squares if flags is None else torch.where(flags, squares, 0.0)
        return kept.sum(), self.count(step).to(squares.dtype)


@register("term/aside")
class Aside(nn.Module):
    """What another term says beside its loss: the commitment of a quantiser, the diversity of its codes.

    The other term, or its predictor, leaves it in `asides` under a name when it is computed, as a sum over what the
    other term counts. It has to stand in front of this one.

    Args:
        plan: the terms in front.
        of: the other term.
        name: what it says: `commitment` (`predictor/quantized`), `diversity` (`term/contrast`).
        weight: factor of this term in the objective.

    Raises:
        ValueError: for a term that is not in front; when called, for a name that it does not say.
    """

    def __init__(self, plan: Plan, *, of: str, name: str, weight: float = 1.0) -> None:
        super().__init__()
        if of not in plan.before:
            known = ", ".join(plan.before) or "none"
            near = suggest(of, plan.before)
            raise ValueError(f"term/aside reads term {of!r}, which has to stand in front of it; there is {known}{near}")
        self.of, self.name, self.weight = of, name, weight
        self.signals: dict[str, Tensor] = {}

    def count(self, step: Step) -> Tensor:
        """What `forward` divides by: what the other term counts."""
        return step.terms[self.of].count(step)

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """The sum that was left, and the other term's number."""
        term: Any = step.terms[self.of]
        said: dict[str, Tensor] = getattr(term, "asides", None) or getattr(term.predictor, "asides", {})
        if self.name not in said or len(getattr(term, "looks", ())) > 1:
            why = "speaks of several looks" if self.name in said else f"has {', '.join(said) or 'none'}"
            raise ValueError(f"term/aside: term {self.of!r} says no {self.name!r} alone, it {why}")
        return said[self.name], self.count(step).to(said[self.name].dtype)
