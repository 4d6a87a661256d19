"""Patch-wise mixtures of several samples as one sequence (MixedAE), and what tells their tokens apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.parts.norms import check_temperature
from mmssl.registry import register
from mmssl.step import Plan, Step
from mmssl.types import Mask, Tokens, TokenSpec


@register("masker/partition")
class Partition:
    """Shares the places of a grid out among the samples of a group: each place is visible in one of them (MixedAE).

    Groups are samples that follow one another in the batch. What a group draws is a function of its first sample.

    Args:
        groups: samples of a group; every one keeps n / groups tokens.

    Raises:
        ValueError: for less than two samples; when called, for tokens or a batch that do not divide.
    """

    def __init__(self, *, groups: int = 4) -> None:
        if groups < 2:
            raise ValueError(f"masker.groups is the number of samples that are mixed, at least 2 (got {groups})")
        self.groups = groups

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        b, n, g = *tokens.index.shape[:2], self.groups
        if tokens.packed or tokens.valid is not None or n % g or b % g:
            raise ValueError(
                f"masker.groups={g} has to divide the samples of a batch on every rank ({b} here) and the tokens of a "
                f"sample ({n}), which are equally many; choose another data.batch_size or masker.groups"
            )
        place = torch.arange(b, device=draws.keys.device)
        turn = draws.rows(place // g * g).named("mix").order(n).argsort(1) // (n // g)
        visible = (turn == (place % g).unsqueeze(1)).to(tokens.raw.device)
        return Mask(visible, ~visible.unsqueeze(1), None, n // g, n - n // g)


@register("corruptor/merge")
class Merge(nn.Module):
    """Puts the visible tokens of a group of samples into one sequence, and what comes of them apart again (MixedAE).

    `stream` says which sample of its group a token is of.

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts.
        dim: the encoder's width.
    """

    on = "tokens"
    needs = ("sequence",)

    def __init__(self, spec: TokenSpec, accepts: str, dim: int) -> None:
        super().__init__()

    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """Mixed sequences, (b / g, n), for masks that share all places out."""
        kept = tokens.take(mask.visible_index[0], mask.row)
        b, n = tokens.index.shape[0], tokens.index.shape[1]
        g = n // kept.index.shape[1]
        slot = torch.arange(b, device=kept.index.device).remainder(g).unsqueeze(1).expand_as(kept.index)
        return kept.but(
            raw=_joined(kept.raw, g), pos=_joined(kept.pos, g), index=_joined(kept.index, g), stream=_joined(slot, g)
        )

    def apart(self, features: Tokens, mask: Mask) -> Tokens:
        """Features of every sample's own tokens, (b, n / g); prefix tokens are those of the group."""
        assert features.x is not None
        g = len(mask.visible) // len(features.index)
        count = 0 if features.prefix is None else features.prefix.shape[1]
        taps = {
            name: torch.cat([tap[:, :count].repeat_interleave(g, 0), _split(tap[:, count:], g)], 1)
            for name, tap in features.taps.items()
        }
        return features.but(
            raw=_split(features.raw, g), pos=_split(features.pos, g), index=_split(features.index, g), stream=None,
            x=_split(features.x, g), taps=taps,
            prefix=None if features.prefix is None else features.prefix.repeat_interleave(g, 0),
        )  # fmt: skip


def _joined(x: Tensor, g: int) -> Tensor:
    """Rows (b, t, ...) of groups of g as one, (b / g, g t, ...)."""
    return x.unflatten(0, (-1, g)).flatten(1, 2)


def _split(x: Tensor, g: int) -> Tensor:
    """The inverse of `_joined`."""
    return x.unflatten(1, (g, -1)).flatten(0, 1)


@register("term/homologous")
class Homologous(nn.Module):
    """Tokens of a mixed sequence find those of their own sample among all others (MixedAE, Chen et al. 2023).

    For looks whose corruptor mixes samples. Each token's loss is the mean over its positives of the cross entropy of
    cosines with all other tokens of the sequence.

    Args:
        plan: sizes and twins.
        head: name of the head that tokens go through.
        temperature: of the cosines.
        look: which look.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look, one that does not mix, or a temperature not above 0.
    """

    def __init__(
        self, plan: Plan, *, head: str, temperature: float = 0.25, look: str = "x", weight: float = 1.0
    ) -> None:
        super().__init__()
        check_temperature(temperature, "term/homologous: temperature")
        self.look, self.head, self.weight, self.temperature = plan.named([look])[0], head, weight, temperature
        if not hasattr(plan.looks[self.look].corruptor, "apart"):
            raise ValueError(
                f"term/homologous: look {look!r} mixes no samples; its corruptor has to be corruptor/merge"
            )
        plan.answer(self.look, head, "seen", "token")
        self.signals: dict[str, Tensor] = {}

    def count(self, step: Step) -> Tensor:
        """How many tokens there are."""
        return step[self.look].mask.visible.sum()

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum of the loss over tokens, and their number."""
        look = step[self.look]
        b, own = look.seen.index.shape
        g = look.tokens.index.shape[1] // own
        z = F.normalize(look.answer(self.head, "seen", "token"), dim=-1).unflatten(0, (b // g, g * own))
        slot = torch.arange(g * own, device=z.device) // own
        itself = torch.eye(g * own, dtype=torch.bool, device=z.device)
        likely = torch.log_softmax((z @ z.mT / self.temperature).masked_fill(itself, -torch.inf), -1)
        positive = (slot.unsqueeze(1) == slot) & ~itself
        losses = -torch.where(positive, likely, 0.0).sum(-1) / max(own - 1, 1)
        return losses.sum(), losses.new_tensor(float(losses.numel()))
