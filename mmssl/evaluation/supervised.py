"""Scores of terms that name classes themselves, as in fine-tuning: the network with its head, no probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmssl.evaluation.features import Features, device_of, evaluating, rows, untouched
from mmssl.evaluation.material import NoLabels
from mmssl.evaluation.protocols import Score, top1


def classifier(module: nn.Module) -> Any:
    """The first term of a module's objective that names classes; None where there is none."""
    terms: Any = getattr(module, "objective", {})
    return next((term for term in terms.values() if getattr(term, "classifies", False)), None)


def logits(module: Any, batches: Iterable[Mapping[str, Any]]) -> Features:
    """What the classifying term of a module says of every labelled row, (n, classes), and the labels, on the CPU.

    Whole samples go through the network that is kept, in evaluation mode; no random state is touched.

    Args:
        module: with a term that `classifier` finds.
        batches: dicts with `x` and `label`.
    """
    term, found = classifier(module), []
    head, device = module.heads[term.head], device_of(module)
    with untouched(), evaluating(module), torch.inference_mode():
        for batch in batches:
            x, y = rows(module.kept(batch["x"].to(device)), batch.get("label"), term.pool)
            keep = y.to(x.device) >= 0
            found.append((head(x[keep]).float().cpu(), y[keep.to(y.device)].cpu()))
    if not found or not sum(len(y) for _, y in found):
        raise NoLabels("data: the split that a classifier is scored on holds no labelled sample")
    return Features(torch.cat([x for x, _ in found]), torch.cat([y for _, y in found]))


def score(module: Any, batches: Iterable[Mapping[str, Any]]) -> Score:
    """Top-1 accuracy of the classifying term on a split, with its interval over samples."""
    said = logits(module, batches)
    return top1(said.x.argmax(1), said, {"classes": said.x.shape[1]})


def answered(module: Any, data: Any) -> dict[str, float]:
    """Of a term that names classes, `top1` and `ce` (cross entropy, nats) on all of `val`; else empty."""
    if classifier(module) is None:
        return {}
    loader = data.eval_loader("val")
    if loader is None:
        return {}
    said = logits(module, loader)
    return {"top1": _right(said.x, said.y), "ce": float(cross_entropy(said.x.double(), said.y))}


def _right(x: Tensor, y: Tensor) -> float:
    return float((x.argmax(1) == y).double().mean())
