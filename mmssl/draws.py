"""Counter-based random draws: pure functions of (seed, epoch, sample, name), whatever the ranks and workers.

A stream of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014) per sample, computed
for a whole batch at once. Nothing here touches a global generator, so evaluation and monitors cannot disturb training.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """A 64-bit constant as the signed integer that torch stores."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_ALL = (1 << 64) - 1
_MIX = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's `>>` keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX[0]
    z = (z ^ _shift(z, 27)) * _MIX[1]
    return z ^ _shift(z, 31)


def _mixed(z: int) -> int:
    """`_mix` of one number, where no tensor is needed."""
    z &= _ALL
    z = ((z ^ z >> 30) * _MIX[0]) & _ALL
    z = ((z ^ z >> 27) * _MIX[1]) & _ALL
    return z ^ z >> 31


class Draws:
    """Random numbers for each sample of a batch.

    Args:
        keys: one 64-bit key per sample, (b,) int64. Use `Draws.of` and `named` to make them.
        common: the key of the step they are drawn in, of 64 bits, for what all samples of a step share; None where
            there is no step.
    """

    def __init__(self, keys: Tensor, common: int | None = None) -> None:
        self.keys, self.common = keys, common

    @classmethod
    def of(
        cls, seed: int, epoch: int | Tensor, samples: Tensor, copy: Tensor | None = None, step: int | None = 0
    ) -> Draws:
        """Draws of the given samples in one epoch.

        Args:
            seed: the run's seed.
            epoch: the epoch, one number or one per sample.
            samples: ids of the samples in their data set, (b,) int64.
            copy: which of a sample's repetitions in the batch each row is, (b,) int64; None without repetition.
            step: number of the training step, for `batch`; None outside of steps.
        """
        samples = samples.to(torch.int64)
        epochs = torch.as_tensor(epoch, dtype=torch.int64, device=samples.device)
        keys = _mix(_mix(_signed(_mixed(seed * _GAMMA + 1)) + epochs * _GAMMA) + samples * _GAMMA)
        common = None if step is None else _mixed(_mixed(seed * _GAMMA + 2) + step * _GAMMA)
        return cls(keys if copy is None else _mix(keys + (copy + 1) * _GAMMA), common)

    def named(self, name: str) -> Draws:
        """An independent stream, for one use of randomness: each use has a name of its own."""
        word = zlib.crc32(name.encode()) * 0x100000001B3 & _ALL
        return Draws(_mix(self.keys ^ _signed(word)), None if self.common is None else _mixed(self.common ^ word))

    def batch(self) -> Draws:
        """Draws of one row that all samples of this step share, whatever the ranks: I-JEPA's one block size a batch."""
        assert self.common is not None, "these draws belong to no step"
        return Draws(torch.tensor([_signed(self.common)], device=self.keys.device), self.common)

    def rows(self, row: Tensor) -> Draws:
        """The draws of some samples, or of one sample several times (use `named` to tell those apart)."""
        return Draws(self.keys[row], self.common)

    def each(self) -> list[Draws]:
        """The draws of every sample alone. Numbers are computed for all of them at once, when the first asks."""
        return [_One(self, row) for row in range(len(self.keys))]

    def bits(self, *shape: int) -> Tensor:
        """Uniform 64-bit integers, (b, *shape) int64."""
        count = math.prod(shape)
        steps = torch.arange(1, count + 1, device=self.keys.device, dtype=torch.int64) * _GAMMA
        return _mix(self.keys.unsqueeze(1) + steps).reshape(len(self.keys), *shape)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high), (b, *shape) float32 of 24 random bits each."""
        unit = _shift(self.bits(*shape), 40).to(torch.float32) * 2.0**-24
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (Box-Muller), (b, *shape) float32."""
        u = self.uniform(2, *shape)
        radius = torch.sqrt(-2.0 * torch.log1p(-u[:, 0]))
        return radius * torch.cos(2.0 * math.pi * u[:, 1])

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Uniform integers in [low, high), (b, *shape) int64; the bias is below (high - low) / 2**53."""
        return low + _shift(self.bits(*shape), 11) % (high - low)

    def order(self, n: int) -> Tensor:
        """A random permutation of n places per sample, (b, n) int64."""
        return torch.argsort(self.uniform(n), dim=1, stable=True)


class _One(Draws):
    """The draws of one sample of a batch; see `Draws.each`."""

    def __init__(self, whole: Draws, row: int) -> None:
        self._whole, self._row, self.common = whole, row, whole.common
        self._memo: dict[tuple[Any, ...], Any] = whole.__dict__.setdefault("memo", {})

    @property
    def keys(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]  # hardly ever asked for
        """The key of the sample, (1,) int64."""
        return self._whole.keys[self._row : self._row + 1]

    def named(self, name: str) -> Draws:
        """An independent stream of this sample."""
        key = ("named", name)
        if key not in self._memo:
            self._memo[key] = self._whole.named(name).each()
        return self._memo[key][self._row]

    def bits(self, *shape: int) -> Tensor:
        """Uniform 64-bit integers, (1, *shape) int64."""
        key = ("bits", shape)
        if key not in self._memo:
            self._memo[key] = self._whole.bits(*shape)
        return self._memo[key][self._row : self._row + 1]

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high), (1, *shape) float32."""
        key = ("uniform", shape, low, high)
        if key not in self._memo:
            self._memo[key] = self._whole.uniform(*shape, low=low, high=high)
        return self._memo[key][self._row : self._row + 1]


def shuffle(n: int, seed: int, epoch: int) -> Tensor:
    """The order of n samples in one epoch, (n,) int64: a pure function of (seed, epoch)."""
    keys = Draws.of(seed, epoch, torch.arange(n)).named("order").keys
    return torch.argsort(keys, stable=True)
