"""The order of samples: a pure function of (seed, epoch, step), so that a loader's state is the step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Sampler

from mmssl import draws


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) pairs for one rank.

    The order of an epoch is a pure function of (seed, epoch). Of each global batch of `batch_size` samples every rank
    gets one contiguous equal share, and yields it in `accumulate` equal pieces. So the global batches are the same on
    any number of ranks and accumulation steps.

    An iteration covers one epoch, or never ends with `endless`; the next one starts at the next epoch, unless
    `set_start` or `set_epoch` say otherwise.

    Args:
        n: number of samples.
        batch_size: samples of a global batch; a multiple of `world * accumulate` where `drop_last` is set.
        seed: the run's seed.
        rank: this rank.
        world: number of ranks.
        accumulate: pieces of a rank's share.
        shuffled: false for ascending order.
        drop_last: leaves out the last batch where it is smaller; else its shares differ by at most one sample.
        endless: goes on with the next epoch without stopping.
        ordered: called with (seed, epoch), gives the order of an epoch, (n,) int64, a pure function of the two; None
            shuffles all samples. Data whose neighbours are cheaper to read together say one.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        shuffled: bool = True,
        drop_last: bool = True,
        endless: bool = False,
        ordered: Callable[[int, int], Tensor] | None = None,
    ) -> None:
        assert not drop_last or batch_size % (world * accumulate) == 0
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.shuffled, self.drop_last, self.endless = shuffled, drop_last, endless
        self.ordered = ordered or partial(draws.shuffle, n)
        self.start = (0, 0)

    @property
    def sampler(self) -> EpochBatches:
        """Itself: trainers look for `batch_sampler.sampler.set_epoch`."""
        return self

    def __len__(self) -> int:
        """Batches of this rank in one epoch, pieces counted."""
        steps = self.n // self.batch_size if self.drop_last else -(-self.n // self.batch_size)
        return steps * self.accumulate

    def set_start(self, epoch: int, batch: int = 0) -> None:
        """The next iteration starts at this batch of this epoch; pieces count as batches."""
        carried, batch = divmod(batch, max(1, len(self)))
        self.start = (epoch + carried, batch)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is over this epoch, from its first batch unless `set_start` named another of it."""
        if self.start[0] != epoch:
            self.start = (epoch, 0)

    def order(self, epoch: int) -> Tensor:
        """The samples of an epoch, (n,) int64."""
        return self.ordered(self.seed, epoch) if self.shuffled else torch.arange(self.n)

    def batch(self, order: Tensor, batch: int) -> list[int]:
        """The samples of this rank's batch in an epoch's order."""
        step, piece = divmod(batch, self.accumulate)
        whole = order[step * self.batch_size : (step + 1) * self.batch_size]
        part = self.rank * self.accumulate + piece
        return torch.tensor_split(whole, self.world * self.accumulate)[part].tolist()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Batches from the start that was set to the end of its epoch."""
        epoch, first = self.start
        while True:
            # Set before the first batch, so that an iteration broken off does not repeat the epoch.
            self.start = (epoch + 1, 0)
            order = self.order(epoch)
            for batch in range(first, len(self)):
                yield [(epoch, index) for index in self.batch(order, batch)]
            if not self.endless or len(self) == 0:
                return
            epoch, first = epoch + 1, 0
