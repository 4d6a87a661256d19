import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mmssl.report import figures, scores, sections
from mmssl.report.charts import Series
from mmssl.report.markup import duration, number, tag, text
from mmssl.report.reading import Column, Run, read


def score(value, span, **baselines):
    entry = {"metric": "top1", "value": value, "ci95": span}
    for name, (point, interval) in baselines.items():
        entry |= {name: point, f"{name}_ci95": interval}
    return Run(path=None, summary={"eval": {"knn": entry}}).scores[0]


@pytest.mark.parametrize(
    ("random", "raw", "expected"),
    [
        ((0.3, [0.2, 0.4]), (0.3, [0.2, 0.49]), "The whole interval lies above both baselines."),
        ((0.8, [0.7, 0.9]), (0.8, [0.61, 0.9]), "The whole interval lies below both baselines."),
        ((0.3, [0.2, 0.4]), (0.8, [0.7, 0.9]), "The interval lies above random init and lies below raw input."),
        (
            (0.3, [0.2, 0.4]), (0.45, [0.4, 0.5]),
            "The interval lies above random init and overlaps that of raw input; an overlap alone shows no difference.",
        ),
        (
            (0.3, None), (0.55, None),
            "The interval lies above random init and overlaps that of raw input; an overlap alone shows no difference.",
        ),
        ((0.3, [0.2, 0.4]), (None, None), "The interval lies above random init."),
        ((None, None), (None, None), "There is no baseline to compare it with."),
    ],
)  # fmt: skip
def test_words_on_the_baselines(random, raw, expected):
    """The run's own interval is [0.5, 0.6]."""
    assert scores.words(score(0.55, [0.5, 0.6], random_init=random, raw_input=raw)) == expected


def test_words_without_an_interval_or_a_value():
    both = {"random_init": (0.3, [0.2, 0.4]), "raw_input": (0.3, [0.2, 0.4])}
    assert scores.words(score(0.5, None, **both)).startswith("There is no interval")
    assert scores.words(score(None, None, **both)) == "There is no top1."
    assert "all 3 baselines" in scores.words(score(0.5, [0.49, 0.51], raw_input_unsmoothed=(0.1, [0.1, 0.2]), **both))


def test_numbers_under_a_figure_are_the_values():
    lines = [Series("a,b", [0, 1, 2], [0.1, 0.2, 1 / 3]), Series("c", [1, 5], [float("nan"), 7])]
    content, shown, total = figures.table(lines)
    assert (shown, total) == (4, 4)
    rows = list(csv.reader(io.StringIO(content)))
    assert rows == [
        ["step", "a,b", "c"],
        ["0", "0.1", ""],
        ["1", "0.2", "nan"],
        ["2", "0.333333333", ""],
        ["5", "", "7"],
    ]
    content, shown, total = figures.table([Series("a", range(2500), range(2500))])
    assert (shown, total) == (834, 2500) and content.splitlines()[2] == "3,3"


def test_columns_are_grouped_without_knowing_their_names():
    names = [
        "train/loss",
        "train/wobble",
        "val/knn",
        "val/linear",
        "val/rankme",
        "val/novel",
        "lr",
        "grad/a",
        "grad/b",
        "deep/er/x",
    ]
    columns = {name: Column(name, (0.0,), (float(i),)) for i, name in enumerate(names)}
    times = {name: Column(name, (0.0,), (1.0,)) for name in ("step_ms", "data_ms", "samples_per_s")}
    run = Run(None, {"eval": {"knn": {"value": 1}, "other/linear": {"value": 1}}}, metrics=columns, timing=times)
    groups = [tuple(column.name for column in figure.columns) for figure in figures.figures(run)]
    assert groups == [
        ("train/loss", "train/wobble"), ("val/knn", "val/linear"), ("val/rankme",), ("val/novel",), ("lr",),
        ("grad/a", "grad/b"), ("deep/er/x",), ("step_ms", "data_ms"), ("samples_per_s",),
    ]  # fmt: skip


def test_reading_metrics_skips_empty_cells_and_a_row_cut_short(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss,val/knn\n0,0,1.5,\n10,0,nan,0.5\n20,1,oops,0.6\n30,1")
    run = read(tmp_path)
    assert set(run.metrics) == {"train/loss", "val/knn"}
    loss = run.metrics["train/loss"]
    assert loss.x == (0, 10) and loss.y[0] == 1.5 and loss.y[1] != loss.y[1]
    assert run.metrics["val/knn"] == Column("val/knn", (10, 20), (0.5, 0.6))
    assert "metrics.csv: 1 cell is not a number and left out." in run.notes


def test_causes_and_remedies():
    health = {"causes": [{"cause": "std fell", "remedy": "lower lr"}, "rank is 1"], "remedies": ["add views", "ask"]}
    assert list(sections.findings(health)) == [("std fell", "lower lr"), ("rank is 1", "add views"), ("", "ask")]
    assert sections.finding("std fell", "lower lr") == "std fell Remedy: lower lr"


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (None, "It is not recorded"),
        ({"count": 0, "files": []}, "No sample was skipped."),
        ({"count": 1, "files": ["a"]}, "1 sample could not be read and took no part.</p>"),
        ({"count": 5, "files": ["a", "b"]}, "The first 2 are listed."),
        ({"count": 5}, "5 samples could not be read and took no part.</p>"),
    ],
)
def test_skipped_files(block, expected):
    assert expected in sections.skipped(Run(None, {"skipped": block}))


