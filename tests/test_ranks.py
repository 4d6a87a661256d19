"""What ranks gather: everything in the order of ranks, also of unequal lengths."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmssl.ranks import gather, offset, rank, smallest, total, world
from tests.gloo import leave


def _own(number):
    return torch.arange(3 * (2 - number), dtype=torch.float32).reshape(2 - number, 3) + 10 * number


def _process(number, folder):
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=2)
    x = _own(number).requires_grad_()
    found = gather(x)
    # each rank adds its share of a sum: the gradient of x is that of the whole sum
    ((number + 1) * (found * torch.arange(9.0).reshape(3, 3))).sum().backward()
    y = torch.tensor([2.0 + number], requires_grad=True)
    both = total(y)
    ((number + 1) * both.square()).sum().backward()
    saved = {
        "all": found.detach(), "world": world(), "rank": rank(), "flags": gather(torch.tensor([True])),
        "gather": x.grad, "total": both.detach(), "back": y.grad, "offset": offset(len(x)), "least": smallest(len(x)),
    }  # fmt: skip
    torch.save(saved, f"{folder}/{number}.pt")
    leave(folder, number, 2)


def test_one_process_sends_nothing():
    x = torch.ones(2, requires_grad=True)
    assert (world(), rank(), offset(5), smallest(5)) == (1, 0, 0, 5) and gather(x) is x and total(x) is x


def test_ranks_gather_the_same(tmp_path):
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
    for number in range(2):
        found = torch.load(tmp_path / f"{number}.pt")
        assert torch.equal(found["all"], torch.cat([_own(0), _own(1)]))
        weight = torch.arange(9.0).reshape(3, 3)
        assert torch.equal(found["gather"], 3 * weight.split([2, 1])[number])  # 1 of the first rank, 2 of the second
        assert found["total"].tolist() == [5.0] and found["back"].tolist() == [2 * 5.0 * 3]
        assert (found["offset"], found["least"]) == ([0, 2][number], 1)
        assert (found["world"], found["rank"], found["flags"].tolist()) == (2, number, [True, True])
