"""The embedding of groups of points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.nn.norm import BatchNorm
from mmssl.types import Tokens


class MiniPointNet(nn.Module):
    """A small PointNet over each group of points (Point-BERT, Yu et al. 2022; Point-MAE, Pang et al. 2022).

    Every point goes through two linear maps, the group's maximum is put in front of each point's features, two more
    linear maps and a maximum follow. Batch norms take their statistics over all points of all groups of all ranks,
    hidden groups included; `whole` says so. The last map, behind them, is computed for the groups that are kept alone.

    Args:
        size: points of a group.
        dim: width of a token.
        hidden: width of the first map; the others are 2, 4 and 4 times as wide.
    """

    whole = True

    def __init__(self, size: int, dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.size = size
        self.first = nn.ModuleList([nn.Linear(3, hidden), BatchNorm(hidden), nn.Linear(hidden, 2 * hidden)])
        wide = 4 * hidden
        self.second = nn.ModuleList([nn.Linear(wide, wide), BatchNorm(wide), nn.Linear(wide, dim)])
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, tokens: Tokens, kept: Tokens | None = None, row: Tensor | None = None) -> Tokens:
        """Tokens with `x` of shape (b, g, dim).

        Args:
            tokens: all groups.
            kept: those to embed, (r, s); None for all.
            row: the sample each row of `kept` belongs to; None where rows are samples in order.
        """
        points = tokens.raw.reshape(-1, 3)
        inner, norm, outer = self.first
        own = outer(F.relu(norm(inner(points)))).unflatten(0, (-1, self.size))
        inner, norm, outer = self.second
        x = norm(self._joined(own, inner).flatten(0, 1)).view(*tokens.raw.shape[:-1], self.size, -1)
        if kept is not None:
            every = torch.arange(len(x), device=x.device) if row is None else row
            x = x[every.unsqueeze(1), kept.index]
        x = outer(F.relu(x)).amax(-2)
        return tokens.but(x=x) if kept is None else kept.but(x=x)

    def _joined(self, own: Tensor, linear: nn.Module) -> Tensor:
        """The linear map of (maximum of the group, own features): the group's half is computed once per group."""
        assert isinstance(linear, nn.Linear)
        shared, each = linear.weight.chunk(2, dim=1)
        whole = F.linear(own.amax(1), shared, linear.bias)
        return F.linear(own, each) + whole.unsqueeze(1)
