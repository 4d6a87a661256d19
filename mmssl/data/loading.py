"""From (epoch, index) pairs to batches: reading, views, and what happens to samples that cannot be read."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from mmssl.data.derived import Like, Of, Op
from mmssl.data.sampler import EpochBatches
from mmssl.data.segments import Segments, mover
from mmssl.data.skipped import Unreadable, try_read
from mmssl.data.source import Adapter, BadSample, Dataset
from mmssl.draws import Draws
from mmssl.types import View

# After so many unreadable samples in a row something else is wrong than a few broken files.
_IN_A_ROW = 100
# Seconds that workers outlive a request to end.
_GRACE = 30


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
        segments: classes of the samples' elements, which every operation has to move along; None leaves them out.
        others: adapters of the views that are of another modality than the samples, by the views' names.
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
        segments: Segments | None = None,
        others: Mapping[str, Adapter] | None = None,
    ) -> None:
        self.dataset, self.adapter, self.views, self.segments = dataset, adapter, views, segments
        self.seed, self.channels, self.replace, self.repeats = seed, channels, replace, repeats
        self.adapters = {name: (others or {}).get(name, adapter) for name in views}
        # what views were on their way, where another one begins with it: (view, operations done)
        self.stages = {(op.other, op.after) for ops in views.values() for op in ops[:1] if isinstance(op, Of)}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, pair: tuple[int, int]) -> dict[str, Any]:
        """A batch of one."""
        return self.__getitems__([pair])

    def __getitems__(self, pairs: list[tuple[int, int]]) -> dict[str, Any]:
        """The batch of some pairs: one View per name, `id`, `epoch`, `bad`, and `label` and `segments` if any."""
        bad: list[str] = []
        why: dict[str, str] = {}  # of samples that open, but of which a view cannot be made
        read = [(epoch, *self._read(index, bad)) for epoch, index in pairs]
        found = [(epoch, place, sample) for epoch, place, sample in read if place is not None]
        made = self._make(found, why)
        rows = []
        for (epoch, place, _), views in zip(found, made, strict=True):
            rows.append((epoch, place, views) if views is not None else self._another(epoch, place, bad, why))
        rows = [row for row in rows if row is not None]
        if not rows:
            raise Unreadable(f"data.bad_share: no sample of a batch can be read, {bad[0]} first")
        epoch, index = (torch.tensor([row[i] for row in rows]).repeat_interleave(self.repeats) for i in range(2))
        batch: dict[str, Any] = {"id": index, "epoch": epoch, "bad": list(dict.fromkeys(bad)), "why": why}
        if self.repeats > 1:
            batch["copy"] = torch.arange(self.repeats).repeat(len(rows))
        if self.dataset.labels is not None:
            batch["label"] = self.dataset.labels[index]
        if self.segments is not None:
            batch["segments"] = torch.stack([one for row in rows for one in row[2]["segments"]])
        return batch | {
            name: View(adapter.collate([one for row in rows for one in row[2][name]]), adapter.name)
            for name, adapter in self.adapters.items()
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

    def _another(
        self, epoch: int, place: int, bad: list[str], why: dict[str, str]
    ) -> tuple[int, int, dict[str, list[Any]]] | None:
        """The next sample whose views can be made, in place of one whose views cannot."""
        for _ in range(min(_IN_A_ROW, len(self.dataset))):
            bad.append(self.dataset.name(place))
            if not self.replace:
                return None
            found, sample = self._read((place + 1) % len(self.dataset), bad)
            assert found is not None
            place = found
            views = self._make([(epoch, place, sample)], why)[0]
            if views is not None:
                return epoch, place, views
        name = self.dataset.name(place)
        raise Unreadable(
            f"data.bad_share: no view of {min(_IN_A_ROW, len(self.dataset))} samples in a row can be made, the last is "
            f"{name}: {why.get(name, 'it opens, but cannot be decoded')}"
        )

    def _make(self, rows: list[tuple[int, int, Any]], why: dict[str, str]) -> list[dict[str, list[Any]] | None]:
        """The views of each sample, `repeats` of each; None where a view operation found it unreadable, and `why`."""
        if not rows:
            return []
        epoch, place = (torch.tensor([row[i] for row in rows]).repeat_interleave(self.repeats) for i in range(2))
        copy = torch.arange(self.repeats).repeat(len(rows)) if self.repeats > 1 else None
        draws = Draws.of(self.seed, epoch, place, copy)
        # The place of an operation is part of its stream's name: the same one twice in a view draws twice.
        streams: dict[str, list[list[Draws]]] = {}
        for name, ops in self.views.items():
            known = ops[0].other if ops and isinstance(ops[0], Like) else name
            first = int(known != name)  # the operation that says so draws nothing
            streams[name] = [draws.named(f"view/{known}/{max(i - first, 0)}").each() for i in range(len(ops))]
        made: list[dict[str, list[Any]] | None] = []
        for i, (_, at, sample) in enumerate(rows):
            try:
                made.append(self._views(at, sample, range(i * self.repeats, (i + 1) * self.repeats), streams))
            except BadSample as error:
                why[self.dataset.name(at)] = str(error)
                made.append(None)
        return made

    def _views(
        self, place: int, sample: Any, rows: range, streams: Mapping[str, list[list[Draws]]]
    ) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {name: [] for name in [*self.views, "segments"]}
        kept: dict[tuple[str, int | None], list[Any]] = {stage: [] for stage in self.stages}
        classes = None if self.segments is None else self.segments.of(place, sample)
        for name, ops in self.views.items():
            begun = (ops[0].other, ops[0].after) if ops and isinstance(ops[0], Of) else None
            for i, row in enumerate(rows):
                one, moved = sample if begun is None else kept[begun][i], classes
                for done, (op, stream) in enumerate(zip(ops, streams[name], strict=True), 1):
                    moved = None if moved is None else mover(op)(moved, one, stream[row])
                    one = op(one, stream[row])
                    if (name, done) in kept:
                        kept[name, done].append(one)
                made[name].append(one)
                made["segments"].append(moved)
            kept[name, None] = made[name]
        return made


def workers(said: int | str, dataset: Dataset) -> int:
    """Worker processes of a loader: as many as are said; of `auto`, none for data in memory on at most two cores."""
    if isinstance(said, int):
        return said
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return 0 if cores <= 2 and dataset.in_memory else min(8, max(1, cores - 1))


class Loader(DataLoader[dict[str, Any]]):
    """A DataLoader that shows every batch to a listener in the main process, and goes on from where it was.

    Its whole state is the epoch and how many batches of it were handed out, whatever the workers have prefetched: order
    and draws are pure functions of that. It draws nothing from the global generator.

    Args:
        batches: makes batches of the sampler's pairs.
        sampler: yields lists of pairs; only an `EpochBatches` can be resumed.
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
            generator=torch.Generator(),
            worker_init_fn=_deaf if workers else None,
        )
        self.note = note
        self._epoch, self._batch = 0, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Batches, each noted. Where gradients accumulate the first of a step holds the others as `later`."""
        pieces = 1
        if isinstance(self.batch_sampler, EpochBatches):
            self._epoch, self._batch = self.batch_sampler.start
            pieces = self.batch_sampler.accumulate
        whole = super().__iter__()
        while step := list(islice(whole, pieces)):
            if pieces > 1:
                step[0]["later"] = step[1:]
            for batch in step:
                self.note(batch)
                self._batch += 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the optimizer steps of it that were handed out."""
        assert isinstance(self.batch_sampler, EpochBatches)
        return {"epoch": self._epoch, "step": self._batch // self.batch_sampler.accumulate}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The next iteration goes on from there, on any number of ranks, workers and accumulation steps."""
        assert isinstance(self.batch_sampler, EpochBatches)
        self.batch_sampler.set_start(state_dict["epoch"], state_dict["step"] * self.batch_sampler.accumulate)


def _deaf(worker: int) -> None:
    """A cluster signals every process of a job: workers live on until the training process has saved its state."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))


def _as_is(batch: Any) -> Any:
    """The batch: `__getitems__` has joined the samples already."""
    return batch
