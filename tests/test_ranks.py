"""What ranks gather: everything in the order of ranks, also of unequal lengths."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmssl.ranks import gather, rank, world
from tests.gloo import leave


def _own(number):
    return torch.arange(3 * (2 - number), dtype=torch.float32).reshape(2 - number, 3) + 10 * number


def _process(number, folder):
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=2)
    found = gather(_own(number).requires_grad_())
    torch.save(
        {"all": found, "world": world(), "rank": rank(), "flags": gather(torch.tensor([True]))}, f"{folder}/{number}.pt"
    )
    leave(folder, number, 2)


def test_one_process_sends_nothing():
    x = torch.ones(2, requires_grad=True)
    assert (world(), rank()) == (1, 0) and torch.equal(gather(x), x) and not gather(x).requires_grad


def test_ranks_gather_the_same(tmp_path):
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
    for number in range(2):
        found = torch.load(tmp_path / f"{number}.pt")
        assert torch.equal(found["all"], torch.cat([_own(0), _own(1)])) and not found["all"].requires_grad
        assert (found["world"], found["rank"], found["flags"].tolist()) == (2, number, [True, True])
