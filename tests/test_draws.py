"""Draws are pure functions, equal SplitMix64 written in plain integers, and pass tests of randomness at fixed seeds."""

from __future__ import annotations

import itertools
import math
import zlib

import pytest
import torch
from scipy import stats

from mmssl.draws import Draws, _mix, _mixed, _signed, shuffle

WORD = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
SIGMAS = 4.5  # of a statistic under the null hypothesis; seeds are fixed, so this cannot fail by chance


def mix(z):
    """The finaliser of SplitMix64 in Python's unbounded integers."""
    z &= WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
    return z ^ (z >> 31)


def unsigned(tensor):
    return [value & WORD for value in tensor.flatten().tolist()]


def signed(value):
    return value - (1 << 64) if value >= 1 << 63 else value


def key(seed, epoch, sample):
    base = mix(seed * GAMMA + 1)
    return mix(mix(base + epoch * GAMMA) + sample * GAMMA)


def chi_square(counts):
    """Distance of counts from equal counts, in standard deviations of the chi-square distribution."""
    counts = counts.double()
    expected = counts.sum() / counts.numel()
    df = counts.numel() - 1
    return float(((counts - expected) ** 2 / expected).sum() - df) / math.sqrt(2 * df)


def correlation(a, b):
    """Sample correlation in its standard deviations."""
    return float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1]) * math.sqrt(a.numel())


@pytest.mark.parametrize("value", [0, 1, 2, 12345, GAMMA, WORD, 1 << 63, (1 << 63) - 1, 0xDEADBEEFCAFEBABE])
def test_mix_equals_the_definition(value):
    assert unsigned(_mix(torch.tensor([signed(value)]))) == [mix(value)]


