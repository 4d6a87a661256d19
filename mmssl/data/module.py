"""Data of a run: splits, facts, and loaders whose batches are pure functions of (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import lightning
import torch

from mmssl.data.derived import Op, check_views
from mmssl.data.loading import Batches, Loader, workers
from mmssl.data.memory import keep
from mmssl.data.sampler import EpochBatches
from mmssl.data.skipped import Skipped, try_read
from mmssl.data.source import Adapter, Dataset, Source, digest
from mmssl.draws import shuffle
from mmssl.registry import register, suggest

# Facts are measured on at most so many samples of the train split.
_MEASURED = 4096
_NOTED = 64  # samples read at a time: more would only hold memory
# Views of evaluation draw from one stream for all runs, so that scores of different seeds see the same input.
_EVAL_SEED = 0


@register("data/module")
class Data(lightning.LightningDataModule):
    """Reads a source and makes the batches of training and evaluation.

    A training batch is a dict of one `View` per view, `id` and `epoch` (b,) int64, `label` (b,) int64 where there are
    labels, `bad`, names of samples that could not be read and were replaced by the next readable one, and `why`, what
    views said of those that open.

    Args:
        adapter: the modality.
        seed: the run's seed.
        source: called with the adapter, gives the splits.
        views: operations of each training view by its name; `view/of` begins one with what an earlier one became.
        view: operations of the one view that evaluation uses, named `x`.
        batch_size: samples of a global batch, over all ranks and accumulation steps; `full` for all of train in every
            step (one large graph).
        repeats: rows of each sample in a training batch, with augmentations and masks of their own (MAE-ST: 4); the
            batch size counts samples before they are repeated.
        drop_last: whether the last batch of an epoch is left out where it is smaller than the others.
        workers: worker processes of a loader; `auto` is 0 for data in memory on at most two cores, else one less than
            there are cores, at most 8.
        size: input size, for views and facts; what it measures is the modality's matter.
        small: size of small crops, for views of methods with several sizes (DINO).
        channels: what samples are converted to; null keeps what the data have, and all must have the same.
        bad_share: share of unreadable samples that is skipped in silence; more is an error.
        memory_mb: data sets whose decoded samples have one shape and need at most so many MiB are decoded once and kept
            on disk (`MMSSL_CACHE`, else `~/.cache/mmssl`); 0 never does.
        root: where the data lie; sources refer to it as `${data.root}`.
    """

    def __init__(
        self,
        adapter: Adapter,
        seed: int,
        *,
        source: Callable[[Adapter], Source],
        views: dict[str, Sequence[Op]],
        view: Sequence[Op],
        batch_size: int | str,
        repeats: int = 1,
        drop_last: bool = True,
        workers: int | str = "auto",
        size: int | None = None,
        small: int | None = None,
        channels: int | None = None,
        bad_share: float = 0.01,
        memory_mb: int = 1024,
        root: str | None = None,
    ) -> None:
        super().__init__()
        if workers != "auto" and not (isinstance(workers, int) and workers >= 0):
            raise ValueError(f"data.workers has to be 'auto' or a number from 0 on (got {workers!r})")
        if batch_size != "full" and not (isinstance(batch_size, int) and batch_size >= 1):
            raise ValueError(f"data.batch_size has to be a number from 1 on, or 'full' (got {batch_size!r})")
        if repeats < 1:
            raise ValueError(f"data.repeats has to be at least 1 (got {repeats})")
        if not 0 <= bad_share < 1:
            raise ValueError(f"data.bad_share has to be at least 0 and below 1 (got {bad_share})")
        check_views(views)
        check_views({"x": view}, "view")
        self.adapter, self.seed, self.source = adapter, seed, source(adapter)
        self.others: dict[str, Adapter] = {}  # of training views of another modality, by their names
        self.repeats, self.full, self._said = repeats, batch_size == "full", batch_size
        self.drop_last = drop_last
        self.views, self.view = {name: list(ops) for name, ops in views.items()}, list(view)
        self.workers, self.size, self.small = workers, size, small
        self._asked = self.channels = channels
        self.memory_mb, self.root = memory_mb, root
        self._skipped = Skipped(bad_share)
        self._kept: dict[str, Dataset] = {}
        self._facts: dict[str, Any] | None = None
        self._share, self._fitted = (0, 1, 1), False
        self._start = (0, 0)

    @cached_property
    def splits(self) -> dict[str, Dataset]:
        """Data sets by split, as the source gives them."""
        parts = None if self.full else getattr(self.source, "seeds", None)
        splits = self.source.splits() if parts is None else parts()
        assert "train" in splits, f"{self.source} gives no train split"
        return splits

    @property
    def unit(self) -> str:
        """What labels belong to and evaluation gives a row to: `sample`, or `token` (nodes, points)."""
        return getattr(self.source, "unit", "sample")

    @property
    def batch_size(self) -> int:
        """Samples of a global batch."""
        return self._said if isinstance(self._said, int) else len(self.splits["train"])

    @property
    def skipped(self) -> list[str]:
        """Names of the samples that could not be read so far."""
        return self._skipped.names

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the data, not with their place."""
        return digest([f"{name}:{dataset.fingerprint()}" for name, dataset in sorted(self.splits.items())])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the loader's place: the samples that could not be read so far."""
        return {"skipped": list(self.skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting unreadable samples from a checkpoint."""
        self._skipped.earlier = list(state_dict["skipped"])

    def dataset(self, split: str) -> Dataset:
        """The data set of a split, decoded once and kept where it is small.

        Raises:
            ValueError: where there is no such split.
        """
        if split not in self.splits:
            raise ValueError(f"the data have no {split!r} split{suggest(split, self.splits)}")
        if split not in self._kept:
            self._kept[split] = keep(self.splits[split], self.memory_mb)
        return self._kept[split]

    def facts(self) -> dict[str, Any]:
        """Sizes and statistics that parts are built from, fitted once on at most 4,096 samples of the train split.

        Returns:
            What the adapter measures, and `size`, `classes` (names, or None), `samples` (of train), `splits` (samples
            of each), `fingerprint` (changes with the data, not with their place).
        """
        if self._facts is None:
            train, sizes = self.splits["train"], {name: len(dataset) for name, dataset in self.splits.items()}
            facts = {"size": self.size, "classes": train.classes, "samples": len(train), "splits": sizes}
            self.use(self.adapter.facts(self._measured()) | facts | {"fingerprint": self.fingerprint})
        assert self._facts is not None
        return self._facts

    def use(self, facts: dict[str, Any]) -> None:
        """Takes facts over that were fitted before: an encoder that was trained with them is met, with its channels."""
        self._facts = facts
        self.channels = facts.get("channels") if self._asked is None else self._asked
        getattr(self.adapter, "use", lambda _: None)(facts)

    def _measured(self) -> Iterator[Any]:
        """The samples that facts are fitted on: the same for every seed."""
        dataset = self.dataset("train")
        chosen = shuffle(len(dataset), 0, 0)[: getattr(self.adapter, "measured", _MEASURED)].sort().values
        for some in chosen.split(_NOTED):
            found = [(i, *try_read(dataset, i)) for i in some.tolist()]
            good = torch.tensor([i for i, _, reason in found if reason is None], dtype=torch.int64)
            bad = [dataset.name(i) for i, _, reason in found if reason is not None]
            self._skipped.note("train", dataset, good, bad)
            for _, sample, reason in found:
                if reason is None:
                    yield sample if self.channels is None else self.adapter.convert(sample, self.channels)

    def set_share(self, rank: int, world: int, accumulate: int = 1) -> None:
        """Says which share of each global batch this process computes, and in how many steps.

        Raises:
            ValueError: where `data.batch_size` does not divide, naming the nearest sizes that do.
        """
        parts = world * accumulate
        if self.full and parts > 1:
            raise ValueError(
                f"data.batch_size=full is one step of all samples, which {world} ranks x {accumulate} passes "
                "cannot share; give a number (on one large graph: seed nodes), or train on one rank"
            )
        if self.batch_size % parts:
            below = self.batch_size // parts * parts
            near = f"{below} or {below + parts}" if below else f"{parts}"
            raise ValueError(
                f"data.batch_size={self.batch_size} does not divide into {world} ranks x {accumulate} accumulation "
                f"steps; set it to {near}"
            )
        self._share = (rank, world, accumulate)

    def setup(self, stage: str) -> None:
        """Takes this process's share from the trainer, once it knows its rank."""
        if self.trainer is not None:
            self.set_share(self.trainer.global_rank, self.trainer.world_size, self.trainer.accumulate_grad_batches)

    def set_start(self, epoch: int, batch: int = 0) -> None:
        """The next training loader starts at this batch of this epoch; accumulation steps count as batches."""
        self._start = (epoch, batch)

    def train_dataloader(self) -> Loader:
        """Loader of this rank's share of the training batches; one iteration is one epoch.

        Raises:
            ValueError: where the batch is larger than the data.
        """
        dataset = self.dataset("train")
        if self.batch_size > len(dataset):
            raise ValueError(
                f"data.batch_size={self.batch_size} is larger than the train split, which has {len(dataset)} samples; "
                f"set data.batch_size to at most {len(dataset)}"
            )
        rank, world, accumulate = self._share
        left, parts = len(dataset) % self.batch_size, world * accumulate
        if not self.drop_last and 0 < left < parts:
            raise ValueError(
                f"data.drop_last=false leaves {left} samples for the last batch of an epoch, which has {parts} parts "
                f"({world} ranks x {accumulate} passes); set data.drop_last=true or another data.batch_size"
            )
        sampler = EpochBatches(
            len(dataset), self.batch_size, self.seed, rank=rank, world=world, accumulate=accumulate,
            drop_last=self.drop_last, ordered=getattr(self.splits["train"], "order", None),
        )  # fmt: skip
        sampler.set_start(*self._start)
        count = workers(self.workers, dataset)
        return Loader(self._batches(), sampler, partial(self._note, "train"), count, keep_workers=True)

    def chosen(self, split: str, limit: int | None = None) -> torch.Tensor:
        """The samples of a split that evaluation reads, ascending: all, or so many at random but always the same."""
        n = len(self.dataset(split))
        return torch.arange(n) if limit is None or limit >= n else shuffle(n, 0, 0)[:limit].sort().values

    def plain(self, split: str, indices: Sequence[int]) -> list[tuple[int, Any]]:
        """Decoded samples without views, with their indices, for baselines and pictures; unreadable ones left out."""
        dataset, found = self.dataset(split), []
        for i in indices:
            sample, reason = try_read(dataset, int(i))
            if reason is None:
                found.append((int(i), sample if self.channels is None else self.adapter.convert(sample, self.channels)))
        return found

    def batch(self, pairs: list[tuple[int, int]]) -> dict[str, Any]:
        """The training batch of some (epoch, index) pairs, made here and now."""
        return self._batches().__getitems__(pairs)

    def _batches(self) -> Batches:
        given = (self.seed, self.channels, True, self.repeats, None, self.others)
        return Batches(self.dataset("train"), self.adapter, self._fit(), *given)

    def eval_loader(
        self, split: str, limit: int | None = None, view: str | None = None, copies: int = 1, segments: bool = False
    ) -> Loader | None:
        """Loader of a whole split in order, the same for every seed; unreadable samples are left out.

        A batch is a dict of `x` (a `View`), `id`, `label` where there are labels, `epoch` (zeros) and `bad`.

        Args:
            split: train, val or test.
            limit: at most so many samples, chosen at random but always the same.
            view: the training view that makes the rows; None for that of evaluation.
            copies: rows of each sample, with draws of their own.
            segments: whether a batch holds `segments` too, the classes of elements as they lie in the view, if there
                are any.

        Returns:
            The loader, or None where there is no such split.
        """
        if split not in self.splits:
            return None
        dataset = self.dataset(split)
        size = max(1, self.batch_size // (self._share[1] * self._share[2] * copies))
        plan = [[(0, i) for i in part.tolist()] for part in self.chosen(split, limit).split(size)]
        ops = {"x": self.view if view is None else self._fit()[view]}
        classes = getattr(self.splits[split], "segments", None) if segments else None
        adapter = self.others.get(view or "", self.adapter)
        batches = Batches(dataset, self.adapter, ops, _EVAL_SEED, self.channels, False, copies, classes, {"x": adapter})
        return Loader(batches, plan, partial(self._note, split), workers(self.workers, dataset), keep_workers=False)

    def _fit(self) -> dict[str, list[Op]]:
        """The training views; shows train once to operations that need other samples (marginals of columns, mixing)."""
        ops: list[Any] = [op for view in self.views.values() for op in view if hasattr(op, "fit")]
        for op in ops if not self._fitted else ():
            op.fit(self.dataset("train"))
        self._fitted = True
        return self.views

    def _note(self, split: str, batch: dict[str, Any]) -> None:
        self._skipped.note(split, self.dataset(split), batch["id"], batch["bad"], batch["why"])
