"""How looks are made, and what terms must know of a model to be built."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.types import Mask, Tokens, TokenSpec

Masker = Callable[[Tokens, Draws, float, Tensor | None], Mask]


@dataclass
class LookSpec:
    """How one look at a batch is made.

    Args:
        name: its key under `looks:`.
        views: the views it reads; several are joined as tokens of one sequence, with a `stream` id.
        masker: where to hide; None for a look at the whole.
        corruptor: how to hide. It declares `on`: `view` (values before the tokenizer), `tokens` (cut but not yet
            embedded: dropping) or `embedded` (mask tokens). `maskless` where it needs no masker for that. `lost`,
            called as (look, draws), says what it took away where that is not whole tokens. `after` is a second
            stage behind the embedding, `apart` gives every sample its own features where samples were mixed.
        network: which network encodes it.
        mask: the name of a look whose mask is shared, `~name` for its complement; None for a mask of its own.
        guide: scores tokens for the masker (a loss predictor, a teacher's attention), called with the look; None for
            none. It may declare what it asks of the look, as targets do, and have weights.
        taps: layers that terms ask the encoder for, collected when the run is built.
        taught_taps: likewise of the teacher.
        asked: what terms ask of the look: `seen`, `whole`, `taught`. Looks that are asked the same share a call.
        answers: which answers terms ask for, as (head, `seen` or `taught`, pool, layer or None).
    """

    name: str
    views: tuple[str, ...]
    masker: Masker | None = None
    corruptor: Any = None
    network: str = "main"
    mask: str | None = None
    guide: Callable[[Any], Tensor] | None = None
    taps: set[str] = field(default_factory=set)
    taught_taps: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    answers: set[tuple[str, str, str, str | None]] = field(default_factory=set)


class Heads:
    """The heads of a run by name, each made when the first term asks for it.

    Args:
        makers: what makes the head of each name, called as (width).
        twin: makes the teacher's twin of a module.
    """

    def __init__(
        self, makers: Mapping[str, Callable[[int], nn.Module]], twin: Callable[[str, nn.Module], object]
    ) -> None:
        self.makers, self.twin, self.made, self.widths = makers, twin, nn.ModuleDict(), dict[str, int]()

    def __call__(self, name: str, width: int) -> nn.Module:
        """The head of a name for features of this width; and its twin.

        Raises:
            ValueError: for an unknown name, or another width than before.
        """
        if name not in self.makers:
            raise ValueError(f"a term names head {name!r}, but the run has {', '.join(sorted(self.makers)) or 'none'}")
        if name not in self.made:
            self.made[name], self.widths[name] = self.makers[name](width), width
            if not getattr(self.made[name], "alone", False):  # what learns from the teacher has no twin in it
                self.twin(f"head_{name}", self.made[name])
        if self.widths[name] != width:
            raise ValueError(f"heads.{name} reads features of {self.widths[name]} and of {width}; give two heads")
        return self.made[name]

    def check(self) -> None:
        """Refuses a head that no term names.

        Raises:
            ValueError: naming it.
        """
        if unused := sorted(set(self.makers) - set(self.made)):
            raise ValueError(f"heads.{unused[0]}: no term names this head; give a term head: {unused[0]}, or remove it")


@dataclass(frozen=True)
class Plan:
    """What a term must know of the model to be built.

    Args:
        looks: how each look is made; a term adds the taps it needs.
        specs: sizes of the tokens of each look.
        dims: width of the features of each look.
        taps: names of the layers that the encoder of each look can give.
        networks: the network of each look.
        head: the head of a name for features of a width, made when the first term asks; its twin is made with it.
        twin: makes the teacher's twin of a module under a name; nothing where the run has no teacher.
        term: name of the term that is being built, and `before` those of the terms in front of it.
        taught: whether the run has a teacher.
    """

    looks: Mapping[str, LookSpec]
    specs: Mapping[str, TokenSpec]
    dims: Mapping[str, int]
    taps: Mapping[str, tuple[str, ...]]
    networks: Mapping[str, nn.Module]
    head: Callable[[str, int], nn.Module]
    twin: Callable[[str, nn.Module], object] = lambda name, module: None
    term: str = ""
    before: tuple[str, ...] = ()
    taught: bool = False

    def named(self, patterns: Sequence[str]) -> list[str]:
        """The looks that names or patterns such as `s*` stand for.

        Raises:
            ValueError: where one stands for none.
        """
        found: list[str] = []
        for pattern in patterns:
            matched = [name for name in self.looks if fnmatch.fnmatchcase(name, pattern)]
            if not matched:
                raise ValueError(f"a term names look {pattern!r}, but the run has {', '.join(sorted(self.looks))}")
            found += [name for name in matched if name not in found]
        return found

    def ask(self, look: str, what: str) -> LookSpec:
        """Says that a term will ask a look for `seen`, `whole` or `taught`."""
        self.looks[look].asked.add(what)
        return self.looks[look]

    def answer(self, look: str, head: str | None, what: str, pool: str, layer: str | None = None) -> int:
        """Says that a term will ask for `Look.answer(head, what, pool, layer)`; gives its width."""
        spec, width = self.ask(look, what), self.dims[look]
        if layer is not None:
            (spec.taught_taps if what == "taught" else spec.taps).add(layer)
            width = getattr(self.networks[look].encoder, "tap_dims", {}).get(layer, width)
        width *= 2 if pool == "meanmax" else 1
        if head is None:
            return width
        spec.answers.add((head, what, pool, layer))
        return int(self.head(head, width).dim)  # pyright: ignore[reportArgumentType]  # heads declare `dim`

    def joint(self, head: str, look: str) -> int:
        """Says that a term will ask for `Look.projected(head)`; gives its width.

        Raises:
            ValueError: where the head joins looks, and this is none of them, or they have different widths.
        """
        made: Any = self.head(head, self.dims[look])
        joined = self.named(getattr(made, "looks", ()))
        if joined and look not in joined:
            raise ValueError(f"heads.{head} joins looks {joined}; look {look!r} is none of them")
        for other in joined:
            self.ask(other, "seen")
            if self.dims[other] != self.dims[look]:
                raise ValueError(
                    f"heads.{head} joins looks {joined}, whose encoders are {self.dims[look]} and {self.dims[other]} "
                    "wide; give them one width"
                )
        return int(made.dim)
