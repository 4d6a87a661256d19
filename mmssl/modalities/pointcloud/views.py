"""Views of clouds. Each is called as (sample, draws of that sample) and returns points (n, 3) float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.data.source import BadSample
from mmssl.draws import Draws
from mmssl.modalities.pointcloud.mesh import Mesh, surface_points
from mmssl.registry import register

_AXES = {"x": 0, "y": 1, "z": 2}


@register("view/sample_points")
class SamplePoints:
    """So many points: of a cloud at random without replacement, of a mesh at random by area.

    The order is random too, so whatever starts at the first point starts at a random one. Evaluation draws the same
    points in every run.

    Args:
        count: how many points.

    Raises:
        ValueError: for a count below 1.
    """

    def __init__(self, *, count: int) -> None:
        if count < 1:
            raise ValueError(f"view/sample_points: count has to be at least 1 (got {count})")
        self.count = count

    def __call__(self, sample: Tensor | Mesh, draws: Draws) -> Tensor:
        """Returns (count, 3); a cloud of fewer points is a bad sample: skipped, counted and listed."""
        draws = draws.named("sample_points")
        if isinstance(sample, Mesh):
            return surface_points(sample, draws, self.count)
        if len(sample) < self.count:
            raise BadSample(
                f"a cloud has {len(sample)} points, and view/sample_points wants {self.count}; set data.size to the "
                "size of the smallest cloud, or remove it"
            )
        # numbers for this sample alone: clouds of a batch may differ in size
        return sample[Draws(draws.keys).order(len(sample))[0, : self.count]]


@register("view/normalize_cloud")
class NormalizeCloud:
    """The mean moves to the origin and the farthest point to distance 1. Nothing is drawn.

    Clouds whose points all coincide are only moved.
    """

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (n, 3) inside the unit sphere."""
        centred = sample - sample.mean(0)
        largest = centred.norm(dim=1).max()
        return centred / largest if largest > 0 else centred


@register("view/scale_translate")
class ScaleTranslate:
    """Each axis is scaled and shifted by numbers of its own (Point-MAE, after PointNet++ and KPConv's training).

    Args:
        scale: smallest and largest factor of an axis, drawn uniformly.
        shift: the shift along an axis lies in [-shift, shift].
    """

    def __init__(self, *, scale: Sequence[float] = (2 / 3, 3 / 2), shift: float = 0.2) -> None:
        low, high = scale
        if not 0 < low <= high or shift < 0:
            raise ValueError(
                "view/scale_translate: scale has to be two positive numbers in ascending order and shift at least 0 "
                f"(got {list(scale)} and {shift})"
            )
        self.scale, self.shift = (low, high), shift

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (n, 3)."""
        draws = draws.named("scale_translate")
        factor = draws.named("scale").uniform(3, low=self.scale[0], high=self.scale[1])[0]
        return sample * factor + draws.named("shift").uniform(3, low=-self.shift, high=self.shift)[0]


@register("view/rotate")
class Rotate:
    """A rotation about one axis through the origin by a random angle.

    Args:
        axis: x, y or z; y points upwards in ShapeNet and in the sample, z in ModelNet40.
        degrees: the angle lies in [-degrees, degrees].
    """

    def __init__(self, *, axis: str = "y", degrees: float = 180.0) -> None:
        if axis not in _AXES:
            raise ValueError(f"view/rotate: axis has to be x, y or z (got {axis!r})")
        self.axis, self.degrees = _AXES[axis], degrees

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (n, 3)."""
        limit = math.radians(self.degrees)
        angle = float(draws.named("rotate").uniform(1, low=-limit, high=limit))
        first, second = (self.axis + 1) % 3, (self.axis + 2) % 3
        turned = sample.clone()
        turned[:, first] = math.cos(angle) * sample[:, first] - math.sin(angle) * sample[:, second]
        turned[:, second] = math.sin(angle) * sample[:, first] + math.cos(angle) * sample[:, second]
        return turned


@register("view/jitter")
class Jitter:
    """Every coordinate moves by normal noise, cut off (PointNet).

    Args:
        std: standard deviation.
        limit: largest shift of a coordinate.
    """

    def __init__(self, *, std: float = 0.01, limit: float = 0.05) -> None:
        if std < 0 or limit < 0:
            raise ValueError(f"view/jitter: std and limit have to be at least 0 (got {std} and {limit})")
        self.std, self.limit = std, limit

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (n, 3)."""
        noise = draws.named("jitter").normal(*sample.shape)[0]
        return sample + torch.clamp(noise * self.std, -self.limit, self.limit)
