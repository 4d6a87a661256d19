"""Made-up clouds for `data=sample`: no real set may be passed on, so ten kinds of things are built of parts.

Every number comes from `mmssl.draws` with a fixed seed, so the sample is the same everywhere. Proportions are random
and overlap between the classes, every shape is stretched, turned about the vertical axis (y), cut off on one side and
noisy, so that the histogram of distances alone does not give the class away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mmssl.draws import Draws

POINTS = 1024
_SEED = 2022
_SPARE = 1.35  # points made for each point kept: up to a quarter is cut off

Array = np.ndarray


@dataclass(frozen=True)
class Part:
    """One part of m shapes.

    Args:
        kind: `box`, `round` (a frustum about the y axis with both ends), `shell` (the same without ends), `ellipsoid`
            or `ring` (a torus in the x-y plane).
        centre: (m, 3).
        size: half of the extent along x, y and z, (m, 3); of a ring, its radius, nothing, and that of its tube.
        taper: radius at the top over that at the bottom, of `round` and `shell`, (m,).
        lean: angle about the z axis, (m,).
    """

    kind: str
    centre: Array
    size: Array
    taper: Array
    lean: Array

    def area(self) -> Array:
        """About the surface of each shape's part, (m,): what share of the points it gets."""
        x, y, z = self.size.T
        if self.kind == "box":
            return 8 * (x * y + y * z + z * x)
        if self.kind == "ellipsoid":
            return 4 * math.pi * (((x * y) ** 1.6 + (y * z) ** 1.6 + (z * x) ** 1.6) / 3) ** (1 / 1.6)
        if self.kind == "ring":
            return 4 * math.pi**2 * x * z
        side = 2 * math.pi * np.sqrt((x**2 + z**2) / 2) * (1 + self.taper) * y
        ends = math.pi * x * z * (1 + self.taper**2)
        return side if self.kind == "shell" else side + ends

    def surface(self, row: Array, u: Array) -> Array:
        """One point for each shape named, (q, 3).

        Args:
            row: which shape, (q,).
            u: three uniform numbers for each, (q, 3).
        """
        made = _MAKERS[self.kind](u, self.size[row], self.taper[row])
        cos, sin = np.cos(self.lean[row]), np.sin(self.lean[row])
        turned = np.stack([cos * made[:, 0] - sin * made[:, 1], sin * made[:, 0] + cos * made[:, 1], made[:, 2]], 1)
        return turned + self.centre[row]


def _box(u: Array, size: Array, taper: Array) -> Array:
    x, y, z = size.T
    faces = np.cumsum(np.stack([y * z, z * x, x * y], 1), 1)
    axis = (u[:, :1] * faces[:, 2:] >= faces[:, :2]).sum(1)
    # what is left of the first number, after it chose the axis, chooses the side
    start = np.where(axis == 0, 0.0, np.take_along_axis(faces, np.maximum(axis - 1, 0)[:, None], 1)[:, 0])
    width = np.take_along_axis(faces, axis[:, None], 1)[:, 0] - start
    side = np.where(u[:, 0] * faces[:, 2] - start < width / 2, -1.0, 1.0)
    at = np.arange(len(u))
    point = np.empty_like(u)
    point[at, axis] = side
    point[at, (axis + 1) % 3] = 2 * u[:, 1] - 1
    point[at, (axis + 2) % 3] = 2 * u[:, 2] - 1
    return point * size


def _round(u: Array, size: Array, taper: Array, ends: bool = True) -> Array:
    x, y, z = size.T
    side = 2 * np.sqrt((x**2 + z**2) / 2) * (1 + taper) * y
    top, bottom = x * z * taper**2 * ends, x * z * ends
    place = u[:, 0] * (side + top + bottom)
    angle = 2 * math.pi * u[:, 1]
    up = 2 * u[:, 2] - 1
    height = np.where(place < side, up, np.where(place < side + top, 1.0, -1.0))
    edge = 1 + (taper - 1) * (height + 1) / 2
    radius = np.where(place < side, edge, edge * np.sqrt(u[:, 2]))
    return np.stack([radius * np.cos(angle), height, radius * np.sin(angle)], 1) * size


def _shell(u: Array, size: Array, taper: Array) -> Array:
    return _round(u, size, taper, ends=False)


def _ellipsoid(u: Array, size: Array, taper: Array) -> Array:
    height, angle = 2 * u[:, 0] - 1, 2 * math.pi * u[:, 1]
    flat = np.sqrt(1 - height**2)
    return np.stack([flat * np.cos(angle), height, flat * np.sin(angle)], 1) * size


def _ring(u: Array, size: Array, taper: Array) -> Array:
    around, tube = 2 * math.pi * u[:, 0], 2 * math.pi * u[:, 1]
    radius = size[:, 0] + size[:, 2] * np.cos(tube)
    return np.stack([radius * np.cos(around), radius * np.sin(around), size[:, 2] * np.sin(tube)], 1)


_MAKERS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "box": _box, "round": _round, "shell": _shell, "ellipsoid": _ellipsoid, "ring": _ring,
}  # fmt: skip


