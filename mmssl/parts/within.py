"""Objectives over the tokens of one sample: telling them apart, and keeping them apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl import ranks
from mmssl.parts.norms import at, check_temperature
from mmssl.parts.regions import counted
from mmssl.parts.targets import full
from mmssl.registry import register, suggest
from mmssl.step import Look, Plan, Step
from mmssl.types import Tokens


@register("loss/token_info_nce")
class TokenInfoNCE:
    """Each answer has to find its own target among those of its sample's other tokens (Latent MIM, Wei et al. 2024).

    Latent MIM takes 2 * temperature times as much: that is the term's weight.

    Args:
        temperature: of the cosines.
        standardize: whether each feature of the answers is standardised over the tokens of its row before.
        eps: added to the deviations.
    """

    within = True

    def __init__(self, *, temperature: float = 0.2, standardize: bool = True, eps: float = 1e-4) -> None:
        check_temperature(temperature, "loss/token_info_nce: temperature")
        self.temperature, self.standardize, self.eps = temperature, standardize, eps

    def __call__(self, prediction: Tensor, target: Tensor, kept: Tensor | None = None) -> Tensor:
        """One number per token of (r, t, o).

        Args:
            prediction: answers.
            target: what is found, likewise.
            kept: which tokens count, (r, t) bool; None for all.

        Raises:
            ValueError: for a packed batch.
        """
        if prediction.dim() != 3:
            raise ValueError("loss/token_info_nce compares the tokens of dense samples, and this batch is packed")
        x = prediction.to(target.dtype)
        if self.standardize:
            x = _standardised(x, kept, self.eps)
        logits = F.normalize(x, dim=-1) @ F.normalize(target, dim=-1).mT / self.temperature
        if kept is not None:
            logits = logits.masked_fill(~kept.unsqueeze(1), -torch.inf)
        own = logits.diagonal(dim1=1, dim2=2)
        losses = logits.logsumexp(2) - own
        return losses if kept is None else torch.where(kept, losses, 0.0)


def _standardised(x: Tensor, kept: Tensor | None, eps: float) -> Tensor:
    """Each feature (r, t, o) less its mean over the tokens, over its unbiased deviation plus eps."""
    if kept is None:
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + eps)
    weight = kept.unsqueeze(-1).to(x.dtype)
    count = weight.sum(1, keepdim=True)
    centred = (x - (x * weight).sum(1, keepdim=True) / count.clamp(min=1)) * weight
    return centred / ((centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt() + eps)


@register("target/asked")
class Asked(nn.Module):
    """The teacher's features of the tokens asked for, which are all that it sees (Latent MIM's target encoder).

    What the student sees is thus never in a target.

    Args:
        plan: sizes and twins.
        look: the look whose tokens are meant.
        head: name of a head behind the teacher's network, of which the twin is taken; null for none.
    """

    def __init__(self, plan: Plan, look: str, *, head: str | None = None) -> None:
        super().__init__()
        self.head, self.dim = head, plan.dims[look]
        if head is not None:
            self.dim = int(plan.head(head, plan.dims[look]).dim)  # pyright: ignore[reportArgumentType]  # they declare it

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Features of the tokens asked for, (r, t, d)."""
        teacher = look.step.teacher
        network = look.network if teacher is None else teacher.of(look.network)
        x = network.encoder(network.embed(query)).x
        if self.head is not None:
            module = look.step.heads[self.head]
            x = (module if teacher is None else teacher.of(module))(x)
        return full(x)


@register("term/similarity")
class Similarity(nn.Module):
    """Squared distance of the mean cosine between a sample's tokens from a value that is wished for (Latent MIM).

    The mean is over all pairs of tokens of a sample, each with itself too, and over the samples of the global batch.

    Args:
        plan: sizes.
        wanted: the value, or a schedule of it over progress.
        look: whose tokens.
        of: name of an earlier term whose answers are meant; null for what the encoder saw.
        head: name of a head between the encoder and what is meant; null for none.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look, or a term that does not stand in front of this one.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        wanted: float | Callable[[float], float] = 0.5,
        look: str = "x",
        of: str | None = None,
        head: str | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if of is not None and of not in plan.before:
            raise ValueError(
                f"term/similarity: of={of!r} has to be a term in front of this one{suggest(of, plan.before)}"
            )
        self.look, self.of, self.head, self.wanted, self.weight = plan.named([look])[0], of, head, wanted, weight
        plan.ask(self.look, "seen")
        if head is not None:
            plan.head(head, plan.dims[self.look])
        self.compares = True
        self.signals: dict[str, Tensor] = {}

    def count(self, step: Step) -> Tensor:
        """What `forward` divides by."""
        return step.draws.keys.new_ones(())

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """The squared distance, and 1: every rank gives the same value of the global batch."""
        if self.of is None:
            seen = step[self.look].projected(self.head)
            found = [(seen, seen.x)]
        else:
            found = step.answered[self.of, self.look]
        rows = []
        for tokens, x in found:
            assert x is not None
            unit, kept = F.normalize(full(x), dim=-1), counted(tokens)
            if kept is None:
                mean = unit.mean(1)
            else:
                mean = torch.where(kept.unsqueeze(-1), unit, 0.0).sum(1) / kept.sum(1, keepdim=True).clamp(min=1)
            rows.append(mean.square().sum(-1))  # the mean of all products is the product of means
        each = torch.cat(rows)
        sums = ranks.total(torch.stack([each.sum(), each.new_tensor(float(len(each)))]))
        mean = sums[0] / sums[1].detach()
        self.signals["similarity"] = mean.detach()
        return (mean - at(self.wanted, step.progress)).square(), mean.new_ones(())
