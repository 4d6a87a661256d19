"""What the terms of a run say about collapse: signals they give beside their loss, read by plain thresholds.

| signal | of | is |
|---|---|---|
| spread | answers | deviation of the normalised answers over that of even ones: 0 all the same, 1 even |
| deviation | answers whose length matters | mean deviation of their dimensions: 0 is one point |
| entropy | targets that are distributions | mean entropy over log k: 1 says nothing |
| usage | targets that are distributions | entropy of the mean target over log k: 0 is one prototype for all |
| chance | a loss | its value for an encoder that knows nothing |
| ema_distance | a teacher | its distance from the student over the length of the student's weights |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something seen in a run.

    Args:
        verdict: how serious it is: diverged, collapsed, unknown or warning.
        cause: what was seen.
        remedy: what to try.
    """

    verdict: str
    cause: str
    remedy: str


def findings(signals: Mapping[str, float]) -> list[Finding]:
    """What the newest signals say, by `term/name`; `term/loss` is the newest loss of a term with a chance value.

    | finding | threshold |
    |---|---|
    | collapsed: answers all the same | spread below 0.01 (a warning below 0.05) |
    | collapsed: answers shrink to a point | deviation below 0.01 (a warning below 0.05) |
    | collapsed: one prototype for all samples | usage below 0.05 |
    | collapsed: targets say nothing | entropy above 0.995 |
    | warning: loss at its chance value | loss at least 0.99 of chance |
    | warning: the teacher does not follow | ema_distance above 1 |
    """
    found = []
    for key, value in signals.items():
        if not math.isfinite(value):
            continue
        term, _, name = key.rpartition("/")
        if name == "spread" and value < 0.05:
            found.append(_same(term, value))
        elif name == "deviation" and value < 0.05:
            found.append(_point(term, value))
        elif name == "usage" and value < 0.05:
            found.append(_one(term, value))
        elif name == "entropy" and value > 0.995:
            found.append(_uniform(term, value))
        elif name == "chance" and signals.get(f"{term}/loss", -math.inf) >= 0.99 * value:
            found.append(_chance(term, signals[f"{term}/loss"], value))
        elif name == "ema_distance" and value > 1:
            cause = f"The teacher does not follow: it is {value:.2f} times the length of the student's weights away."
            remedy = "Lower teacher.momentum, or its first value: 0.99 to 0.996 is usual."
            found.append(Finding("warning", cause, remedy))
    return found


def _same(term: str, value: float) -> Finding:
    cause = f"Answers of term {term!r} are nearly the same for all samples: their spread is {value:.2%} of an even one."
    remedy = (
        "Nothing keeps them apart. Give the term a predictor and a stop-gradient (term/match), a variance term "
        "(set/vicreg, set/sigreg), or other samples as negatives (set/ntxent, loss/info_nce); or lower optim.lr."
    )
    return Finding("collapsed" if value < 0.01 else "warning", cause, remedy)


def _point(term: str, value: float) -> Finding:
    cause = f"Answers of term {term!r} shrink to a point: their dimensions deviate by {value:.2g}."
    remedy = "Give the objective a variance term, or raise its weight: set/vicreg's variance, or set/sigreg."
    return Finding("collapsed" if value < 0.01 else "warning", cause, remedy)


def _one(term: str, value: float) -> Finding:
    cause = f"Term {term!r} gives all samples the same target: the mean target's entropy is {value:.2%} of log k."
    remedy = (
        "Balance the prototypes: normalize norm/center with a momentum of 0.9 or less, or norm/sinkhorn; raise the "
        "batch size; lower optim.lr."
    )
    return Finding("collapsed", cause, remedy)


def _uniform(term: str, value: float) -> Finding:
    cause = f"Targets of term {term!r} say nothing: their entropy is {value:.2%} of that of a uniform distribution."
    remedy = "The target's temperature is too high: set normalize.temperature to 0.04 to 0.07."
    return Finding("collapsed", cause, remedy)


def _chance(term: str, loss: float, chance: float) -> Finding:
    cause = f"The loss of term {term!r} is at its chance value: {loss:.4g} of {chance:.4g}."
    remedy = (
        "It teaches nothing yet. Lower the loss's temperature (0.1 to 0.5), train longer, raise optim.lr, or look at "
        "`mmssl preview`: views of one sample have to share something."
    )
    return Finding("warning", cause, remedy)
