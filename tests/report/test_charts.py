import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mmssl.report.charts import Series, decimate, line_chart, log_ticks, ticks
from mmssl.report.intervals import Interval, interval_plot, rounded

SVG = "{http://www.w3.org/2000/svg}"


def series_of(svg):
    """Drawn lines by name: their points in the drawing's units, and the values they carry."""
    found = {}
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        if group.get("data-name") is None:
            continue
        path = group.find(f"{SVG}path")
        stretches = [] if path is None else path.get("d").split("M")[1:]
        points = [[tuple(map(float, pair.split())) for pair in stretch.strip().split("L")] for stretch in stretches]
        found[group.get("data-name")] = (points, [float(y) for y in group.get("data-y").split()])
    return found


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 97, [0, 20, 40, 60, 80]),
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3.1, 4.2, [-2, 0, 2, 4]),
        (0.00012, 0.00058, [0.0002, 0.0003, 0.0004, 0.0005]),
        (1e6, 1.9e6, [1.0e6, 1.2e6, 1.4e6, 1.6e6, 1.8e6]),
        (5, 5, [5]),
    ],
)
def test_ticks(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 2e3, [1, 10, 100, 1000]),
        (1e-12, 2.0, [10.0**e for e in range(-12, 1, 3)]),
        (2, 400, [3, 10, 30, 100, 300]),
        (12, 19, [12, 13, 14, 15, 16, 17, 18, 19]),
    ],
)
def test_log_ticks(low, high, expected):
    got = log_ticks(low, high)
    assert 3 <= len(got) <= 8 and all(low <= value <= high for value in got)
    if expected:
        assert got == pytest.approx(expected)


def test_short_curves_are_not_thinned():
    assert decimate(range(400), range(400)) == (list(range(400)), list(range(400)))


@pytest.mark.parametrize("length", [401, 1000, 54321])
def test_thinning_keeps_ends_extremes_spikes_and_gaps(length):
    rng = np.random.default_rng(length)
    y = rng.normal(size=length)
    y[length // 3], y[length // 2], y[2 * length // 3] = 40, -50, math.nan
    x, thin = decimate(range(length), y.tolist())
    assert len(x) == len(thin) <= 400
    assert (x[0], x[-1]) == (0, length - 1)
    assert x == sorted(set(x))
    assert (np.nanmin(thin), np.nanmax(thin)) == (-50, 40)
    assert sum(map(math.isnan, thin)) == 1
    np.testing.assert_array_equal(thin, y[x])


def test_thinning_draws_the_envelope():
    """In each of 50 windows the thinned curve's range covers at least 0.8 of the full curve's range."""
    y = np.sin(np.arange(20000) / 3.0) * np.linspace(1, 3, 20000)
    x, thin = map(np.array, decimate(range(20000), y.tolist()))
    for start in range(0, 20000, 400):
        inside = thin[(x >= start) & (x < start + 400)]
        assert np.ptp(inside) > 0.8 * np.ptp(y[start : start + 400])


def test_points_lie_where_their_values_say():
    points, values = series_of(line_chart([Series("loss", [0, 5, 10], [1.0, 3.0, 2.0])], "t"))["loss"]
    ((a, b, c),) = points
    assert values == [1, 3, 2]
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.15)
    assert (a[1] - b[1]) == pytest.approx(2 * (a[1] - c[1]), abs=0.2)  # y grows downwards; 3 - 1 = 2 * (2 - 1)
    assert b[1] < c[1] < a[1]


def test_steps_have_whole_ticks():
    root = ET.fromstring(line_chart([Series("s", [1, 2, 4], [10.0, 20.0, 40.0])], "t", width=1120))
    bottom = [text.text for text in root.iter(f"{SVG}text") if text.get("text-anchor") == "middle"]
    assert bottom == ["1", "2", "3", "4", "step"]


def test_log_axis_spaces_ratios_evenly():
    points, _ = series_of(line_chart([Series("s", [0, 1, 2], [1.0, 10.0, 100.0])], "t", log_y=True))["s"]
    heights = [y for _, y in points[0]]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.15)


def test_log_axis_needs_positive_values():
    curve = [Series("s", [0, 1, 2], [0.0, 10.0, 100.0])]
    assert line_chart(curve, "t", log_y=True) == line_chart(curve, "t")


