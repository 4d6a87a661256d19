"""Features on a plane: a projection, and a map of it as an SVG that stands on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmssl.report.markup import Markup, number, tag

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MOST_POINTS = 2000
"""Points beyond this are thinned evenly: more would hide each other."""

_WIDTH, _SIDE = 420, 340
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b")
_DARK = ("#56b4e9", "#f0803c", "#2fc79b", "#dd9fc4", "#e69f00", "#2f8fd0", "#b0b0b0")
# Shapes of about equal area around (0, 0); after seven colours the next shape begins, so 28 classes are told apart.
_SHAPES = (
    "M-2.8 0a2.8 2.8 0 1 0 5.6 0a2.8 2.8 0 1 0-5.6 0z",
    "M-2.5-2.5h5v5h-5z",
    "M0-3.4L3.2 2.3H-3.2z",
    "M0-3.5L3.5 0L0 3.5L-3.5 0z",
)
_STYLE = (
    "text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',sans-serif;fill:#59616c}"
    ".frame{fill:none;stroke:#dcdedb}path{fill-opacity:.72}.none{fill:#9a9a9a}"
    + "".join(f".c{i}{{fill:{colour}}}" for i, colour in enumerate(_LIGHT))
    + "@media(prefers-color-scheme:dark){text{fill:#a2abb6}.frame{stroke:#353b44}"
    + "".join(f".c{i}{{fill:{colour}}}" for i, colour in enumerate(_DARK))
    + "}"
)


def project(features: ArrayLike) -> NDArray[np.float64]:
    """The first two principal components of the features.

    Deterministic: each axis points to where its largest loading (in absolute value) is positive. A feature space of
    one dimension, and a single sample, give zeros for what is not there.

    Args:
        features: (n, d) finite numbers.

    Returns:
        (n, 2).

    Raises:
        ValueError: for another shape, no samples, or values that are not finite.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"features must be (n, d) with at least one sample and one dimension, got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(
            "features hold values that are not finite: the encoder has diverged, or its input is not clean"
        )
    x = x - x.mean(0)
    axes = np.linalg.svd(x, full_matrices=False)[2][:2]
    axes = axes * np.where(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1) < 0, -1.0, 1.0)
    xy = x @ axes.T
    return np.pad(xy, ((0, 0), (0, 2 - xy.shape[1])))


def embedding_map(
    xy: ArrayLike, labels: Sequence[int] | None = None, class_names: Sequence[str] | None = None
) -> Markup:
    """A scatter plot of points, coloured and shaped by class, for light and dark.

    Args:
        xy: (n, 2) coordinates, such as those of `project`; points that are not finite are left out.
        labels: the class of each point, -1 where it has none; by default no point has one.
        class_names: names of the classes; their numbers by default.

    Raises:
        ValueError: for another shape, or another number of labels.
    """
    points = np.asarray(xy, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"xy must be (n, 2), got {points.shape}")
    classes = np.full(len(points), -1) if labels is None else np.asarray(labels, np.int64)
    if classes.shape != points.shape[:1]:
        raise ValueError(f"labels must hold one class for each of {len(points)} points, got {classes.shape}")
    keep = np.isfinite(points).all(1)
    points, classes = points[keep], classes[keep]
    total = len(points)
    chosen = np.unique(np.linspace(0, total - 1, min(total, MOST_POINTS)).round().astype(int)) if total else slice(0)
    points, classes = points[chosen], classes[chosen]
    kinds = sorted(set(classes.tolist()))
    said = (
        f"Map of {number(len(points))} of {number(total)} points" if len(points) < total else f"Map of {total} points"
    )
    said += f" of {len([kind for kind in kinds if kind >= 0])} classes" if kinds and kinds[-1] >= 0 else ""
    names = [_name(kind, class_names) for kind in kinds]
    legend, height = _legend(kinds, names) if kinds != [-1] else ([], 0)
    return tag(
        "svg", tag("title", said), tag("style", Markup(_STYLE)),
        tag("rect", x=1, y=1, width=_WIDTH - 2, height=_SIDE - 2, rx=8, class_="frame"),
        *_dots(points, classes, kinds), *legend,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_WIDTH} {_SIDE + height}", width=_WIDTH,
        height=_SIDE + height, role="img", aria_label=said,
    )  # fmt: skip


def _name(kind: int, names: Sequence[str] | None) -> str:
    if kind < 0:
        return "no label"
    return str(names[kind]) if names is not None and kind < len(names) else str(kind)


def _look(kind: int) -> tuple[str, str]:
    """Style class and shape of a class of points."""
    if kind < 0:
        return "none", _SHAPES[0]
    return f"c{kind % len(_LIGHT)}", _SHAPES[kind // len(_LIGHT) % len(_SHAPES)]


def _dots(points: NDArray[np.float64], classes: NDArray[np.int64], kinds: Sequence[int]) -> list[Markup]:
    """All points at one scale for both axes, in their own order so that no class lies on top of the others."""
    if not len(points):
        return [tag("text", "No point to show.", x=20, y=32)]
    low, high = points.min(0), points.max(0)
    scale = min((_WIDTH - 40) / max(high[0] - low[0], 1e-12), (_SIDE - 40) / max(high[1] - low[1], 1e-12))
    places = (points - (low + high) / 2) * scale * [1, -1] + [_WIDTH / 2, _SIDE / 2]
    looks = {kind: _look(kind) for kind in kinds}
    drawn = zip(places, (looks[kind] for kind in classes.tolist()), strict=True)
    return [
        tag("path", d=shape, class_=style, transform=f"translate({x:.1f} {y:.1f})") for (x, y), (style, shape) in drawn
    ]


def _legend(kinds: Sequence[int], names: Sequence[str]) -> tuple[list[Markup], int]:
    """A legend of at most 40 classes below the map, and its height."""
    parts, x, y = [], 6.0, _SIDE + 24
    for i, (kind, name) in enumerate(zip(kinds, names, strict=True)):
        last = i == 40
        short = f"and {len(kinds) - 40} more" if last else name if len(name) <= 28 else name[:27] + "…"
        needs = 16 + 7.4 * len(short) + 16
        if x > 6 and x + needs > _WIDTH:
            x, y = 6.0, y + 22
        style, shape = _look(kind)
        if not last:
            parts.append(tag("path", d=shape, class_=style, transform=f"translate({x + 4:.1f} {y - 4}) scale(1.5)"))
        parts.append(tag("text", short, x=f"{x + 14:.1f}", y=y))
        x += needs
        if last:
            break
    return parts, int(y - _SIDE + 12)