class Kit:
    """Builds the parts of m shapes from their random proportions.

    Args:
        u: uniform numbers of each shape, (m, k); every call of `between` uses up one column.
    """

    def __init__(self, u: Array) -> None:
        self.u, self.used, self.parts = u, 0, list[Part]()

    def between(self, low: float, high: float) -> Array:
        """A proportion of each shape, (m,)."""
        self.used += 1
        return low + (high - low) * self.u[:, self.used - 1]

    def add(self, kind: str, centre: tuple[object, ...], size: tuple[object, ...], taper: object = 1.0,
            lean: object = 0.0) -> None:  # fmt: skip
        """Adds a part; numbers stand for all shapes, arrays (m,) for each."""
        m = len(self.u)

        def spread(value: object) -> Array:
            return np.broadcast_to(np.asarray(value, dtype=np.float64), (m,))

        self.parts.append(Part(
            kind, np.stack([spread(v) for v in centre], 1), np.stack([spread(v) for v in size], 1), spread(taper),
            spread(lean),
        ))  # fmt: skip

    def legs(self, x: Array, z: Array, height: Array, thick: Array) -> None:
        """Four legs from y = -height to 0 at (+-x, +-z)."""
        for side in (-1, 1):
            for end in (-1, 1):
                self.add("round", (side * x, -height / 2, end * z), (thick, height / 2, thick))


def _stool(kit: Kit) -> None:
    wide, deep, thick = kit.between(0.35, 0.6), kit.between(0.35, 0.6), kit.between(0.02, 0.08)
    height = kit.between(0.5, 1.2)
    kit.add("round", (0, 0, 0), (wide, thick, deep))
    kit.legs(0.68 * wide, 0.68 * deep, height, kit.between(0.03, 0.06))


def _chair(kit: Kit) -> None:
    wide, deep, thick = kit.between(0.35, 0.55), kit.between(0.35, 0.55), kit.between(0.02, 0.08)
    back, height = kit.between(0.25, 0.6), kit.between(0.4, 0.9)
    kit.add("box", (0, 0, 0), (wide, thick, deep))
    kit.add("box", (0, back, -deep), (wide, back, kit.between(0.02, 0.07)))
    kit.legs(0.85 * wide, 0.85 * deep, height, kit.between(0.03, 0.06))


def _table(kit: Kit) -> None:
    wide, deep, thick = kit.between(0.5, 1.0), kit.between(0.4, 0.7), kit.between(0.02, 0.08)
    kit.add("box", (0, 0, 0), (wide, thick, deep))
    kit.legs(0.88 * wide, 0.88 * deep, kit.between(0.45, 1.0), kit.between(0.03, 0.07))


def _bed(kit: Kit) -> None:
    wide, deep, thick = kit.between(0.35, 0.6), kit.between(0.6, 1.0), kit.between(0.06, 0.16)
    head = kit.between(0.12, 0.4)
    kit.add("box", (0, 0, 0), (wide, thick, deep))
    kit.add("box", (0, head, -deep), (wide, head + thick, kit.between(0.02, 0.06)))
    kit.legs(0.9 * wide, 0.9 * deep, kit.between(0.15, 0.4), kit.between(0.03, 0.06))


def _lamp(kit: Kit) -> None:
    base, pole, shade = kit.between(0.2, 0.45), kit.between(0.35, 0.8), kit.between(0.25, 0.5)
    high = kit.between(0.15, 0.35)
    kit.add("round", (0, -pole, 0), (base, kit.between(0.02, 0.08), base))
    kit.add("round", (0, 0, 0), (0.035, pole, 0.035))
    kit.add("shell", (0, pole, 0), (shade, high, shade), kit.between(0.3, 0.8))


def _bottle(kit: Kit) -> None:
    wide, high, shoulder = kit.between(0.2, 0.4), kit.between(0.35, 0.7), kit.between(0.1, 0.25)
    neck = kit.between(0.25, 0.5)
    long = kit.between(0.1, 0.25)
    kit.add("round", (0, 0, 0), (wide, high, wide))
    kit.add("shell", (0, high + shoulder, 0), (wide, shoulder, wide), neck)
    kit.add("shell", (0, high + 2 * shoulder + long, 0), (neck * wide, long, neck * wide))


def _mug(kit: Kit) -> None:
    wide, high = kit.between(0.3, 0.5), kit.between(0.3, 0.7)
    ring = high * kit.between(0.45, 0.7)
    kit.add("shell", (0, 0, 0), (wide, high, wide), kit.between(0.9, 1.25))
    kit.add("round", (0, -high, 0), (wide, 0.01, wide))
    kit.add("ring", (wide, 0, 0), (ring, 0, kit.between(0.03, 0.07)))


def _plane(kit: Kit) -> None:
    long, thick, span = kit.between(0.7, 1.0), kit.between(0.08, 0.16), kit.between(0.6, 1.0)
    tail = kit.between(0.2, 0.4)
    kit.add("ellipsoid", (0, 0, 0), (long, thick, thick))
    kit.add("box", (kit.between(-0.1, 0.2), 0, 0), (kit.between(0.1, 0.22), 0.015, span))
    kit.add("box", (-0.85 * long, 0, 0), (0.09, 0.015, tail))
    kit.add("box", (-0.85 * long, tail / 2 + thick, 0), (0.09, tail / 2, 0.015))


