import pytest
import torch

from mmssl.data.sampler import EpochBatches
from mmssl.draws import shuffle


def one_epoch(n, batch_size, **said):
    return list(EpochBatches(n, batch_size, 7, **said))


def test_one_rank_walks_through_the_shuffled_order():
    order = shuffle(23, 7, 0)
    batches = one_epoch(23, 5)
    assert [[i for _, i in batch] for batch in batches] == order[:20].view(4, 5).tolist()
    assert {epoch for batch in batches for epoch, _ in batch} == {0}
    assert sorted(order.tolist()) == list(range(23))


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (2, 1), (2, 3), (4, 1), (3, 4)])
def test_shares_put_together_are_the_global_batch(world, accumulate):
    whole = one_epoch(60, 12)
    ranks = [one_epoch(60, 12, rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {5 * accumulate}
    assert {len(batch) for batches in ranks for batch in batches} == {12 // world // accumulate}
    for step in range(5):
        pieces = [ranks[r][step * accumulate + a] for r in range(world) for a in range(accumulate)]
        assert [pair for piece in pieces for pair in piece] == whole[step]


def test_epochs_go_on_and_differ():
    sampler = EpochBatches(10, 5, 0)
    first, second = list(sampler), list(sampler)
    assert {epoch for batch in second for epoch, _ in batch} == {1}
    assert [i for batch in first for _, i in batch] == shuffle(10, 0, 0).tolist()
    assert [i for batch in second for _, i in batch] == shuffle(10, 0, 1).tolist() != shuffle(10, 0, 0).tolist()


@pytest.mark.parametrize("at", range(7))
def test_resume_at_any_step_gives_what_would_have_come(at):
    straight = EpochBatches(13, 4, 3, endless=True)
    assert len(straight) == 3
    wanted = [batch for batch, _ in zip(straight, range(10), strict=False)]
    resumed = EpochBatches(13, 4, 3, endless=True)
    resumed.set_start(0, at)  # a step past the epoch is one of the next
    assert [batch for batch, _ in zip(resumed, range(10 - at), strict=False)] == wanted[at:]


def test_set_epoch_keeps_a_start_within_that_epoch():
    sampler = EpochBatches(12, 4, 0)
    whole = list(EpochBatches(12, 4, 0))
    sampler.set_start(0, 2)
    sampler.set_epoch(0)
    assert list(sampler) == whole[2:]
    sampler.set_start(0, 2)
    sampler.set_epoch(3)
    assert len(list(sampler)) == 3 and sampler.start == (4, 0)


def test_an_epoch_broken_off_is_not_repeated():
    sampler = EpochBatches(12, 4, 0)
    next(iter(sampler))
    assert next(iter(sampler))[0][0] == 1


def test_in_order_without_drop():
    batches = one_epoch(10, 4, shuffled=False, drop_last=False)
    assert [[i for _, i in batch] for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    parts = [one_epoch(10, 4, shuffled=False, drop_last=False, rank=r, world=2) for r in range(2)]
    assert sorted(i for part in parts for batch in part for _, i in batch) == list(range(10))


def test_no_global_generator_is_used():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one_epoch(50, 5)
    assert torch.equal(before, torch.random.get_rng_state())