def test_values_that_are_not_finite_leave_a_gap():
    y = [1.0, 2.0, math.nan, 3.0, 4.0, math.inf, 5.0]
    svg = line_chart([Series("s", range(7), y)], "t")
    assert [len(stretch) for stretch in series_of(svg)["s"][0]] == [2, 2]
    circles = [c for c in ET.fromstring(svg).iter(f"{SVG}circle")]
    assert len(circles) == 5  # the lone last value is seen as a dot


def test_nothing_finite_is_said():
    assert "no finite value" in line_chart([Series("s", [0], [math.nan])], "t")
    assert "no finite value" in line_chart([], "t")


@pytest.mark.parametrize("y", [[3.0], [0.0, 0.0], [-1e-9, 1e-9], [1e300, -1e300], [7, 7, 7]])
def test_flat_single_tiny_and_huge_values_are_drawn_inside(y):
    root = ET.fromstring(line_chart([Series("s", range(len(y)), y)], "t"))
    _, _, width, height = map(float, root.get("viewBox").split())
    for circle in root.iter(f"{SVG}circle"):
        assert 0 <= float(circle.get("cx")) <= width and 0 <= float(circle.get("cy")) <= height


def test_many_series_are_told_apart_and_named():
    names = [f"train/term_{i}" for i in range(11)]
    root = ET.fromstring(line_chart([Series(n, [0, 1], [i, i + 1]) for i, n in enumerate(names)], "t"))
    looks = [
        (g.get("class"), g.find(f"{SVG}path").get("stroke-dasharray"))
        for g in root.iter(f"{SVG}g")
        if g.get("data-name")
    ]
    assert len(set(looks)) == 11
    legend = next(g for g in root.iter(f"{SVG}g") if g.get("class") == "legend")
    assert [t.text for t in legend.iter(f"{SVG}title")] == names
    rights = [float(t.get("x")) + 5.5 * len("".join(t.itertext()).split("term")[0]) for t in legend.iter(f"{SVG}text")]
    assert max(rights) <= 360


def test_charts_are_well_formed_whatever_the_names():
    evil = "</svg><script>alert(1)</script> & \"'\x00\ud800"
    for svg in (
        line_chart([Series(evil, [0, 1], [1, 2]), Series("b", [0, 1], [1, 2])], evil, evil, evil),
        interval_plot([(evil, [Interval(evil, 0.5, 0.4, 0.6)])], evil, evil),
    ):
        root = ET.fromstring(svg)
        assert not [element for element in root.iter() if element.tag.endswith("script")]
        assert root.get("role") == "img" and root.get("aria-label")


def test_intervals_lie_where_their_values_say():
    rows = [Interval("run", 0.7, 0.6, 0.9), Interval("random", 0.5)]
    svg = interval_plot([("knn", rows)], "t", "top1")
    root = ET.fromstring(svg)
    run, random = (float(circle.get("cx")) for circle in root.iter(f"{SVG}circle"))
    bar = next(path.get("d") for path in root.iter(f"{SVG}path"))
    low, high = float(bar[1:].split()[0]), float(bar.split("H")[1].split("M")[0])
    unit = (run - random) / 0.2
    assert (run - low) / unit == pytest.approx(0.1, abs=2e-3)
    assert (high - run) / unit == pytest.approx(0.2, abs=2e-3)
    assert len(list(root.iter(f"{SVG}path"))) == 1  # no bar without an interval
    assert "run 0.70 (0.60 to 0.90)" in svg and "random 0.5 (no interval)" in svg


@pytest.mark.parametrize(
    ("value", "span", "expected"),
    [
        (0.71123, (0.7021, 0.7203), ("0.711", "0.702 to 0.720")),
        (-2.5, (-2.9, -2.1), ("−2.50", "−2.90 to −2.10")),
        (1234.4, (1200.0, 1300.0), ("1234", "1200 to 1300")),
        (1.0, (1.0, 1.0), ("1.000", "1.000 to 1.000")),
        (0.25, None, ("0.25", "no interval")),
    ],
)
def test_rounding_follows_the_interval(value, span, expected):
    assert rounded(value, span) == expected
