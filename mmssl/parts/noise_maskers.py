"""A masker that cuts its masks out of filtered noise. It knows nothing of the data but the grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.masks import ordinal
from mmssl.parts.maskers import check_ratio
from mmssl.registry import register, suggest
from mmssl.types import Mask, Tokens

SIGMAS: dict[str, tuple[float, ...]] = {
    "white": (), "red": (2.0,), "blue": (0.8,), "green": (0.8, 2.0), "purple": (0.8, 2.0),
}  # fmt: skip
Sigma = float | Sequence[float]


def ranges(color: str, sigmas: Sequence[Sigma]) -> list[tuple[float, float]]:
    """The deviations of a colour's Gaussians, each as a range.

    Raises:
        ValueError: where they are not as many as the colour takes, or do not ascend.
    """
    pairs = [(float(s), float(s)) if isinstance(s, int | float) else (s[0], s[-1]) for s in sigmas]
    limits = [0.0, *(limit for pair in pairs for limit in pair)]
    apart = all(below[1] < above[0] for below, above in itertools.pairwise(pairs))
    if len(pairs) != len(SIGMAS[color]) or limits != sorted(limits) or 0.0 in limits[1:] or not apart:
        raise ValueError(
            f"masker.sigmas: {color} noise takes {len(SIGMAS[color])} ascending positive numbers, or ranges that "
            f"do not meet, such as {list(SIGMAS[color])} (got {list(sigmas)})"
        )
    return pairs


def blurred(noise: Tensor, sigma: Tensor) -> Tensor:
    """Noise behind a Gaussian of unit sum that wraps around the edges, by Fourier transform.

    Args:
        noise: maps (m, *sides).
        sigma: deviation for each map, in cells, (m,).
    """
    axes = tuple(range(1, noise.dim()))
    spectrum = torch.fft.fftn(noise, dim=axes)
    for axis in axes:
        n = noise.shape[axis]
        place = torch.arange(n)
        apart = torch.minimum(place, n - place)
        kernel = torch.exp(-0.5 * (apart / sigma.unsqueeze(1)).square())
        kernel = torch.fft.fft(kernel / kernel.sum(1, keepdim=True)).real
        spectrum = spectrum * kernel.reshape(-1, *(n if other == axis else 1 for other in axes))
    return torch.fft.ifftn(spectrum, dim=axes).real


def coloured(noise: Tensor, color: str, sigmas: Sequence[Tensor]) -> Tensor:
    """White noise (m, *sides) as noise of a colour; `sigmas` as many as `SIGMAS` has for it, each (m,)."""
    blurs = [blurred(noise, sigma) for sigma in sigmas]
    if color in ("white", "red"):
        return blurs[0] if blurs else noise
    if color == "blue":
        return noise - blurs[0]
    band = blurs[0] - blurs[1]
    return band if color == "green" else noise - band


def crowding(visible: Tensor, weights: Sequence[float]) -> Tensor:
    """Of each cell of maps (m, *sides) how many visible ones lie before and behind it along each axis, weighted.

    Args:
        visible: maps of flags; their edges wrap around.
        weights: of neighbours 1, 2, ... cells away.
    """
    seen, score = visible.float(), torch.zeros(visible.shape)
    for axis, (apart, weight) in itertools.product(range(1, seen.dim()), enumerate(weights, 1)):
        score += weight * (seen.roll(apart, axis) + seen.roll(-apart, axis))
    return score


def spread_out(visible: Tensor, weights: Sequence[float], swaps: int) -> Tensor:
    """Moves visible cells of maps one by one, the most crowded to the place where it is loneliest.

    Args:
        visible: maps of flags (m, *sides); their edges wrap around.
        weights: of neighbours 1, 2, ... cells away.
        swaps: most moves of a map; a map where none makes the sum of crowding smaller rests.
    """
    sides, flat, score = visible.shape[1:], visible.flatten(1).clone(), crowding(visible, weights).flatten(1)
    limits, every = torch.tensor(sides), torch.arange(len(flat))
    place = torch.stack(torch.meshgrid(*(torch.arange(n) for n in sides), indexing="ij"), -1).reshape(-1, len(sides))
    steps = [apart * sign for apart in range(1, len(weights) + 1) for sign in (1, -1)]
    around = torch.cat([step * torch.eye(len(sides), dtype=torch.int64) for step in steps])
    stencil = torch.tensor(weights).repeat_interleave(2 * len(sides))
    strides = torch.tensor([math.prod(sides[axis + 1 :]) for axis in range(len(sides))])

    def add(at: Tensor, sign: Tensor) -> None:
        """What one visible cell of each map is to its neighbours, times a factor."""
        near = (((place[at].unsqueeze(1) + around) % limits) * strides).sum(-1)
        score.scatter_add_(1, near, sign.unsqueeze(1) * stencil)

    for _ in range(swaps):
        source = score.masked_fill(~flat, -1.0).argmax(1)
        add(source, -torch.ones(len(flat)))
        goal = score.masked_fill(flat, torch.inf).argmin(1)
        better = score[every, goal] < score[every, source]
        add(torch.where(better, goal, source), torch.ones(len(flat)))
        flat[every, source] = ~better
        flat[every, goal] |= better
        if not bool(better.any()):
            break
    return flat.reshape(visible.shape)


@register("masker/noise")
class Noise:
    """Hides where filtered noise is low (ColorMAE, Hinojosa et al. 2024; structured noise, Bhowmik et al. 2025).

    Maps of noise are made once, from a seed of their own. Each step draws one window and flips of rows and columns for
    all maps, each sample a map; the highest values in the window stay visible. W is white noise and G a Gaussian:
    `red` is G W, `blue` W - G W, `green` G1 W - G2 W (a band of frequencies) and `purple` all but green.

    Args:
        ratio: share of tokens that are hidden, in [0, 1).
        color: white, red, blue, green or purple.
        sigmas: deviations of the Gaussians in tokens: one for red and blue, two ascending ones for green and purple. A
            pair in place of a number is a range that each map draws from. null takes 2 (red), 0.8 (blue), 0.8 and 2.
        per: `sample`: of n tokens int(n (1 - ratio)) stay visible; `slice`: of each step of the first axis int(m ratio)
            of its m tokens are hidden, as masker/tube does.
        maps: number of maps.
        side: side of the maps in tokens, or one for each axis; no axis of the grid may be longer.
        swaps: how many visible cells of each map are moved beforehand, so that they crowd less: regularised noise.
        weights: what neighbours 1, 2, ... cells away along an axis weigh in that.
        seed: of the maps.

    Raises:
        ValueError: for a ratio outside [0, 1), another word, or sigmas that do not fit; when called, for tokens without
            a grid, or on one that is larger than the maps.
    """

    def __init__(
        self,
        *,
        ratio: float = 0.75,
        color: str = "green",
        sigmas: Sequence[Sigma] | None = None,
        per: str = "sample",
        maps: int = 3072,
        side: int | Sequence[int] = 64,
        swaps: int = 0,
        weights: Sequence[float] = (1.0, 0.5),
        seed: int = 0,
    ) -> None:
        check_ratio(ratio)
        if color not in SIGMAS:
            raise ValueError(
                f"masker.color has to be one of {', '.join(SIGMAS)} (got {color!r}){suggest(color, SIGMAS)}"
            )
        if per not in ("sample", "slice"):
            raise ValueError(f"masker.per has to be 'sample' or 'slice' (got {per!r})")
        self.sigmas = ranges(color, SIGMAS[color] if sigmas is None else sigmas)
        self.ratio, self.color, self.per = ratio, color, per
        self.maps, self.side, self.swaps, self.weights, self.seed = maps, side, swaps, tuple(weights), seed
        self._bank: Tensor | None = None

    def bank(self, axes: int) -> Tensor:
        """The maps, (maps, *sides) float32 on the CPU: the same whatever the machine, ranks and batch."""
        sides = [self.side] * axes if isinstance(self.side, int) else list(self.side)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.maps, *sides, generator=generator)
        sigmas = [low + (high - low) * torch.rand(self.maps, generator=generator) for low, high in self.sigmas]
        found = coloured(noise, self.color, sigmas)
        if not self.swaps:
            return found
        rank = ordinal(found.flatten(1), descending=True)
        visible = (rank < int(rank.shape[1] * (1 - self.ratio))).reshape(found.shape)
        # what is visible of the whole map comes first, the noise decides about the rest of a window's number
        return spread_out(visible, self.weights, self.swaps).float() - rank.reshape(found.shape) / rank.shape[1]

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks one row per sample."""
        values = self._window(tokens, draws)
        groups = values.shape[1] if self.per == "slice" else 1
        values = values.reshape(len(values) * groups, -1)
        m, device = values.shape[1], values.device
        real = None if tokens.valid is None else tokens.valid.reshape(values.shape)
        if real is not None:
            values = values.masked_fill(~real, -torch.inf)
        rank = ordinal(values, descending=True)
        if real is None:
            visible = (rank < self._keep(m)).reshape(-1, groups * m)
            return Mask(visible, ~visible.unsqueeze(1), None, groups * self._keep(m), groups * (m - self._keep(m)))
        # a table, not arithmetic on the device: a sample keeps as many as it would in a batch without padding
        table = torch.tensor([self._keep(n) for n in range(m + 1)], device=device)
        kept = rank < table[real.sum(1)].unsqueeze(1)
        return Mask(kept.reshape(-1, groups * m), (~kept & real).reshape(-1, 1, groups * m))

    def _keep(self, n: int) -> int:
        """How many of n tokens stay visible."""
        return int(n * (1 - self.ratio)) if self.per == "sample" else n - int(n * self.ratio)

    def _window(self, tokens: Tokens, draws: Draws) -> Tensor:
        """The noise of each sample, (b, *grid): one window and flips for all of them, a map for each."""
        grid = tokens.grid
        if grid is None or tokens.packed:
            raise ValueError("masker/noise needs whole tokens on a grid, such as patches; use masker/random")
        if self._bank is None:
            self._bank = self.bank(len(grid))
        sides = self._bank.shape[1:]
        if len(sides) != len(grid) or any(n > side for n, side in zip(grid, sides, strict=True)):
            raise ValueError(
                f"masker.side gives maps of {tuple(sides)}, which do not hold the grid of tokens {grid}; set it to one "
                "number for each axis, each at least as large as the grid's"
            )
        device = tokens.raw.device
        self._bank = bank = self._bank.to(device)
        common, places = draws.batch(), []
        corner, flips = common.named("window").uniform(len(grid))[0], common.named("flips").uniform(2)[0] < 0.5
        for axis, (n, side) in enumerate(zip(grid, sides, strict=True)):
            at = torch.arange(n, device=device)
            if axis >= len(grid) - 2:  # time runs one way
                at = torch.where(flips[axis - len(grid) + 2].to(device), at.flip(0), at)
            at = at + (corner[axis] * (side - n + 1)).long().to(device)
            places.append(at.reshape(-1, *(1,) * (len(grid) - axis - 1)))
        chosen = draws.named("map").integers(0, len(bank)).to(device)
        return bank[chosen.reshape(-1, *(1,) * len(grid)), *places]
