"""Frozen tokens beside the classes of a sample's elements (pixels, points), and how elements lie between tokens.

Letters in shapes: n samples, t tokens, d width, m elements of a sample, k tokens that an element lies between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.evaluation.features import device_of, evaluating, untouched
from mmssl.evaluation.logistic import mixture
from mmssl.evaluation.tokens import fits
from mmssl.types import Tokens, View

NEAREST = 3
_CHUNK = 1 << 24  # numbers held at once

Places = Callable[[Any], Tensor]
"""Where the elements of a batch lie in the coordinates of its tokens: from a view's data to (b, m, p)."""


@dataclass(frozen=True)
class SegmentFeatures:
    """All tokens of each sample, and the class of each of its elements.

    Args:
        x: (n, t, d) float16; zeros at padding.
        y: (n, m) int64, -1 where there is no class.
        near: places of the tokens that an element lies between, (n, m, k) int64; or (1, m, k) where all samples have
            the same.
        weight: their shares in its answer, which sum to 1, float32, likewise.
        valid: False at padding, (n, t) bool; None where there is none.
    """

    x: Tensor
    y: Tensor
    near: Tensor
    weight: Tensor
    valid: Tensor | None = None

    def __len__(self) -> int:
        """Number of samples, n."""
        return len(self.y)

    def known(self) -> Tensor:
        """Which samples have an element with a class, (n,) bool."""
        return (self.y >= 0).any(1)

    def where(self, keep: Tensor) -> SegmentFeatures:
        """The samples at which `keep` holds: (n,) bool, or their places (m,) int64."""
        near, weight = (field if len(field) == 1 else field[keep] for field in (self.near, self.weight))
        return SegmentFeatures(
            self.x[keep], self.y[keep], near, weight, None if self.valid is None else self.valid[keep]
        )

    def labelled(self) -> SegmentFeatures:
        """The samples that have an element with a class."""
        return self.where(self.known())

    def some(self, count: int | None, seed: int = 0) -> SegmentFeatures:
        """At most so many elements with a class of each sample, drawn at random; all by default."""
        if count is None or count >= self.y.shape[1]:
            return self
        found = []
        for rows in torch.arange(len(self)).split(max(1, _CHUNK // self.y.shape[1])):
            luck = Draws.of(seed, 0, rows).named("elements").uniform(self.y.shape[1])
            found.append(luck.masked_fill_(self.y[rows] < 0, 2.0).topk(count, 1, largest=False, sorted=False).indices)
        chosen = torch.cat(found)

        def pick(field: Tensor) -> Tensor:
            k = field.shape[-1]
            return field.expand(len(self), -1, -1).gather(1, chosen.unsqueeze(-1).expand(-1, -1, k))

        return SegmentFeatures(self.x, self.y.gather(1, chosen), pick(self.near), pick(self.weight), self.valid)

    def mixture(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """How answers of elements are mixed of those of tokens.

        Returns:
            A sparse matrix (r, n * t), a row for each element with a class, in coordinates; and these classes, (r,).
        """
        n, t = self.x.shape[:2]
        kept = self.y >= 0
        near, weight = (field.expand(n, -1, -1)[kept] for field in (self.near, self.weight))
        column = near + t * torch.arange(n).repeat_interleave(kept.sum(1)).unsqueeze(1)
        return mixture(column, weight.to(dtype), n * t), self.y[kept]

    def interpolated(self, answers: Tensor) -> Tensor:
        """Answers of tokens (n, t, c) as answers of elements, (n, m, c)."""
        n, c = len(answers), answers.shape[-1]
        near, weight = self.near.expand(n, -1, -1), self.weight.expand(n, -1, -1).to(answers.dtype)
        total = answers.new_zeros(n, near.shape[1], c)
        for place, share in zip(near.unbind(-1), weight.unbind(-1), strict=True):
            total.addcmul_(answers.gather(1, place.unsqueeze(-1).expand(-1, -1, c)), share.unsqueeze(-1))
        return total


class RawTokens(nn.Module):
    """What a network's tokens are made of, as features: raw values and coordinates, which is all that an encoder gets.

    Args:
        network: has a `tokenizer`.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.tokenizer = network.tokenizer

    def forward(self, view: View) -> Tokens:
        """Tokens whose `x` is `raw` and `pos`."""
        tokens = self.tokenizer(view)
        return tokens.but(x=torch.cat([tokens.raw, tokens.pos.to(tokens.raw.dtype)], -1))


def on_grid(grid: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Elements on one grid between tokens on another over the same extent: (bi-, tri-)linear, edges repeated.

    The numbers are those of `torch.nn.functional.interpolate` without `align_corners`, as in DINOv2's segmentation.

    Args:
        grid: tokens per axis.
        shape: elements per axis.

    Returns:
        Places of tokens (m, 2 ** axes) int64, row-major, and their shares, float32.
    """
    near, weight = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
    for tokens, elements in zip(grid, shape, strict=True):
        at = ((torch.arange(elements, dtype=torch.float64) + 0.5) * tokens / elements - 0.5).clamp(min=0)
        low = at.floor().long().clamp(max=tokens - 1)
        share = (at - low).float()
        ends = torch.stack([low, (low + 1).clamp(max=tokens - 1)], 1)
        shares = torch.stack([1 - share, share], 1)
        near = (near[:, None, :, None] * tokens + ends[None, :, None, :]).flatten(2).flatten(0, 1)
        weight = (weight[:, None, :, None] * shares[None, :, None, :]).flatten(2).flatten(0, 1)
    return near, weight


def among(places: Tensor, pos: Tensor, valid: Tensor | None = None, count: int = NEAREST) -> tuple[Tensor, Tensor]:
    """Elements between the tokens that lie nearest, weighted by the inverse of the squared distance.

    PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric Space. Qi et al., 2017. arXiv:1706.02413,
    equation 2 with its p = 2 and k = 3.

    Args:
        places: of the elements, (b, m, p).
        pos: of the tokens, (b, t, p).
        valid: False at padding, (b, t).
        count: how many tokens.

    Returns:
        Places of tokens (b, m, k) int64, nearest first, and their shares, float32.
    """
    near, weight = [], []
    for i, rows in enumerate(places.split(1)):
        distance = torch.cdist(rows.double(), pos[i : i + 1].double(), compute_mode="donot_use_mm_for_euclid_dist")
        distance = distance.square()
        if valid is not None:
            distance = distance.masked_fill(~valid[i], torch.inf)
        found = distance.topk(min(count, pos.shape[1]), -1, largest=False)
        share = 1 / found.values.clamp(min=1e-10)
        near.append(found.indices)
        weight.append((share / share.sum(-1, keepdim=True)).float())
    return torch.cat(near), torch.cat(weight)


def embed_segments(
    encoder: nn.Module, batches: Iterable[Mapping[str, Any]], places: Places | None, memory_mb: float, samples: int
) -> SegmentFeatures:
    """All tokens and elements of a data set in evaluation mode, on the CPU; nothing global is changed.

    Args:
        encoder: `encoder(view) -> Tokens`, unmasked.
        batches: dicts with `x` (a `View`) and `segments`, (b, ...) integers.
        places: where elements lie, for tokens on no grid.
        memory_mb: more MiB than this are refused after the first batch, before the time is spent.
        samples: number of samples that the batches hold in all, for that estimate.

    Raises:
        ValueError: where there is no sample, features do not fit into memory, or elements lie nowhere.
    """
    device = device_of(encoder)
    parts: list[SegmentFeatures] = []
    with untouched(), evaluating(encoder), torch.inference_mode():
        for batch in batches:
            tokens = encoder(batch["x"].to(device)).dense()
            part = _part(tokens, batch["segments"], batch["x"].data, places)
            if not parts:
                own = 0 if len(part.near) == 1 < len(part) else 12 * part.near[0].numel()
                fits(part.x, samples, memory_mb, part.y[0].numel() * 8 + own)
            parts.append(part)
    if not parts:
        raise ValueError("data: there is nothing to embed; the split is empty. Check data.root and the split's size.")
    return _joined(parts)


def _part(tokens: Tokens, segments: Tensor, data: Any, places: Places | None) -> SegmentFeatures:
    """One batch. Elements on a grid lie between tokens on a grid of as many axes; else the modality says where."""
    assert tokens.x is not None
    x = tokens.x.to(torch.float16).cpu()
    valid = None if tokens.valid is None else tokens.valid.cpu()
    if valid is not None:
        x = x.masked_fill(~valid.unsqueeze(-1), 0.0)
    shape = tuple(segments.shape[1:])
    if tokens.grid is not None and len(tokens.grid) == len(shape) and math.prod(tokens.grid) == x.shape[1]:
        near, weight = (field.unsqueeze(0) for field in on_grid(tokens.grid, shape))
    elif places is not None:
        near, weight = among(places(data).cpu(), tokens.pos.cpu(), valid)
    else:
        raise ValueError(
            f"protocol/segmentation: elements {shape} and tokens (grid {tokens.grid}) lie on no common grid, and the "
            "modality does not say where elements lie: give its adapter `places(data)`"
        )
    return SegmentFeatures(x, segments.flatten(1).to(torch.int64), near, weight, valid)


def _joined(parts: list[SegmentFeatures]) -> SegmentFeatures:
    """Batches one behind the other, tokens padded to the most. Copies leave inference mode behind."""
    most = max(part.x.shape[1] for part in parts)
    ragged = any(part.valid is not None or part.x.shape[1] < most for part in parts)
    shared = all(len(part.near) == 1 for part in parts) and not ragged
    xs, valids, nears, weights = [], [], [], []
    for part in parts:
        gap = most - part.x.shape[1]
        xs.append(nn.functional.pad(part.x, (0, 0, 0, gap)))
        kept = torch.ones(part.x.shape[:2], dtype=torch.bool) if part.valid is None else part.valid
        valids.append(nn.functional.pad(kept, (0, gap), value=False))
        nears.append(part.near if shared else part.near.expand(len(part), -1, -1))
        weights.append(part.weight if shared else part.weight.expand(len(part), -1, -1))
    few = slice(0, 1) if shared else slice(None)
    return SegmentFeatures(
        torch.cat(xs), torch.cat([part.y for part in parts]), torch.cat(nears[few]), torch.cat(weights[few]),
        torch.cat(valids) if ragged else None,
    )  # fmt: skip


def confusion(predicted: Tensor, wanted: Tensor, classes: int) -> Tensor:
    """Of each sample and class how many elements are right, are of it, and are answered by it, (n, 3, classes) float64.

    Args:
        predicted: (n, m) from 0 on.
        wanted: (n, m), below 0 where there is no class.
        classes: how many.
    """
    kept = wanted >= 0
    sample = torch.arange(len(wanted)).unsqueeze(1).expand_as(wanted) * classes

    def count(classes_of: Tensor, where: Tensor) -> Tensor:
        flat = torch.bincount((sample + classes_of)[where], minlength=len(wanted) * classes)
        return flat.reshape(-1, classes).double()

    right = kept & (predicted == wanted)
    return torch.stack([count(wanted, right), count(wanted, kept), count(predicted, kept)], 1)
