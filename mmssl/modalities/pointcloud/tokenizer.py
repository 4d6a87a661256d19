"""Points to tokens: groups of neighbours around points far from one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.modalities.pointcloud.geometry import farthest_points, nearest, nearest_walk, pick
from mmssl.modalities.pointcloud.mesh import Shown
from mmssl.modalities.pointcloud.pointnet import MiniPointNet
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec, View


@register("tokenizer/points")
class PointTokenizer(nn.Module):
    """Groups of neighbouring points (Point-BERT, Point-MAE, Point-JEPA).

    Farthest-point sampling chooses centres, beginning with each cloud's first point: a random one, since
    view/sample_points draws points in random order. A group is the centre and its nearest points, as offsets from the
    centre, x, y, z of each point in turn, nearest first. Offsets are not rescaled.

    Args:
        facts: the data's facts; none is needed.
        groups: groups of a cloud, which are its tokens.
        size: points of a group, the centre included.
        hidden: first width of the PointNet that embeds a group, see `MiniPointNet`.
        order: of the groups: `chosen`, as farthest-point sampling chose the centres, or `walk`, a greedy walk from each
            centre to the nearest that is left, so that groups in a row are neighbours (Point-JEPA).

    Raises:
        ValueError: for numbers below 1, or another word.
    """

    def __init__(
        self, facts: Mapping[str, Any], *, groups: int = 64, size: int = 32, hidden: int = 128, order: str = "chosen"
    ) -> None:
        super().__init__()
        if order not in ("chosen", "walk"):
            raise ValueError(f"tokenizer.order has to be 'chosen' or 'walk' (got {order!r})")
        if min(groups, size, hidden) < 1:
            raise ValueError(
                "tokenizer.groups, tokenizer.size and tokenizer.hidden have to be at least 1 "
                f"(got {groups}, {size} and {hidden})"
            )
        self.groups, self.size, self.hidden, self.order = groups, size, hidden, order
        self.spec = TokenSpec(3 * size, 3, channels=3, count=groups)

    def embedding(self, dim: int) -> MiniPointNet:
        """A small PointNet over the points of a group."""
        return MiniPointNet(self.size, dim, self.hidden)

    def forward(self, view: View) -> Tokens:
        """Groups of a batch.

        Args:
            view: points (b, n, 3).

        Returns:
            Tokens with raw (b, g, 3 * size) and the centres as pos (b, g, 3), without embeddings.

        Raises:
            ValueError: where clouds have fewer points than there are groups, or than a group has.
        """
        points = view.data if view.data.is_floating_point() else view.data.float()
        b, n = points.shape[:2]
        if n < max(self.groups, self.size):
            raise ValueError(
                f"clouds of {n} points cannot be cut into tokenizer.groups={self.groups} groups of "
                f"tokenizer.size={self.size}: both have to be at most {n}. Raise data.size, or lower the two"
            )
        centres = pick(points, farthest_points(points, self.groups))
        if self.order == "walk":
            centres = pick(centres, nearest_walk(centres))
        members = pick(points, nearest(centres, points, self.size))
        index = torch.arange(self.groups, device=points.device).expand(b, -1)
        raw = (members - centres.unsqueeze(2)).flatten(2)
        return Tokens(raw=raw, pos=centres, index=index, count=self.groups)

    def restore(self, tokens: Tokens, shown: Tensor | None = None) -> list[Shown]:
        """Clouds that the groups make up, for pictures.

        Args:
            tokens: raw (b, g, 3 * size) and pos (b, g, 3).
            shown: groups to show, (b, g) bool; None for all.
        """
        points = tokens.raw.float().unflatten(-1, (-1, 3)) + tokens.pos.unsqueeze(2)
        seen = torch.ones_like(tokens.index, dtype=torch.bool) if shown is None else shown
        seen = seen.unsqueeze(-1).expand(points.shape[:-1])
        return [Shown(cloud, flags) for cloud, flags in zip(points.flatten(1, 2), seen.flatten(1), strict=True)]