def _rocket(kit: Kit) -> None:
    wide, high, nose = kit.between(0.12, 0.25), kit.between(0.5, 0.8), kit.between(0.12, 0.3)
    fin, tall = kit.between(0.1, 0.3), kit.between(0.12, 0.3)
    kit.add("round", (0, 0, 0), (wide, high, wide))
    kit.add("shell", (0, high + nose, 0), (wide, nose, wide), 0.05)
    for x, z in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        reach = wide + fin
        size = (fin if x else 0.015, tall, fin if z else 0.015)
        kit.add("box", (x * reach, tall - high, z * reach), size)


def _car(kit: Kit) -> None:
    long, high, wide = kit.between(0.6, 0.95), kit.between(0.12, 0.22), kit.between(0.3, 0.45)
    cabin, roof, wheel = kit.between(0.3, 0.6), kit.between(0.1, 0.22), kit.between(0.12, 0.2)
    kit.add("box", (0, 0, 0), (long, high, wide))
    kit.add("box", (kit.between(-0.2, 0.1), high + roof, 0), (cabin * long, roof, 0.9 * wide))
    for side in (-1, 1):
        for end in (-0.65, 0.65):
            kit.add("ring", (end * long, -high, side * wide), (wheel * 0.7, 0, wheel * 0.3))


_SHAPES: dict[str, Callable[[Kit], None]] = {
    "bed": _bed, "bottle": _bottle, "car": _car, "chair": _chair, "lamp": _lamp, "mug": _mug, "plane": _plane,
    "rocket": _rocket, "stool": _stool, "table": _table,
}  # fmt: skip
CLASSES = tuple(_SHAPES)


def generate(count: int = 1000) -> tuple[Array, Array]:
    """The made-up clouds.

    Args:
        count: how many; cloud i is of class i modulo ten, and the same whatever the count.

    Returns:
        Points (count, 1024, 3) float32 and labels (count,) int64.
    """
    labels = np.arange(count) % len(CLASSES)
    points = np.empty((count, POINTS, 3), dtype=np.float32)
    for label, shape in enumerate(_SHAPES.values()):
        rows = np.flatnonzero(labels == label)
        if len(rows):
            points[rows] = _clouds(shape, Draws.of(_SEED, 0, torch.from_numpy(rows)))
    return points, labels


def _clouds(shape: Callable[[Kit], None], draws: Draws) -> Array:
    """Clouds of one class, (m, 1024, 3)."""
    kit = Kit(draws.named("proportions").uniform(16).double().numpy())
    shape(kit)
    made = int(POINTS * _SPARE)
    area = np.cumsum(np.stack([part.area() for part in kit.parts], 1), 1)
    which = draws.named("part").uniform(made).double().numpy()
    which = (which[:, :, None] * area[:, None, -1:] >= area[:, None, :-1]).sum(-1)
    u = draws.named("surface").uniform(made, 3).double().numpy()
    points = np.empty((len(which), made, 3))
    for i, part in enumerate(kit.parts):
        row, place = np.nonzero(which == i)
        points[row, place] = part.surface(row, u[row, place])
    points = _worn(points, draws)
    # a coarse grid, so that the last digit of a sine does not change the sample between machines
    return (np.round(points * 2048) / 2048).astype(np.float32)


def _worn(points: Array, draws: Draws) -> Array:
    """Stretched, turned about y, cut off on one side and noisy; scaled into the unit sphere."""
    stretch = draws.named("stretch").uniform(1, 3, low=0.75, high=1.25).double().numpy()
    points = (points - points.mean(1, keepdims=True)) * stretch
    angle = draws.named("turn").uniform(1, high=2 * math.pi).double().numpy()
    x, y, z = (points[:, :, axis] for axis in range(3))
    points = np.stack([np.cos(angle) * x + np.sin(angle) * z, y, np.cos(angle) * z - np.sin(angle) * x], -1)
    side = draws.named("side").normal(3).double().numpy()
    height = np.einsum("mnc,mc->mn", points, side / np.linalg.norm(side, axis=1, keepdims=True))
    # the far side is missing: at random between nothing and all the spare points
    rank = np.argsort(np.argsort(height, axis=1), axis=1)
    missing = (draws.named("missing").uniform(1).double().numpy() * (points.shape[1] - POINTS)).astype(np.int64)
    lottery = draws.named("kept").uniform(points.shape[1]).double().numpy()
    kept = np.argsort(lottery + (rank < missing), axis=1)[:, :POINTS]
    points = np.take_along_axis(points, kept[:, :, None], 1)
    points = points + 0.015 * draws.named("noise").normal(POINTS, 3).double().numpy()
    points = points - points.mean(1, keepdims=True)
    return points / np.linalg.norm(points, axis=2).max(1)[:, None, None]
