"""Targets that see only part of a view, or speak for a whole sample, and a predictor that reads an inner layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.parts.targets import Frozen, Teacher, full, layer_name
from mmssl.plan import Plan
from mmssl.registry import register
from mmssl.step import Look
from mmssl.types import Tokens, TokenSpec


@register("predictor/tap")
class Tap(nn.Module):
    """One linear map of an inner layer's features (DMAE); it answers only where the encoder saw.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give.
        layer: which layer: a name, or the share of blocks below it.
        unit: whether answers are divided by their length.

    Raises:
        ValueError: for a layer that the encoder does not have.
    """

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        layer: str | float = 0.75,
        unit: bool = False,
    ) -> None:
        super().__init__()
        self.taps, self.unit = (layer_name(layer, taps),), unit
        self.head = nn.Linear(width, out)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, t, out) at the places of the query, all of which must be among the seen tokens."""
        features = seen.taps[self.taps[0]][:, -seen.index.shape[1] :]  # without prefix
        return self._answer(seen.but(x=features).at(query))

    def with_class(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (r, 1 + t, out), the class token's in front (DMAE)."""
        layer = seen.taps[self.taps[0]]
        features = seen.but(x=layer[:, -seen.index.shape[1] :]).at(query)
        return self._answer(torch.cat([layer[:, :1], features], 1))

    def _answer(self, features: Tensor) -> Tensor:
        answer = self.head(features)
        return F.normalize(answer, dim=-1) if self.unit else answer


@register("target/seen")
class Seen(nn.Module):
    """What the student's encoder makes of another look through its mask, without gradient (CAE's alignment).

    The encoder is the student's own, as it is at this moment, with its drop path. CAE's other look is the complement:
    `looks: {x: {}, rest: {mask: ~x}}`.

    Args:
        plan: sizes.
        look: the look whose tokens are asked for.
        other: the look whose features are the target; it has to see all tokens that are asked for.

    Raises:
        ValueError: for an unknown look; when called, for several target blocks per row.
    """

    def __init__(self, plan: Plan, look: str, *, other: str) -> None:
        super().__init__()
        if other not in plan.looks:
            raise ValueError(f"target/seen names look {other!r}, but the run has {', '.join(sorted(plan.looks))}")
        self.other, self.dim = other, plan.dims[other]

    @torch.no_grad()
    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Features of the tokens asked for, (r, t, d)."""
        other = look.step[self.other]
        # not `other.seen`, which keeps a graph
        features = other.network.encoder(other.prepared("whole" if other.spec.corruptor is None else "seen"))
        if len(features.index) != len(query.index):
            raise ValueError("target/seen has one row per mask; use a masker with one target block")
        return full(features.at(query))


@register("target/frozen_seen")
class FrozenSeen(Frozen):
    """Features of a frozen network that sees the same tokens as the student and no others (DMAE, Bai et al. 2023).

    Args:
        plan: sizes.
        look: the look whose mask is shared.
        network: called as (spec of the look's tokens), gives a frozen network whose encoder takes any subset of tokens,
            for instance `network/timm` or `network/run`.
        layer: which layer: a name, or the share of blocks below it; null for the output.

    Raises:
        ValueError: for a network that needs whole samples, or a layer that it does not have; when called, for tokens on
            another grid than the student's.
    """

    def __init__(
        self, plan: Plan, look: str, *, network: Callable[..., nn.Module], layer: str | float | None = None
    ) -> None:
        super().__init__(plan, look, network=network, layer=layer)
        encoder: Any = self._network[0].encoder
        if encoder.accepts != "sequence":
            raise ValueError(
                "target/frozen_seen needs a network that runs on visible tokens alone, such as a vision transformer; "
                f"this one accepts {encoder.accepts!r}. target/frozen takes any network."
            )

    def forward(self, look: Look, query: Tokens) -> Tensor:
        """Features of the tokens asked for, all of which must be visible, (r, t, d)."""
        return self.with_class(look, query)[:, -query.index.shape[1] :]

    @torch.no_grad()
    def with_class(self, look: Look, query: Tokens) -> Tensor:
        """Features (r, 1 + t, d), those of the class token in front, where there is one."""
        network: Any = self._network[0]
        tokens = network.tokenizer(look.views[0])
        if tokens.grid != look.tokens.grid:
            raise ValueError(
                f"target/frozen_seen: the frozen network has tokens on {tokens.grid}, the student on "
                f"{look.tokens.grid}; give both the same input size and patch"
            )
        index, valid = look.mask.visible_index
        seen = tokens.take(index, look.mask.row, valid)
        features = self._at_layer(network.encoder(network.embed(seen), () if self.layer is None else (self.layer,)))
        tokens = full(features.at(query))
        return tokens if features.prefix is None else torch.cat([full(features.prefix[:, :1]), tokens], 1)


@register("target/teacher_mean")
class TeacherMean(Teacher):
    """The mean over tokens of what `target/teacher` gives, for a class token to match (data2vec 2.0); for `term/match`.

    Args:
        plan: sizes.
        look: the look whose samples are meant.
        layers: names of layers whose mean is the target; null for the output.
        layer_norm: what each layer is standardised by before: `layer`, `instance` or null; see `target/teacher`.
        token_norm: whether each token is standardised over its features before the mean over tokens.
    """

    def __init__(
        self,
        plan: Plan,
        look: str,
        *,
        layers: Sequence[str] | None = None,
        layer_norm: str | None = None,
        token_norm: bool = True,
    ) -> None:
        super().__init__(plan, look, layers=layers, layer_norm=layer_norm)
        self.token_norm = token_norm

    @torch.no_grad()
    def pooled(self, look: Look, pool: str) -> Tensor:
        """One target per sample, (b, d), whatever the pool of the answers."""
        features = look.taught
        assert features.x is not None
        x = self._layers(features) if self.taps else full(features.x)
        x = F.layer_norm(x, x.shape[-1:]) if self.token_norm else x
        return features.but(x=x).pool("mean")
