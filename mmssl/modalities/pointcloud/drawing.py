"""Pictures of points: a perspective scatter, nearer points darker and in front, on white."""

from __future__ import annotations

import math

import numpy as np

SIDE = 160
"""Side of a picture in pixels."""

_FINE = 2  # drawn larger and averaged down, so that points are round
_TURN, _TILT = math.radians(35), math.radians(25)  # of the camera about the vertical axis (y), and above the horizon
_DISTANCE = 4.0  # of the camera, in radii of the cloud
_NEAR, _FAR, _HIDDEN = np.array([18, 58, 120.0]), np.array([160, 200, 232.0]), np.array([228, 228, 228.0])


def draw(points: np.ndarray, seen: np.ndarray | None = None, side: int = SIDE) -> np.ndarray:
    """Draws a cloud, y upwards.

    Args:
        points: (n, 3); all of them together give the frame.
        seen: (n,) bool; others are light grey and behind. None shows all.
        side: width and height in pixels.

    Returns:
        (side, side, 3) uint8.
    """
    seen = np.ones(len(points), dtype=bool) if seen is None else seen
    x, y, depth = _project(points)
    size = side * _FINE
    column, row = size / 2 + x * size * 0.46, size / 2 - y * size * 0.46
    shade = np.clip((depth + 1) / 2, 0, 1)[:, None]
    colour = np.where(seen[:, None], _FAR + (_NEAR - _FAR) * shade, _HIDDEN)
    order = np.lexsort((depth, seen))  # hidden first, then from far to near: what comes last covers
    radius = 0.011 * size
    reach = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
    down, right = (grid.ravel() for grid in np.meshgrid(reach, reach, indexing="ij"))
    disc = down**2 + right**2 <= radius**2
    rows = np.clip(np.rint(row[order])[:, None] + down[disc], 0, size - 1).astype(np.int64)
    columns = np.clip(np.rint(column[order])[:, None] + right[disc], 0, size - 1).astype(np.int64)
    sheet = np.full((size, size, 3), 255.0)
    sheet[rows.ravel(), columns.ravel()] = np.repeat(colour[order], int(disc.sum()), axis=0)
    return sheet.reshape(side, _FINE, side, _FINE, 3).mean((1, 3)).round().astype(np.uint8)


def _project(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Horizontal and vertical place in [-1, 1] and depth towards the camera in [-1, 1]."""
    points = points.astype(np.float64)
    points = points - (points.min(0) + points.max(0)) / 2
    x, y, z = (points / max(float(np.linalg.norm(points, axis=1).max()), 1e-12)).T
    x, z = x * math.cos(_TURN) - z * math.sin(_TURN), x * math.sin(_TURN) + z * math.cos(_TURN)
    y, z = y * math.cos(_TILT) - z * math.sin(_TILT), y * math.sin(_TILT) + z * math.cos(_TILT)
    nearer = _DISTANCE / (_DISTANCE - z)
    return x * nearer * 0.97, y * nearer * 0.97, z
