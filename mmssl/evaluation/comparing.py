"""Which of several encoders is better, and which differences are noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from mmssl.evaluation.bootstrap import difference
from mmssl.evaluation.protocols import Score
from mmssl.evaluation.score import Result


def differences(found: Mapping[str, Mapping[str, Result]]) -> dict[str, list[dict[str, Any]]]:
    """Every pair of encoders by protocol, with the paired bootstrap over the same test samples.

    The interval is that of one difference; with many pairs some of them leave 0 out by chance.

    Args:
        found: results by encoder, then by protocol, all of the same data and split.

    Returns:
        By protocol (its further metrics as `protocol metric`): `a`, `b`, `metric`, `difference` (a's value less b's),
        `ci95`, `within_noise` (the interval holds 0) and `better` (the name of the better one, None within noise).

    Raises:
        ValueError: where encoders were scored on different numbers of test samples.
    """
    made: dict[str, list[dict[str, Any]]] = {}
    for a, b in combinations(found, 2):
        for protocol, result in found[a].items():
            if (other := found[b].get(protocol)) is None:
                continue
            pairs = {protocol: (result.score, other.score)}
            for metric, score in result.score.also.items():
                if metric in other.score.also:
                    pairs[f"{protocol} {metric}"] = (score, other.score.also[metric])
            for name, (own, others) in pairs.items():
                made.setdefault(name, []).append(_pair((a, own), (b, others), name))
    return made


def _pair(a: tuple[str, Score], b: tuple[str, Score], protocol: str) -> dict[str, Any]:
    (first, own), (second, other) = a, b
    if own.n != other.n or own.resampled.shape != other.resampled.shape:
        raise ValueError(
            f"{protocol}: {first} was scored on {own.n} test samples and {second} on {other.n}, so they cannot be "
            "compared sample by sample. Give both the same data=... and evaluation.limit."
        )
    low, high = difference(own.resampled, [other.resampled])
    noise = low <= 0 <= high
    better = None if noise else first if (low > 0) != own.lower else second
    return {
        "a": first, "b": second, "metric": own.metric, "difference": own.value - other.value, "ci95": [low, high],
        "within_noise": noise, "better": better,
    }  # fmt: skip


def check_alike(truths: Mapping[str, Sequence[Any]]) -> None:
    """Refuses encoders whose data differ.

    Args:
        truths: by encoder the data in words, then what has to be equal: their fingerprint, how many are read.

    Raises:
        ValueError: naming two encoders, and the remedy.
    """
    names = list(truths)
    for name in names[1:]:
        if list(truths[name][1:]) != list(truths[names[0]][1:]):
            raise ValueError(
                f"evaluate: {names[0]} and {name} would be scored on different data ({truths[names[0]][0]} and "
                f"{truths[name][0]}), so nothing could be said about them. Name one set for all with data=..., and "
                "what it needs (data.root=...)."
            )
