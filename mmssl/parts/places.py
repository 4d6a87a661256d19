"""Where a token was, as a question: positions are classes, or a place has to find its own patch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.nn.positions import Learned
from mmssl.parts.regions import counted, regions
from mmssl.registry import register
from mmssl.step import Look, Plan, Step
from mmssl.types import Mask, Tokens, TokenSpec


@register("corruptor/unread")
class Unread(nn.Module):
    """Hidden tokens stay, but nothing reads them: attention has keys and values of visible tokens alone (MP3).

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
        """All tokens, one row per mask; `valid` says which are read."""
        whole = tokens if mask.row is None else tokens.take(tokens.index[mask.row], mask.row)
        return whole.but(valid=mask.visible if whole.valid is None else whole.valid & mask.visible)


@register("target/position")
class Position(nn.Module):
    """Which place of the sample a token has, as one class of as many as there are places (MP3, Zhai et al. 2022).

    Args:
        plan: sizes.
        look: the look whose tokens are meant.

    Raises:
        ValueError: where samples are unequally long.
    """

    def __init__(self, plan: Plan, look: str) -> None:
        super().__init__()
        count = plan.specs[look].length
        if count is None:
            raise ValueError("target/position needs samples of equally many tokens, so that places can be classes")
        self.dim = count

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """One-hot rows of the tokens asked for, (r, t, n)."""
        return F.one_hot(query.index, self.dim).float()


@register("term/choose")
class Choose(nn.Module):
    """For each hidden place, its own patch has to be chosen among the hidden patches of the same sample (Selfie).

    The encoder's class token, which saw the visible tokens, and a learned vector of the place ask; the embeddings of
    the hidden tokens are what is chosen from, by their product. Both sides carry a gradient. Trinh, Luong, Le 2019.

    Args:
        plan: sizes.
        position: position embedding of the places asked for, called as (spec, dim).
        look: which look.
        weight: factor of this term in the objective.

    Raises:
        ValueError: for an unknown look; when called, for an encoder without a class token.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        position: Callable[[TokenSpec, int], nn.Module] = Learned,
        look: str = "x",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.look, self.weight = plan.named([look])[0], weight
        plan.ask(self.look, "seen")
        self.position = position(plan.specs[self.look], plan.dims[self.look])
        self.signals: dict[str, Tensor] = {}

    def _query(self, look: Look) -> Tokens:
        """The hidden tokens of each row, (r, t, ...)."""
        index, valid = regions(look, "hidden")
        assert index.shape[1] == 1, "one set of hidden tokens per row"
        return look.tokens.take(index[:, 0], look.row, None if valid is None else valid[:, 0])

    @torch.no_grad()
    def count(self, step: Step) -> Tensor:
        """How many places ask."""
        query = self._query(step[self.look])
        flags = counted(query)
        return torch.as_tensor(query.index.numel(), device=query.index.device) if flags is None else flags.sum()

    def forward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Sum of the cross entropy over hidden places, and their number."""
        look = step[self.look]
        query, seen = self._query(look), look.seen
        if seen.prefix is None:
            raise ValueError("term/choose asks by the class token; set encoder.class_token=true")
        choices = look.network.embed(query).x
        asked = seen.prefix[:, :1] + self.position(query)
        scores = asked @ choices.mT
        flags = counted(query)
        if flags is not None:
            scores = scores.masked_fill(~flags.unsqueeze(1), -torch.inf)
        own = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[:2])
        losses = F.cross_entropy(scores.flatten(0, 1), own.flatten(), reduction="none").view_as(own)
        kept = torch.ones_like(own, dtype=torch.bool) if flags is None else flags
        number = kept.sum()
        right = (scores.detach().argmax(-1) == own) & kept
        self.signals["top1"] = right.sum() / number.clamp(min=1).to(losses.dtype)
        return torch.where(kept, losses, 0.0).sum(), number.to(losses.dtype)