def test_bits_equal_the_published_sequence():
    """The first outputs of SplitMix64 with state 1234567, as its reference implementation prints them."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert unsigned(Draws(torch.tensor([1234567])).bits(5)) == expected


def test_keys_and_names_equal_plain_integers():
    for seed, epoch, sample in [(0, 0, 0), (7, 3, 12), (2**31, 799, 1_281_166), (-1, 1, 5)]:
        draws = Draws.of(seed, epoch, torch.tensor([sample]))
        assert unsigned(draws.keys) == [key(seed, epoch, sample)]
        named = mix(key(seed, epoch, sample) ^ (zlib.crc32(b"mask") * 0x100000001B3 & WORD))
        assert unsigned(draws.named("mask").keys) == [named]
        assert unsigned(draws.bits(3)) == [mix(key(seed, epoch, sample) + i * GAMMA) for i in (1, 2, 3)]


def test_uniform_is_the_upper_24_bits():
    draws = Draws.of(3, 1, torch.arange(4))
    expected = [[(bits >> 40) / 2**24 for bits in unsigned(row)] for row in draws.bits(6)]
    assert draws.uniform(6).tolist() == expected


def test_a_sample_draws_the_same_in_any_batch():
    ids = torch.tensor([5, 900, 3, 77, 12])
    whole = Draws.of(1, 2, ids).named("crop")
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = Draws.of(1, 2, ids[order]).named("crop")
    for draw in (
        lambda d: d.uniform(3, 2), lambda d: d.normal(7), lambda d: d.integers(-3, 9, 4), lambda d: d.order(11),
        lambda d: d.bits(2),
    ):  # fmt: skip
        assert torch.equal(draw(whole)[order], draw(shuffled))
        for i, sample in enumerate(ids):
            alone = Draws.of(1, 2, sample.view(1)).named("crop")
            assert torch.equal(draw(whole)[i : i + 1], draw(alone))
        assert torch.equal(draw(whole), draw(Draws.of(1, 2, ids).named("crop")))


def test_epoch_may_differ_by_sample():
    ids, epochs = torch.tensor([4, 4, 9]), torch.tensor([0, 1, 1])
    joined = Draws.of(6, epochs, ids).bits(4)
    for i in range(3):
        assert torch.equal(joined[i], Draws.of(6, int(epochs[i]), ids[i : i + 1]).bits(4)[0])
    assert not torch.equal(joined[0], joined[1])


def test_rows_repeat_a_sample():
    draws = Draws.of(0, 0, torch.arange(3))
    repeated = draws.rows(torch.tensor([2, 2, 0])).bits(5)
    assert torch.equal(repeated, draws.bits(5)[[2, 2, 0]])


def test_more_numbers_do_not_change_the_first():
    draws = Draws.of(0, 0, torch.arange(3))
    assert torch.equal(draws.uniform(20)[:, :7], draws.uniform(7))


def test_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    draws = Draws.of(0, 0, torch.arange(8)).named("a")
    draws.uniform(3), draws.normal(3), draws.order(5), draws.integers(0, 4, 2), shuffle(10, 0, 0)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    first = draws.uniform(3)
    torch.manual_seed(2)
    assert torch.equal(first, draws.uniform(3))


STREAMS = {
    "within a sample": lambda: Draws.of(0, 0, torch.tensor([0])).uniform(100_000),
    "over samples": lambda: Draws.of(0, 0, torch.arange(100_000)).uniform(1),
    "over epochs": lambda: Draws.of(0, torch.arange(100_000), torch.zeros(100_000, dtype=torch.long)).uniform(1),
    "over seeds": lambda: torch.cat([Draws.of(s, 0, torch.arange(50)).uniform(1) for s in range(1000)]),
    "over names": lambda: torch.cat(
        [Draws.of(0, 0, torch.arange(50)).named(f"use {s}").uniform(1) for s in range(1000)]
    ),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_uniform_numbers_are_uniform(stream):
    u = STREAMS[stream]().flatten()
    assert u.dtype == torch.float32
    assert 0 <= float(u.min()) and float(u.max()) < 1
    assert abs(chi_square(torch.histc(u, 100, 0, 1))) < SIGMAS
    assert stats.kstest(u.double().numpy(), "uniform").pvalue > 1e-4
    pairs = (u[:-1] * 16).long() * 16 + (u[1:] * 16).long()
    assert abs(chi_square(torch.bincount(pairs, minlength=256))) < SIGMAS


def test_every_bit_is_fair():
    bits = Draws.of(5, 0, torch.arange(20_000)).bits(2).flatten()
    for place in range(64):
        ones = ((bits >> place) & 1).sum()
        assert abs(float(ones) - 20_000) / math.sqrt(40_000 / 4) < SIGMAS, place


def test_uses_samples_epochs_and_seeds_are_independent():
    ids = torch.arange(50_000)
    base = Draws.of(0, 0, ids)
    one = base.named("mask").uniform(1)
    others = {
        "name": base.named("corrupt").uniform(1), "nested name": base.named("mask").named("mask").uniform(1),
        "unnamed": base.uniform(1), "epoch": Draws.of(0, 1, ids).named("mask").uniform(1),
        "seed": Draws.of(1, 0, ids).named("mask").uniform(1), "neighbour": one.roll(1, 0),
        "next draw": base.named("mask").uniform(2)[:, 1:],
        "seed for epoch": Draws.of(1, 0, ids).uniform(1),
        "epoch for sample": Draws.of(0, 0, ids + 1).named("mask").uniform(1),
    }  # fmt: skip
    for name, other in others.items():
        assert not torch.equal(one, other), name
        assert abs(correlation(one, other)) < SIGMAS, name
        joint = (one * 10).long() * 10 + (other * 10).long()
        assert abs(chi_square(torch.bincount(joint.flatten(), minlength=100))) < SIGMAS, name


def test_uniform_bounds():
    u = Draws.of(0, 0, torch.arange(2000)).uniform(5, low=-2.0, high=0.5)
    assert float(u.min()) >= -2.0 and float(u.max()) < 0.5
    assert abs(float(u.mean()) + 0.75) < SIGMAS * 2.5 / math.sqrt(12 * u.numel())


def test_normal_numbers_have_normal_moments():
    z = Draws.of(2, 0, torch.arange(1000)).normal(100).double().flatten()
    n = z.numel()
    assert bool(torch.isfinite(z).all())
    assert abs(float(z.mean())) < SIGMAS / math.sqrt(n)
    assert abs(float(z.var()) - 1) < SIGMAS * math.sqrt(2 / n)
    assert abs(float((z**3).mean())) < SIGMAS * math.sqrt(15 / n)
    assert abs(float((z**4).mean()) - 3) < SIGMAS * math.sqrt(96 / n)
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-4


def test_normal_is_finite_at_the_ends_of_the_uniform(monkeypatch):
    for extreme in (0, -1):
        monkeypatch.setattr(Draws, "bits", lambda self, *shape, v=extreme: torch.full((len(self.keys), *shape), v))
        assert bool(torch.isfinite(Draws(torch.arange(2)).normal(3)).all())


def test_normal_numbers_are_independent():
    z = Draws.of(2, 0, torch.arange(50_000)).normal(2)
    assert abs(correlation(z[:, 0], z[:, 1])) < SIGMAS
    assert abs(correlation(z[:, 0].square(), z[:, 1].square())) < SIGMAS


@pytest.mark.parametrize(("low", "high"), [(0, 7), (-3, 3), (10, 11)])
def test_integers_are_uniform(low, high):
    values = Draws.of(0, 0, torch.arange(5000)).integers(low, high, 4)
    assert values.dtype == torch.int64
    assert int(values.min()) == low and int(values.max()) == high - 1
    if high - low > 1:
        assert abs(chi_square(torch.bincount((values - low).flatten(), minlength=high - low))) < SIGMAS


@pytest.mark.parametrize("n", [1, 2, 17, 196])
def test_order_is_a_permutation(n):
    order = Draws.of(0, 0, torch.arange(50)).order(n)
    assert torch.equal(order.sort(1).values, torch.arange(n).expand(50, n))


def test_all_permutations_are_equally_likely():
    order = Draws.of(0, 0, torch.arange(24_000)).order(4)
    number = {p: i for i, p in enumerate(itertools.permutations(range(4)))}
    counts = torch.zeros(24)
    for row in order.tolist():
        counts[number[tuple(row)]] += 1
    assert abs(chi_square(counts)) < SIGMAS


def test_shuffle_is_a_pure_permutation():
    for n in (1, 2, 1000):
        assert torch.equal(shuffle(n, 3, 4).sort().values, torch.arange(n))
        assert torch.equal(shuffle(n, 3, 4), shuffle(n, 3, 4))
    orders = [shuffle(500, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for a, b in itertools.combinations(orders, 2):
        assert abs(correlation(a, b)) < SIGMAS


def test_shuffle_puts_every_sample_anywhere():
    orders = torch.stack([shuffle(20, 0, epoch) for epoch in range(4000)])
    for place in (0, 7, 19):
        assert abs(chi_square(torch.bincount(orders[:, place], minlength=20))) < SIGMAS
    fixed = (orders == torch.arange(20)).sum(1).double()  # one fixed point on average, with variance one
    assert abs(float(fixed.mean()) - 1) < SIGMAS / math.sqrt(4000)


def test_each_gives_every_sample_its_own_numbers():
    draws = Draws.of(4, 0, torch.arange(5)).named("view")
    alone = draws.each()
    for i, one in enumerate(alone):
        single = Draws(draws.keys[i : i + 1])
        assert torch.equal(one.keys, single.keys)
        for _ in range(2):  # from the batch's memory the second time
            assert torch.equal(one.uniform(3), single.uniform(3))
            assert torch.equal(one.uniform(2, low=-1.0, high=4.0), single.uniform(2, low=-1.0, high=4.0))
            assert torch.equal(one.bits(2, 2), single.bits(2, 2))
            assert torch.equal(one.normal(4), single.normal(4))
            assert torch.equal(one.integers(0, 5, 6), single.integers(0, 5, 6))
            assert torch.equal(one.order(6), single.order(6))
            assert torch.equal(one.named("crop").named("x").uniform(2), single.named("crop").named("x").uniform(2))


def test_one_number_is_mixed_as_tensors_are():
    """Steps and seeds are mixed as Python's numbers, samples as tensors: the same function of 64 bits."""
    numbers = [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF]
    assert [_signed(_mixed(n)) for n in numbers] == _mix(torch.tensor(numbers)).tolist()
