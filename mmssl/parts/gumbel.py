"""Codes that are learned with what predicts them: a quantiser of the embedding, and the term that tells codes apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl import ranks
from mmssl.draws import Draws
from mmssl.parts.norms import Schedule, at, check_temperature
from mmssl.parts.regions import counted
from mmssl.plan import Plan
from mmssl.registry import register
from mmssl.step import Step


@register("quantizer/gumbel")
class Gumbel(nn.Module):
    """Product codes, one of each group of entries by a hard Gumbel softmax with straight-through gradient.

    vq-wav2vec and wav2vec 2.0 (Baevski et al. 2020); a linear map joins the groups' entries.

    Args:
        width: width of the features.
        groups: number of codebooks.
        entries: codes of each.
        dim: width of the joined entries, which groups divide, and of what the linear map gives.
        temperature: of the Gumbel softmax, a number or a schedule over progress.

    Raises:
        ValueError: when groups do not divide the width, or for a temperature not above 0.
    """

    def __init__(
        self,
        width: int,
        *,
        groups: int = 2,
        entries: int = 320,
        dim: int = 256,
        temperature: float | Schedule = 2.0,
    ) -> None:
        super().__init__()
        if dim % groups:
            raise ValueError(f"quantizer.groups={groups} does not divide quantizer.dim={dim}; choose a divisor")
        self.temperature = check_temperature(temperature, "quantizer/gumbel: temperature")
        self.groups, self.entries, self.dim = groups, entries, dim
        self.logits, self.proj = nn.Linear(width, groups * entries), nn.Linear(dim, dim)
        self.codes = nn.Parameter(torch.rand(groups, entries, dim // groups))
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def forward(self, x: Tensor, draws: Draws, progress: float) -> tuple[Tensor, Tensor]:
        """The codes (r, t, dim) of features (r, t, width), and the softmax of their logits (r, t, groups, entries).

        In evaluation the likeliest entries are taken.
        """
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x.to(self.logits.weight.dtype)).unflatten(-1, (self.groups, self.entries))
            noisy = logits
            if self.training:
                u = draws.uniform(*logits.shape[1:]).to(logits).clamp(1e-7, 1 - 1e-7)
                noisy = (logits - torch.log(-torch.log(u))) / at(self.temperature, progress)
            soft = torch.softmax(noisy, -1)
            hard = F.one_hot(noisy.argmax(-1), self.entries).to(soft.dtype)
            chosen = hard + soft - soft.detach() if self.training else hard
            joined = torch.einsum("rtgv,gvd->rtgd", chosen, self.codes).flatten(2)
            return self.proj(joined), torch.softmax(logits, -1)


@register("term/contrast")
class Contrast(nn.Module):
    """Each hidden token finds the code of its own embedding among those of other hidden tokens of its sample.

    wav2vec 2.0 (Baevski et al. 2020). Codes are those of the clean embedding, and are learned too. It says `diversity`
    beside: one minus the share of the codes that the global batch uses (its perplexity), for `term/aside`.

    Args:
        plan: sizes.
        quantizer: makes codes, called as (width of the features).
        predictor: called as (spec, width in, width of the codes, taps).
        features: the layer of the embedding that is quantised: `features` of `tokenizer/waveform`.
        negatives: codes of other tokens, drawn with replacement.
        temperature: of the cosines.
        dropout: of the features.
        look: which look.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look, an embedding that says no width, or when called without two hidden tokens.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        quantizer: Callable[[int], nn.Module],
        predictor: Callable[..., nn.Module],
        features: str = "features",
        negatives: int = 100,
        temperature: float = 0.1,
        dropout: float = 0.1,
        look: str = "x",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.look = plan.named([look])[0]
        plan.ask(self.look, "seen")
        width = getattr(plan.networks[self.look].embed, "width", None)
        if width is None:
            raise ValueError("term/contrast quantises a layer of the embedding; choose tokenizer/waveform")
        check_temperature(temperature, "term/contrast: temperature")
        self.quantizer: Any = quantizer(int(width))  # pyright: ignore[reportArgumentType]  # embeddings say a number
        sizes = (plan.specs[self.look], plan.dims[self.look], self.quantizer.dim, plan.taps[self.look])
        self.predictor = predictor(*sizes)
        self.features, self.negatives, self.temperature = features, negatives, temperature
        self.dropout, self.weight, self.compares = nn.Dropout(dropout), weight, True
        self.signals: dict[str, Tensor] = {}
        self.asides: dict[str, Tensor] = {}

    @torch.no_grad()
    def count(self, step: Step) -> Tensor:
        """What `forward` divides by, without encoding anything."""
        index, valid = step[self.look].mask.target_index
        return index.new_tensor(index.numel()) if valid is None else valid.sum()

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum over hidden tokens, and their number."""
        look, row = step[self.look], step[self.look].row
        index, valid = look.mask.target_index
        if index.shape[-1] < 2 and ranks.world() == 1:
            raise ValueError(
                "term/contrast compares hidden tokens of a sample, but there is one at most; raise masker.ratio"
            )
        query = look.tokens.take(index[:, 0], row, None if valid is None else valid[:, 0])
        answer = self.predictor(look.seen, query)
        clean = look.embedded
        values = clean.but(x=clean.taps[self.features]).take(query.index, row).x
        draws = look.draws if row is None else look.draws.rows(row)
        codes, soft = self.quantizer(self.dropout(values), draws.named("gumbel"), step.progress)
        losses = self._losses(answer, codes, self._others(query.index.shape, counted(query), draws))
        flags = counted(query)
        kept = losses if flags is None else torch.where(flags, losses, 0.0)
        total = self.count(step).to(losses.dtype)
        self._leave(soft, flags, total)
        return kept.sum(), total

    def _others(self, shape: torch.Size, flags: Tensor | None, draws: Draws) -> Tensor:
        """Of each hidden token the places of others among those of its row, (r, t, negatives); never its own."""
        r, t = shape
        u = draws.named("negatives").uniform(t, self.negatives)
        count = torch.full((r,), t, device=u.device) if flags is None else flags.sum(1)
        drawn = (u * (count - 1).clamp(min=1)[:, None, None]).long()
        own = torch.arange(t, device=u.device)[:, None]
        return (drawn + (drawn >= own)).clamp(max=t - 1)

    def _losses(self, answer: Tensor, codes: Tensor, others: Tensor) -> Tensor:
        """Cross entropy of each token with its own code in front of those of others, (r, t)."""
        answer, unit = F.normalize(answer.to(codes.dtype), dim=-1), F.normalize(codes, dim=-1)
        every = (answer @ unit.mT) / self.temperature  # of all pairs of a row, of which some are taken
        same = (codes.unsqueeze(1) == codes.unsqueeze(2)).all(-1)
        logits, twins = every.gather(2, others), same.gather(2, others)
        own = every.diagonal(dim1=1, dim2=2).unsqueeze(-1)
        logits = torch.cat([own, logits.masked_fill(twins, -torch.inf)], -1)
        return -torch.log_softmax(logits, -1)[..., 0]

    def _leave(self, soft: Tensor, flags: Tensor | None, count: Tensor) -> None:
        """What is said beside the loss, and signals."""
        weight = torch.ones_like(soft[..., 0, 0]) if flags is None else flags.to(soft.dtype)
        sums = torch.cat([(soft * weight[..., None, None]).sum((0, 1)).flatten(), weight.sum()[None]])
        sums = ranks.total(sums)
        mean = (sums[:-1] / sums[-1]).unflatten(0, soft.shape[2:])
        used = torch.exp(-(mean * torch.log(mean + 1e-7)).sum(-1)).sum()
        self.asides = {"diversity": (1 - used / mean.numel()) * count}
        self.signals = {"codes": used.detach()}
