"""Samples that cannot be read: counted and listed, and too many of them an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmssl.data.source import Dataset

# A share of unreadable samples says nothing before so many were read.
_ENOUGH = 20


class Unreadable(ValueError):
    """More samples cannot be read than `data.bad_share` allows."""


def try_read(dataset: Dataset, i: int) -> tuple[Any, str | None]:
    """The i-th sample and no reason, or nothing and the reason why it cannot be read."""
    try:
        return dataset.read(i), None
    except (ValueError, OSError) as error:
        return None, str(error) or type(error).__name__


class Skipped:
    """Keeps count of unreadable samples over all splits, workers and epochs, each counted once.

    Args:
        share: the share of distinct unreadable samples among distinct samples read that is still accepted.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        # listed by the run before it was stopped; they say nothing of this process's share
        self.earlier: list[str] = []
        self._names: list[str] = []
        self._seen: set[tuple[str, str]] = set()
        self._read: dict[str, Tensor] = {}
        self._total = 0
        self._first: tuple[Dataset, str, str | None] | None = None

    @property
    def names(self) -> list[str]:
        """The unreadable samples of the whole run."""
        return list(dict.fromkeys([*self.earlier, *self._names])) if self.earlier else self._names

    def note(
        self, split: str, dataset: Dataset, good: Tensor, bad: list[str], why: Mapping[str, str] | None = None
    ) -> None:
        """Takes note of samples read, by index, and of others that could not be, by name; `why` views found them so.

        Raises:
            Unreadable: where the share is passed by more than chance explains, after at least 20 distinct samples.
        """
        read = self._read.setdefault(split, torch.zeros(len(dataset), dtype=torch.bool))
        fresh = good.unique()
        self._total += int((~read[fresh]).sum())
        read[fresh] = True
        new = [name for name in bad if (split, name) not in self._seen]
        self._seen.update((split, name) for name in new)
        self._names.extend(new)
        self._first = self._first or next(((dataset, name, (why or {}).get(name)) for name in new), None)
        if self._first is None:
            return
        total = self._total + len(self._names)
        expected = self.share * total
        # Three standard deviations of a draw without replacement: nothing once all samples are read.
        unread = 1 - total / sum(len(flags) for flags in self._read.values())
        if total >= _ENOUGH and len(self._names) > expected + 3 * math.sqrt(expected * max(0.0, unread)):
            dataset, name, reason = self._first
            place = next(i for i in range(len(dataset)) if dataset.name(i) == name)
            reason = reason or try_read(dataset, place)[1] or "it opens, but cannot be decoded"
            raise Unreadable(
                f"data.bad_share={self.share}: {len(self._names)} of {total} samples cannot be read: "
                f"{', '.join(self._names[:5])}{', ...' if len(self._names) > 5 else ''}. The reason for {name}: "
                f"{reason}. Repair or remove them, or raise data.bad_share"
            )
