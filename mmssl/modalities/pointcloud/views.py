"""Views of clouds. Each is called as (sample, draws of that sample) and returns points (n, 3) float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmssl.data.segments import unmoved
from mmssl.data.source import BadSample
from mmssl.draws import Draws
from mmssl.modalities.pointcloud.mesh import Mesh, surface_points
from mmssl.registry import register

_AXES = {"x": 0, "y": 1, "z": 2, "any": -1}


@register("view/sample_points")
class SamplePoints:
    """So many points: of a cloud at random without replacement, of a mesh at random by area.

    The order is random too, so whatever starts at the first point starts at a random one. Evaluation draws the same
    points in every run.

    Args:
        count: how many points.
        short: what becomes of clouds of fewer points: `skip`, they are bad samples: replaced, counted and listed; or
            `repeat`, all their points come, and random ones again and again.

    Raises:
        ValueError: for a count below 1, or another word.
    """

    def __init__(self, *, count: int, short: str = "skip") -> None:
        if count < 1:
            raise ValueError(f"view/sample_points: count has to be at least 1 (got {count})")
        if short not in ("skip", "repeat"):
            raise ValueError(f"view/sample_points: short has to be 'skip' or 'repeat' (got {short!r})")
        self.count, self.short = count, short

    def __call__(self, sample: Tensor | Mesh, draws: Draws) -> Tensor:
        """Returns (count, 3)."""
        if isinstance(sample, Mesh):
            return surface_points(sample, draws.named("sample_points"), self.count)
        return sample[self._places(len(sample), draws)]

    def segments(self, classes: Tensor, sample: Tensor, draws: Draws) -> Tensor:
        """Classes (count,) of the same points in the same order."""
        return classes[self._places(len(sample), draws)]

    def _places(self, points: int, draws: Draws) -> Tensor:
        draws = draws.named("sample_points")
        places = torch.arange(points)
        if points < self.count and self.short == "repeat" and points:
            more = Draws(draws.named("again").keys).integers(0, points, self.count - points)[0]
            places = torch.cat([places, more])
        if len(places) < self.count:
            raise BadSample(
                f"a cloud has {points} points, and view/sample_points wants {self.count}; set data.size to the "
                "size of the smallest cloud, remove it, or say short=repeat"
            )
        # numbers for this sample alone: clouds of a batch may differ in size
        return places[Draws(draws.keys).order(len(places))[0, : self.count]]


@register("view/normalize_cloud")
class NormalizeCloud:
    """The mean moves to the origin and the farthest point to distance 1. Nothing is drawn.

    Clouds whose points all coincide are only moved.
    """

    segments = unmoved

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

    segments = unmoved

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (n, 3)."""
        draws = draws.named("scale_translate")
        factor = draws.named("scale").uniform(3, low=self.scale[0], high=self.scale[1])[0]
        return sample * factor + draws.named("shift").uniform(3, low=-self.shift, high=self.shift)[0]


@register("view/rotate")
class Rotate:
    """A rotation about one axis through the origin by a random angle.

    Args:
        axis: x, y or z; y points upwards in ShapeNet and in the sample, z in ModelNet40. `any` draws one, uniform over
            all directions.
        degrees: the angle lies in [-degrees, degrees].
    """

    def __init__(self, *, axis: str = "y", degrees: float = 180.0) -> None:
        if axis not in _AXES:
            raise ValueError(f"view/rotate: axis has to be x, y, z or any (got {axis!r})")
        self.axis, self.degrees = _AXES[axis], degrees

    segments = unmoved

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (n, 3)."""
        limit = math.radians(self.degrees)
        angle = float(draws.named("rotate").uniform(1, low=-limit, high=limit))
        if self.axis < 0:
            return self._about(sample, draws.named("axis").normal(3)[0], angle)
        first, second = (self.axis + 1) % 3, (self.axis + 2) % 3
        turned = sample.clone()
        turned[:, first] = math.cos(angle) * sample[:, first] - math.sin(angle) * sample[:, second]
        turned[:, second] = math.sin(angle) * sample[:, first] + math.cos(angle) * sample[:, second]
        return turned

    @staticmethod
    def _about(sample: Tensor, axis: Tensor, angle: float) -> Tensor:
        """Rodrigues' rotation of points about a direction."""
        axis = (axis / axis.norm().clamp(min=1e-12)).to(sample.dtype).expand_as(sample)
        along = axis * (sample * axis).sum(-1, keepdim=True) * (1 - math.cos(angle))
        return sample * math.cos(angle) + torch.linalg.cross(axis, sample) * math.sin(angle) + along


@register("view/crop_cloud")
class CropCloud:
    """The part of a cloud around a random one of its points: so many points nearest to it.

    Fewer points come out than went in; put view/sample_points behind.

    Args:
        share: smallest and largest share of the points that stay, drawn uniformly; at least one point stays.
    """

    def __init__(self, *, share: Sequence[float] = (0.5, 1.0)) -> None:
        low, high = share
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"view/crop_cloud: share has to be two ascending shares in (0, 1] (got {[low, high]})")
        self.share = (low, high)

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (m, 3), in the order of the cloud."""
        return sample[self._places(sample, draws)]

    def segments(self, classes: Tensor, sample: Tensor, draws: Draws) -> Tensor:
        """Classes (m,) of the points that stay."""
        return classes[self._places(sample, draws)]

    def _places(self, sample: Tensor, draws: Draws) -> Tensor:
        low, high = self.share
        size, middle = draws.named("crop_cloud").uniform(2)[0].tolist()
        count = max(1, round(len(sample) * (low + (high - low) * size)))
        distance = (sample - sample[int(middle * len(sample))]).square().sum(-1)
        return torch.argsort(distance, stable=True)[:count].sort().values


@register("view/drop_points")
class DropPoints:
    """A random share of the points goes; random ones that stay take their places (after PointNet++'s point dropout).

    PointNet++ puts the first point into all of these places, which would leave neighbours of that point only it.

    Args:
        most: the largest share; the share is drawn uniformly in [0, most]. At least one point stays.
    """

    def __init__(self, *, most: float = 0.875) -> None:
        if not 0.0 <= most < 1.0:
            raise ValueError(f"view/drop_points: most is a share and has to be in [0, 1) (got {most:g})")
        self.most = most

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (n, 3)."""
        return sample[self._places(len(sample), draws)]

    def segments(self, classes: Tensor, sample: Tensor, draws: Draws) -> Tensor:
        """Classes (n,) of the points that are in each place."""
        return classes[self._places(len(sample), draws)]

    def _places(self, n: int, draws: Draws) -> Tensor:
        draws = draws.named("drop_points")
        share = self.most * float(draws.named("share").uniform(1))
        kept = min(n, max(1, n - int(n * share)))
        # numbers for this sample alone: clouds of a batch may differ in size
        order = Draws(draws.named("order").keys).order(n)[0]
        again = Draws(draws.named("again").keys).integers(0, kept, n)[0]
        source = torch.arange(n)
        source[order[kept:]] = order[again[kept:]]
        return source


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

    segments = unmoved

    def __call__(self, sample: Tensor, draws: Draws) -> Tensor:
        """Returns (n, 3)."""
        noise = draws.named("jitter").normal(*sample.shape)[0]
        return sample + torch.clamp(noise * self.std, -self.limit, self.limit)
