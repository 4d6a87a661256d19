"""What protocols are fitted and scored on. Made once per encoder and kind, and shared by the protocols of that kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.evaluation.features import Features, embed

NEEDS = {
    "pooled": "one vector and one class for each sample (or node)",
    "tokens": "all tokens and one class for each sample",
    "targets": "one vector and one quantity for each sample",
    "links": "node vectors and hidden edges",
    "segments": "all tokens and one class for each element (pixel, point)",
    "cells": "cells hidden on purpose and what the run fills in",
}

Batches = Callable[[], Iterable[Mapping[str, Any]]]
Pair = tuple[Any, Any]


class NoBaseline(ValueError):
    """A baseline that cannot be; its message says why, and is kept beside the null in the result."""


class NoLabels(ValueError):
    """Data without labels, on which no probe can score."""


@dataclass(frozen=True)
class Material:
    """One kind of what protocols need.

    Args:
        both: of an encoder, the training and the test part.
        raw: the same of the raw input; or the reason why there is none.
        others: further baselines by name: each is given a protocol's score and gives its own, or None where it has
            nothing to say to that metric.
        fresh: makes what stands beside as random initialisation, where that is not a fresh encoder; or why not.
        cut: of an encoder, the raw input as it is cut into tokens, which takes the place of `raw`.
    """

    both: Callable[[nn.Module], Pair]
    raw: Callable[[], Pair] | str
    others: Mapping[str, Callable[[Any], Any]] | None = None
    fresh: Callable[[int], nn.Module] | str | None = None
    cut: Callable[[nn.Module], Pair] | None = None


def pooled(train: Batches, test: Batches, raw: Callable[[], Pair] | str, pool: str = "mean", **more: Any) -> Material:
    """Pooled features with labels.

    Args:
        train: each call gives the training split anew, as dicts of `x` and `label`, unshuffled.
        test: the test split, likewise.
        raw: raw-input features of the training and of the test split; or the reason why there are none.
        pool: `mean`, `cls` or `token`; see `embed`.
        more: further fields of `Material`.
    """
    return Material(lambda network: (embed(network, train(), pool), embed(network, test(), pool)), raw, **more)


def measured(network: nn.Module, batches: Iterable[Mapping[str, Any]], quantities: Tensor, pool: str) -> Features:
    """Pooled features with a quantity for each sample, looked up by the samples' places in their split.

    Args:
        network: the encoder.
        batches: dicts of `x` and `id`.
        quantities: of all samples of the split, (n,) float64, NaN where there is none.
        pool: how tokens become one vector.
    """
    ids: list[Tensor] = []

    def noted() -> Iterable[Mapping[str, Any]]:
        for batch in batches:
            ids.append(batch["id"])
            yield {"x": batch["x"]}

    x = embed(network, noted(), pool).x
    return Features(x, quantities[torch.cat(ids)])


def labelled(part: Any, split: str, protocols: Sequence[str]) -> Any:
    """The samples with a label, of which there has to be one; parts without labels of their own as they are.

    Raises:
        NoLabels: where there is none.
    """
    if not hasattr(part, "labelled"):
        return part
    found = part.labelled()
    if len(found) == 0:
        raise NoLabels(
            f"protocol: the {split} split of the data has no labels, which {', '.join(protocols)} need. Give the data "
            "labels, or rely on the label-free monitors (rankme, feature_std, uniformity)."
        )
    return found
