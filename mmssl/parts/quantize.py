"""Randomized quantization: an augmentation that needs nothing but values in channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmssl.data.segments import unmoved
from mmssl.draws import Draws
from mmssl.parts.views import happens, probability
from mmssl.registry import register
from mmssl.types import Mask, Tokens, TokenSpec


@register("view/quantize")
class Quantize:
    """Every channel keeps a few values only: its range is cut at random, and all of a part become one value inside it.

    Randomized Quantization: A Generic Augmentation for Data Agnostic Self-supervised Learning. Wu et al., 2022.
    arXiv:2212.08663. A sample is a tensor (c, ...), or has one as its `data`, as recordings do; whole numbers stay
    whole: what is behind the point is cut off.

    Args:
        regions: parts of each channel's range.
        p: probability that anything changes.
    """

    segments = unmoved

    def __init__(self, *, regions: int = 8, p: float = 1.0) -> None:
        self.regions, self.p = _positive(regions, "view/quantize"), probability(p, "view/quantize")

    def __call__(self, sample: Any, draws: Draws) -> Any:
        """Returns a sample of the same shape and type."""
        draws = draws.named("quantize")
        if not happens(draws, self.p):
            return sample
        if isinstance(sample, Tensor):
            return self._quantized(sample, draws)
        return sample._replace(data=self._quantized(sample.data, draws))

    def _quantized(self, data: Tensor, draws: Draws) -> Tensor:
        flat = data.flatten(1).float()
        ends = torch.stack(torch.aminmax(flat, dim=1), 1)
        cuts, inside = (draws.named(use).uniform(len(flat), count)[0] for use, count in _uses(self.regions))
        return quantized(flat, ends, cuts, inside).reshape(data.shape).to(data.dtype)


@register("corruptor/quantize")
class QuantizeTokens(nn.Module):
    """The same of the raw values of a sample's tokens: a token's k-th value in all of its tokens is one channel.

    For samples without channels of their own: of a table, whose tokens are cells, a row is one channel. Padding and
    what is missing keep their values and bound no range. Nothing is hidden, so that no masker is needed.

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts; anything will do.
        dim: the encoder's width.
        regions: parts of each channel's range.

    Raises:
        ValueError: for no region; when called, for a packed batch, whose samples have no rows of their own.
    """

    on = "tokens"
    maskless = True

    def __init__(self, spec: TokenSpec, accepts: str, dim: int, *, regions: int = 8) -> None:
        super().__init__()
        self.regions = _positive(regions, "corruptor/quantize")

    def forward(self, tokens: Tokens, mask: Mask | None, draws: Draws) -> Tokens:
        """All tokens, with few values."""
        if tokens.packed:
            raise ValueError("corruptor/quantize needs samples of their own rows, and a packed batch is one row")
        known = [flags for flags in (tokens.valid, tokens.given) if flags is not None]
        flat = tokens.raw.transpose(1, 2)
        kept = torch.stack(known).all(0).unsqueeze(1) if known else torch.ones_like(flat[:, :1], dtype=torch.bool)
        low, high = flat.masked_fill(~kept, torch.inf).amin(2), flat.masked_fill(~kept, -torch.inf).amax(2)
        ends = torch.stack([low, high], 2)
        ends = torch.where(ends.isfinite(), ends, 0.0)  # a sample of nothing but padding
        draws = draws.named("quantize")
        cuts, inside = (draws.named(use).uniform(flat.shape[1], count).to(flat) for use, count in _uses(self.regions))
        few = torch.where(kept, quantized(flat.contiguous(), ends, cuts, inside), flat)
        return tokens.but(raw=few.transpose(1, 2))


def quantized(values: Tensor, ends: Tensor, cuts: Tensor, inside: Tensor) -> Tensor:
    """Values (..., c, n) of channels, each in one of a few parts of its channel's range, as the one value of that part.

    Args:
        values: of channels.
        ends: smallest and largest value of each channel, (..., c, 2).
        cuts: where the range is cut, in [0, 1), in any order, (..., c, k - 1).
        inside: place of the value in its part, in [0, 1), (..., c, k).
    """
    low, high = ends.split(1, -1)
    borders = low + (high - low) * cuts.sort(-1).values
    ends = torch.cat([low, borders, high], -1)
    value = ends[..., :-1] + inside * (ends[..., 1:] - ends[..., :-1])
    region = torch.searchsorted(borders, values, right=True)  # a cut belongs to the part above it
    return value.gather(-1, region)


def _uses(regions: int) -> tuple[tuple[str, int], ...]:
    """What is drawn for a channel, and how many numbers."""
    return ("cuts", regions - 1), ("inside", regions)


def _positive(regions: int, part: str) -> int:
    """`regions`; ValueError that names the part where it is none."""
    if regions < 1:
        raise ValueError(f"{part}: regions has to be at least 1, usually 8 (got {regions})")
    return regions