@pytest.mark.parametrize(
    ("data", "config", "expected"),
    [
        ({"name": "cifar10"}, "data: {source: {_target_: source/folder}}", "cifar10"),
        ({}, "data: {source: {_target_: source/folder, root: /d/x}}", "folder · /d/x"),
        ({}, "data: {root: /d/x}", "/d/x"),
        ({}, "data: sample", "sample"),
        ({}, "data: [", None),
        ({}, "", None),
    ],
)
def test_data_name(data, config, expected):
    assert sections.data_name(Run(None, data=data, config=config)) == expected


@pytest.mark.parametrize(
    ("summary", "environment", "name", "expected"),
    [
        ({}, {"started": "2026-11-21T05:21:52+0000"}, "x", "2026-11-21 05:21 UTC"),
        ({"started": "2026-11-21T05:21:52+0200"}, {"started": "2020-01-01"}, "x", "2026-11-21 05:21 UTC+0200"),
        ({"started": "yesterday"}, {}, "x", "yesterday"),
        ({}, {}, "20261121-052152-910747", "2026-11-21 05:21"),
        ({}, {}, "my-run", None),
    ],
)
def test_date(summary, environment, name, expected):
    assert sections.date(Run(Path("runs") / name, summary, environment)) == expected


@pytest.mark.parametrize(
    ("status", "verdict", "colour"),
    [
        ("completed", "healthy", "good"),
        ("completed", "warning", "warn"),
        ("failed", "healthy", "bad"),
        ("completed", "collapsed", "bad"),
        ("running", "healthy", "unknown"),
    ],
)
def test_the_first_card_is_as_bad_as_the_worse_of_status_and_health(status, verdict, colour):
    card = sections.verdict(Run(Path("x"), {"status": status, "health": {"verdict": verdict}}))
    assert card.startswith(f'<div class="card verdict {colour}">')


def test_online_probes_are_known_from_the_configuration():
    columns = {name: Column(name, (0,), (1.0,)) for name in ("val/knn", "val/rankme")}
    run = Run(None, config="evaluation: {protocols: {knn: {}, linear: {}}}", metrics=columns)
    assert [figure.title for figure in figures.figures(run)] == ["Online probes", "val/rankme"]


def test_a_term_that_is_the_loss_is_said_not_drawn():
    names = {"train/loss": (1.0, 2.0), "train/pixels": (1.0, 2.0), "train/other": (0.0, 0.0)}
    run = Run(None, metrics={name: Column(name, (0, 1), y) for name, y in names.items()})
    (figure,) = figures.figures(run)
    assert [column.name for column in figure.columns] == ["train/loss", "train/other"]
    assert figure.note == "train/pixels is the same as train/loss."


def test_tags_escape_all_but_markup():
    assert tag("p", "a<b", tag("b", "&"), None, class_='x"y', hidden=True, id=None) == (
        '<p class="x&quot;y" hidden="">a&lt;b<b>&amp;</b></p>'
    )
    assert text("\x00\x1b") == "\ufffd\ufffd"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (1200, "1\u2009200"), (3.0, "3"), ("x", "x"), (0.12344, "0.1234"), (-0.5, "−0.5"), (1e-7, "1e−7"),
     (float("nan"), "not a number"), (float("-inf"), "−infinite")],
)  # fmt: skip
def test_number(value, expected):
    assert number(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "–"),
        (0.4, "0.4 s"),
        (42.4, "42 s"),
        (311.0, "5 min 11 s"),
        (3600, "1 h"),
        (12000, "3 h 20 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_duration(seconds, expected):
    assert duration(seconds) == expected


def test_paired_differences_decide_where_there_are_any(tmp_path):
    both = {"random_init": (0.4, [0.3, 0.5]), "raw_input": (0.5, [0.42, 0.58])}
    told = replace(
        score(0.55, [0.48, 0.62], **both), differences={"random_init": (0.1, 0.2), "raw_input": (-0.01, 0.1)}
    )
    assert scores.words(told) == (
        "Better than random init, within noise of raw input, by the paired difference over the same test samples."
    )
    lower = replace(told, higher_is_better=False)
    assert scores.words(lower).startswith("Within noise of raw input, worse than random init, by")


def test_further_metrics_and_points_of_a_curve_are_scores_of_their_own(tmp_path):
    point = {"metric": "top1", "value": 0.3, "ci95": [0.2, 0.4], "random_init": 0.1, "random_init_ci95": [0.0, 0.2],
             "random_init_difference_ci95": [0.1, 0.3], "at": 0.1}  # fmt: skip
    entry = point | {"also": {"ari": point | {"metric": "ari"}}, "curve": [point]}
    (tmp_path / "summary.json").write_text(json.dumps({"eval": {"probe": entry}}))
    found = read(tmp_path).scores
    assert [(one.protocol, one.metric) for one in found] == [
        ("probe", "top1"), ("probe ari", "ari"), ("probe at 0.1", "top1"),
    ]  # fmt: skip
    assert all(set(one.baselines) == {"random_init", "raw_input"} for one in found)
    assert found[0].differences == {"random_init": (0.1, 0.3)}
