"""What a decoded sample may be besides a tensor (n, 3): a mesh, or a cloud some of whose points are hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl.draws import Draws


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh, from which a view samples points.

    Args:
        vertices: (v, 3) float32.
        faces: places of each triangle's corners, (f, 3) int64.
    """

    vertices: Tensor
    faces: Tensor


@dataclass(frozen=True)
class Shown:
    """A cloud to look at, some of whose points are hidden.

    Args:
        points: (n, 3), hidden ones included, so that pictures with and without them have one frame.
        seen: which points are shown, (n,) bool.
    """

    points: Tensor
    seen: Tensor


def surface_points(mesh: Mesh, draws: Draws, count: int) -> Tensor:
    """Points of a mesh's surface, uniform by area, (count, 3) float32.

    Args:
        mesh: at least one face has to have an area.
        draws: one stream.
        count: how many.
    """
    corner, second, third = mesh.vertices[mesh.faces].unbind(1)
    area = torch.linalg.cross(second - corner, third - corner).norm(dim=-1).double()
    u, v, w = draws.uniform(3, count)[0].unbind(0)
    total = area.cumsum(0)
    face = torch.searchsorted(total, u.double() * total[-1], right=True).clamp(max=len(area) - 1)
    # the square root makes barycentric coordinates uniform over the triangle (Osada et al. 2002)
    corner, second, third = corner[face], second[face], third[face]
    return corner + v.sqrt().unsqueeze(-1) * (second - corner + w.unsqueeze(-1) * (third - second))
