"""Node features with pairs of nodes that do or do not have an edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Pairs of nodes, half of which have an edge.

    Args:
        x: features of all nodes, (n, d) float32.
        pairs: places of both nodes, (2 m, 2) int64: m with an edge, then m without.
    """

    x: Tensor
    pairs: Tensor

    def __len__(self) -> int:
        """Number of pairs, 2 m."""
        return len(self.pairs)

    @property
    def y(self) -> Tensor:
        """1 for pairs with an edge, (2 m,) int64."""
        return (torch.arange(len(self.pairs)) < len(self.pairs) // 2).long()


def joined(x: Tensor, counts: Sequence[int], sets: Sequence[Tensor]) -> Pairs:
    """The pairs of several graphs as one.

    Args:
        x: node features of all graphs, one behind the other.
        counts: nodes of each graph.
        sets: pairs of each graph by its own places, (2 m, 2).
    """
    start = torch.cumsum(torch.tensor([0, *counts[:-1]]), 0)
    halves = [(pairs + first).tensor_split(2) for pairs, first in zip(sets, start, strict=True)]
    return Pairs(x, torch.cat([half[side] for side in range(2) for half in halves]))
