"""From (epoch, index) pairs to batches: reading, views, and what happens to samples that cannot be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmssl.data.source import Adapter, BadSample, Dataset
from mmssl.draws import Draws
from mmssl.registry import register, suggest
from mmssl.types import View

Op = Callable[[Any, Draws], Any]

# After so many unreadable samples in a row something else is wrong than a few broken files.
_IN_A_ROW = 100
# A share of unreadable samples says nothing before so many were read.
_ENOUGH = 20


class Unreadable(ValueError):
    """More samples cannot be read than `data.bad_share` allows."""


@register("view/of")
class Of:
    """Begins a view with what another view has become, so that both show the same part of a sample (CROMA's sensors).

    It has to be a view's first operation, and the other view has to stand before it.

    Args:
        name: the other view.
    """

    def __init__(self, *, name: str) -> None:
        self.other = name

    def __call__(self, sample: Any, draws: Draws) -> Any:
        """What the loader hands it, as it is."""
        return sample


def check_views(views: Mapping[str, Sequence[Op]], where: str = "views") -> None:
    """Refuses views that begin with one that is not there yet.

    Raises:
        ValueError: naming the view.
    """
    made: list[str] = []
    for name, ops in views.items():
        for i, op in enumerate(ops):
            if not isinstance(op, Of):
                continue
            key = f"{where}.{name}[{i}]"
            if i:
                raise ValueError(f"{key}: view/of has to be the first operation of its view; put it in front")
            if op.other not in made:
                why = "which has to stand before it" if op.other in views else "which there is not"
                raise ValueError(f"{key}: view/of names view {op.other!r}, {why}{suggest(op.other, made)}")
        made.append(name)


def try_read(dataset: Dataset, i: int) -> tuple[Any, str | None]:
    """The i-th sample and no reason, or nothing and the reason why it cannot be read."""
    try:
        return dataset.read(i), None
    except (ValueError, OSError) as error:
        return None, str(error) or type(error).__name__


class Batches(torch.utils.data.Dataset[dict[str, Any]]):
    """Makes batches of pairs (epoch, index). Everything in a batch is a pure function of the pairs.

    Args:
        dataset: where samples come from.
        adapter: how they are joined.
        views: operations of each view by its name.
        seed: seed of the views' draws.
        channels: what samples are converted to; None leaves them.
        replace: an unreadable sample is replaced by the next readable one; else left out.
        repeats: rows of each sample, with draws of their own.
    """

    def __init__(
        self,
        dataset: Dataset,
        adapter: Adapter,
        views: Mapping[str, Sequence[Op]],
        seed: int,
        channels: int | None,
        replace: bool,
        repeats: int = 1,
    ) -> None:
        self.dataset, self.adapter, self.views = dataset, adapter, views
        self.seed, self.channels, self.replace, self.repeats = seed, channels, replace, repeats

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, pair: tuple[int, int]) -> dict[str, Any]:
        """A batch of one."""
        return self.__getitems__([pair])

    def __getitems__(self, pairs: list[tuple[int, int]]) -> dict[str, Any]:
        """The batch of some pairs: one View per name, `id`, `epoch`, `label` where there are labels, and `bad`."""
        bad: list[str] = []
        read = [(epoch, *self._read(index, bad)) for epoch, index in pairs]
        found = [(epoch, place, sample) for epoch, place, sample in read if place is not None]
        made = self._make(found)
        rows = []
        for (epoch, place, _), views in zip(found, made, strict=True):
            rows.append((epoch, place, views) if views is not None else self._another(epoch, place, bad))
        rows = [row for row in rows if row is not None]
        if not rows:
            raise Unreadable(f"data.bad_share: no sample of a batch can be read, {bad[0]} first")
        epoch, index = (torch.tensor([row[i] for row in rows]).repeat_interleave(self.repeats) for i in range(2))
        batch: dict[str, Any] = {"id": index, "epoch": epoch, "bad": list(dict.fromkeys(bad))}
        if self.repeats > 1:
            batch["copy"] = torch.arange(self.repeats).repeat(len(rows))
        if self.dataset.labels is not None:
            batch["label"] = self.dataset.labels[index]
        return batch | {
            name: View(self.adapter.collate([one for row in rows for one in row[2][name]]), self.adapter.name)
            for name in self.views
        }

    def _read(self, index: int, bad: list[str]) -> tuple[int | None, Any]:
        """The sample and its place; the next readable one where this cannot be read."""
        reason, tries = None, min(_IN_A_ROW, len(self.dataset)) if self.replace else 1
        for step in range(tries):
            place = (index + step) % len(self.dataset)
            sample, reason = try_read(self.dataset, place)
            if reason is None:
                return place, sample if self.channels is None else self.adapter.convert(sample, self.channels)
            bad.append(self.dataset.name(place))
        if not self.replace:
            return None, None
        raise Unreadable(
            f"data.bad_share: {tries} samples in a row cannot be read, from {self.dataset.name(index)} on; the last "
            f"one: {reason}. Check data.root"
        )

    def _another(self, epoch: int, place: int, bad: list[str]) -> tuple[int, int, dict[str, list[Any]]] | None:
        """The next sample whose views can be made, in place of one whose views cannot."""
        for _ in range(min(_IN_A_ROW, len(self.dataset))):
            bad.append(self.dataset.name(place))
            if not self.replace:
                return None
            found, sample = self._read((place + 1) % len(self.dataset), bad)
            assert found is not None
            place = found
            views = self._make([(epoch, place, sample)])[0]
            if views is not None:
                return epoch, place, views
        raise Unreadable(f"data.bad_share: no view of {_IN_A_ROW} samples in a row can be made, the last {bad[-1]}")

    def _make(self, rows: list[tuple[int, int, Any]]) -> list[dict[str, list[Any]] | None]:
        """The views of each sample, `repeats` of each; None where a view operation found it unreadable."""
        if not rows:
            return []
        epoch, place = (torch.tensor([row[i] for row in rows]).repeat_interleave(self.repeats) for i in range(2))
        copy = torch.arange(self.repeats).repeat(len(rows)) if self.repeats > 1 else None
        draws = Draws.of(self.seed, epoch, place, copy)
        # The place of an operation is part of its stream's name: the same one twice in a view draws twice.
        streams = {
            name: [draws.named(f"view/{name}/{i}").each() for i in range(len(ops))] for name, ops in self.views.items()
        }
        return [self._views(sample, range(i * self.repeats, (i + 1) * self.repeats), streams)
                for i, (_, _, sample) in enumerate(rows)]  # fmt: skip

    def _views(self, sample: Any, rows: range, streams: Mapping[str, list[list[Draws]]]) -> dict[str, list[Any]] | None:
        made: dict[str, list[Any]] = {name: [] for name in self.views}
        try:
            for name, ops in self.views.items():
                other = ops[0].other if ops and isinstance(ops[0], Of) else None
                for i, row in enumerate(rows):
                    one = sample if other is None else made[other][i]
                    for op, stream in zip(ops, streams[name], strict=True):
                        one = op(one, stream[row])
                    made[name].append(one)
        except BadSample:
            return None
        return made


class Skipped:
    """Keeps count of unreadable samples over all splits, workers and epochs, each counted once.

    Args:
        share: the share of distinct unreadable samples among distinct samples read that is still accepted.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.names: list[str] = []
        self._seen: set[tuple[str, str]] = set()
        self._read: dict[str, Tensor] = {}
        self._first: tuple[Dataset, str] | None = None

    def note(self, split: str, dataset: Dataset, good: Tensor, bad: list[str]) -> None:
        """Takes note of samples read, by index, and of others that could not be, by name.

        Raises:
            Unreadable: where the share is passed by more than chance explains, after at least 20 distinct samples.
        """
        read = self._read.setdefault(split, torch.zeros(len(dataset), dtype=torch.bool))
        read[good] = True
        new = [name for name in bad if (split, name) not in self._seen]
        self._seen.update((split, name) for name in new)
        self.names.extend(new)
        self._first = self._first or next(((dataset, name) for name in new), None)
        if self._first is None:
            return
        total = sum(int(flags.sum()) for flags in self._read.values()) + len(self.names)
        expected = self.share * total
        # Three standard deviations of a draw without replacement: nothing once all samples are read.
        unread = 1 - total / sum(len(flags) for flags in self._read.values())
        if total >= _ENOUGH and len(self.names) > expected + 3 * math.sqrt(expected * max(0.0, unread)):
            dataset, name = self._first
            place = next(i for i in range(len(dataset)) if dataset.name(i) == name)
            raise Unreadable(
                f"data.bad_share={self.share}: {len(self.names)} of {total} samples cannot be read: "
                f"{', '.join(self.names[:5])}{', ...' if len(self.names) > 5 else ''}. The reason for {name}: "
                f"{try_read(dataset, place)[1] or 'it opens, but cannot be decoded'}. Repair or remove them, or raise "
                "data.bad_share"
            )


class Loader(DataLoader[dict[str, Any]]):
    """A DataLoader that shows every batch to a listener in the main process.

    Args:
        batches: makes batches of the sampler's pairs.
        sampler: yields lists of pairs.
        note: called with every batch.
        workers: number of worker processes.
        keep_workers: workers live on between epochs.
    """

    def __init__(
        self,
        batches: Batches,
        sampler: Iterable[list[tuple[int, int]]],
        note: Callable[[dict[str, Any]], None],
        workers: int,
        keep_workers: bool,
    ) -> None:
        super().__init__(
            batches,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=keep_workers and workers > 0,
        )
        self.note = note

    def __iter__(self) -> Iterator[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Batches, each noted."""
        for batch in super().__iter__():
            self.note(batch)
            yield batch


def _as_is(batch: Any) -> Any:
    """The batch: `__getitems__` has joined the samples already."""
    return batch
