"""Frozen features: an encoder or the raw input over a data set, without touching the encoder or any random state."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.nn.labels import UNLABELLED, counted, label_at
from mmssl.types import Tokens


@dataclass(frozen=True)
class Features:
    """One vector and one label per sample (or per token, where the data are tokens: nodes, points).

    Args:
        x: (n, d) float32.
        y: (n,) int64, -1 where there is no label; or quantities, (n,) float64, NaN where there is none.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """Number of rows, n."""
        return len(self.y)

    def where(self, keep: Tensor) -> Features:
        """The rows at which `keep` (n,) bool holds."""
        return Features(self.x[keep], self.y[keep])

    def known(self) -> Tensor:
        """Which rows have a label, (n,) bool."""
        return torch.isfinite(self.y) if self.y.is_floating_point() else self.y >= 0

    def labelled(self) -> Features:
        """The rows that have a label."""
        return self.where(self.known())


@contextmanager
def untouched() -> Iterator[None]:
    """Puts back torch's, NumPy's and Python's global random state: what runs inside cannot disturb training.

    Needed even where nothing is drawn on purpose: a DataLoader draws a seed whenever it is iterated.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule has the training flag it had (frozen parts stay frozen)."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter or buffer lies; the CPU if it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def embed(
    encoder: nn.Module, batches: Iterable[Mapping[str, Any]], pool: str = "mean", limit: int | None = None
) -> Features:
    """Features of a data set in evaluation mode, on the CPU.

    Training flags of all submodules and the global random states are as before afterwards.

    Args:
        encoder: `encoder(view) -> Tokens`, unmasked.
        batches: dicts with `x` (a `View`) and, where there are labels, `label`: (b,) integers, or one per token.
        pool: `mean` or `cls` for one vector per sample; `token` for one per valid token, whose label lies at the
            token's place in `label` (b, n).
        limit: at most so many rows, all by default; with `token` no batch is begun once so many labels were met.

    Raises:
        ValueError: where there is no sample, labels are not integers, or their shape does not fit `pool`.
    """
    device = device_of(encoder)
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    count = 0
    with untouched(), evaluating(encoder), torch.inference_mode():
        for batch in batches:
            x, y = rows(encoder(batch["x"].to(device)), batch.get("label"), pool)
            xs.append(x.float().cpu())
            ys.append(y.cpu())
            count += len(y) if pool != "token" or batch.get("label") is None else int((y >= 0).sum())
            if limit is not None and count >= limit:
                break
    if not xs:
        raise ValueError("data: there is nothing to embed; the split is empty. Check data.root and the split's size.")
    # copied outside inference_mode: inference tensors could not be used in a graph later
    cut = None if pool == "token" else limit
    return Features(torch.cat(xs)[:cut], torch.cat(ys)[:cut])


def rows(tokens: Tokens, label: Tensor | None, pool: str) -> tuple[Tensor, Tensor]:
    """Vectors (r, d) and labels (r,) of one batch: a row per sample, or per valid token with `pool="token"`."""
    if label is not None and (label.is_floating_point() or label.is_complex()):
        raise ValueError(
            f"data: labels are {label.dtype}, but probes classify: they need integers from 0 on, with -1 for samples "
            "without a label. Turn a continuous target into classes, or leave the labels out."
        )
    if pool != "token":
        x, y = tokens.pool(pool), label
    else:
        assert tokens.x is not None
        keep = counted(tokens, label)
        x, y = tokens.x[keep], None if label is None else label_at(label, tokens)[keep]
    if y is None:
        y = torch.full((len(x),), UNLABELLED)
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"data: {tuple(y.shape)} labels for {len(x)} rows at pool={pool!r}. Labels of samples go with pool=mean or "
            "pool=cls, labels of nodes, points or patches with pool=token."
        )
    return x, y.to(torch.int64)
