import csv
import hashlib
import json
import re
import xml.etree.ElementTree as ET
from base64 import b64decode, b64encode
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from mmssl.report import html
from mmssl.report.markup import number

VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """Parses strictly: every element is closed in order. Keeps elements, and the text by element."""

    def __init__(self, file):
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.stack, self.elements, self.texts = [], [], []
        self.feed(self.source)
        self.close()
        assert not self.stack, f"not closed: {self.stack}"

    def handle_starttag(self, name, attrs):
        self.elements.append((name, dict(attrs)))
        if name not in VOID:
            self.stack.append(name)

    def handle_endtag(self, name):
        assert self.stack and self.stack.pop() == name, f"</{name}> at {self.getpos()}"

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def all(self, name):
        return [attrs for other, attrs in self.elements if other == name]


def loads(page):
    """Every address that a browser would fetch without being asked."""
    found = [
        v
        for _, attrs in page.elements
        for k, v in attrs.items()
        if k in ("src", "srcset", "data", "poster", "xlink:href")
    ]
    found += [attrs["href"] for name, attrs in page.elements if "href" in attrs and name != "a"]
    return found + re.findall(r"(?:url\(|@import)[^;)]*", page.source)


def test_a_report_is_one_well_formed_file_that_loads_nothing(make_run):
    run = make_run()
    file = html.write(run)
    assert file == run / "report.html"
    page = Page(file)
    assert page.source.startswith("<!DOCTYPE html>")
    assert loads(page) and all(address.startswith("data:image/") for address in loads(page))
    assert all(attrs["href"].startswith("#") for attrs in page.all("a"))
    policy = next(
        attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    script = re.search(r"<script>(.*?)</script>", page.source, re.S)[1]
    assert "default-src 'none'" in policy
    assert f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert not list(run.glob(".*"))  # no draft is left


def test_headings_anchors_and_texts_for_those_who_do_not_see(make_run):
    page = Page(html.write(make_run()))
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs in page.all("a")} <= set(ids)
    assert all(attrs["alt"] for attrs in page.all("img"))
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in page.all("svg"))
    assert all(attrs["aria-label"] for _, attrs in page.elements if attrs.get("role") == "region")


def test_inline_drawings_and_pictures_are_whole(make_run):
    run = make_run()
    page = Page(html.write(run))
    drawings = re.findall(r"<svg.*?</svg>", page.source, re.S)
    assert len(drawings) >= 10
    for drawing in drawings:
        ET.fromstring(drawing)
    inside = [b64decode(attrs["src"].partition("base64,")[2]) for attrs in page.all("img")]
    names = ["views.png", "reconstructions.png", "neighbours.png", "embedding.svg"]
    assert inside == [(run / "pictures" / name).read_bytes() for name in names]


def test_facts_scores_and_settings_are_shown(make_run):
    page = Page(html.write(make_run()))
    for said in (
        "image/mae", "completed", "health: healthy", "cifar10", "2026-11-20 14:02 UTC", "5 min 11 s", "140.2 ms",
        "2.1 %",
        "812 MB",
        "1.031 → 0.412", "88.13", "mmssl pretrain image/mae data=cifar10", "0.711 0.702 to 0.720",
        "0.347 0.338 to 0.356", "corruption is applied after decoding", "rmse, lower is better",
        "2 samples could not be read",
        "cat/0031.png", "precision: bf16-mixed", "versions.torch", "2.11.0", "0.491, 0.482, 0.447",
    ):  # fmt: skip
        assert said in page.text, said
    assert "knn (top1): The whole interval lies above both baselines." in page.text
    assert "angle/ridge (rmse): The whole interval lies below (better) both baselines." in page.text


FILES = ["summary.json", "environment.json", "data.json", "config.yaml", "metrics.csv", "timing.csv", "pictures"]


@pytest.mark.parametrize("content", [None, "", "{", "[]", "null", "\x00\xff", "a,b\n1,2\n"])
@pytest.mark.parametrize("name", FILES)
def test_missing_and_broken_files_are_said_never_raised(make_run, name, content):
    run = make_run()
    path = run / name
    path.rename(run / "elsewhere")
    if content is not None:
        path.write_text(content)
    page = Page(html.write(run))
    if content is None and name != "pictures":
        assert f"{name} is not there." in page.text
    if content == "{" and name.endswith("json"):
        assert f"{name} could not be read: it is not valid JSON" in page.text


def test_a_run_that_has_just_begun(tmp_path):
    page = Page(html.write(tmp_path))
    for said in (
        "running",
        "not written its summary",
        "no scores",
        "no curves yet",
        "no pictures",
        "config.yaml is not there",
    ):
        assert said in page.text, said


def test_odd_shapes_inside_summary_are_survived(make_run):
    odd = {"eval": {"knn": {"value": "x", "ci95": [1], "random_init": {}}, "b": 3}, "train": [], "throughput": 7}
    odd |= {"health": "?", "wall_s": "long", "steps": None}
    assert "There is no score." in Page(html.write(make_run(change=odd))).text


def test_a_run_that_goes_on_shows_its_newest_rows(make_run):
    """Its summary is from before the first step."""
    change = {
        "status": "running",
        "steps": 0,
        "planned_steps": 2000,
        "wall_s": 0.0,
        "eval": {},
        "throughput": {"step_ms": None},
    }
    page = Page(html.write(make_run(change=change | {"train": {"loss": None, "first_loss": None}})))
    last = next(csv.DictReader(reversed_rows(make_run("second"))))
    assert f"Loss {number(float(last['train/loss']))}" in page.text
    assert "Steps 1 200 of 2 000" in page.text
    assert "Wall time" not in page.text


def reversed_rows(run):
    """metrics.csv with its last row first."""
    head, *rows = (run / "metrics.csv").read_text().splitlines()
    return [head, *rows[::-1]]


def test_no_labels_and_a_failed_run_are_said(make_run):
    page = Page(
        html.write(make_run(change={"eval": {}, "status": "failed", "why": "ValueError: data.root: no such folder"}))
    )
    assert "the data has no labels" in page.text
    assert "ended with an error" in page.text and "ValueError: data.root: no such folder" in page.text


EVIL = "</pre></script><script>alert(1)</script>\"'><img src=http://evil/x onerror=alert(1)>"


def poison(value):
    if isinstance(value, dict):
        return {f"{key}{EVIL}" if key in ("knn", "cifar10_c/knn") else key: poison(item) for key, item in value.items()}
    return (
        [poison(item) for item in value]
        if isinstance(value, list)
        else value + EVIL
        if isinstance(value, str)
        else value
    )


def test_names_cannot_become_markup(make_run):
    """Every text of a run's directory holds markup; the page has the elements it has without."""
    clean, dirty = make_run("20261120-1-a"), make_run("20261120-2-b")
    for name in ("summary", "environment", "data", "pictures/pictures"):
        file = dirty / f"{name}.json"
        file.write_text(json.dumps(poison(json.loads(file.read_text()))))
    summary = json.loads((dirty / "summary.json").read_text())
    summary |= {"status": "completed", "why": EVIL}
    summary["health"] |= {"verdict": "healthy", "causes": [EVIL, {"cause": EVIL, "remedy": EVIL}]}
    (dirty / "summary.json").write_text(json.dumps(summary))
    (dirty / "config.yaml").write_text(f"a: {EVIL}\n")
    metrics = dirty / "metrics.csv"
    quoted = '"train/pixels' + EVIL.replace('"', '""') + '"'
    metrics.write_text(metrics.read_text().replace("train/pixels", quoted).replace("val/rankme", "val/<b>"))
    for file in (html.write(dirty), html.write([clean, dirty], dirty / "both.html")):
        page = Page(file)
        assert page.source.count("<script") == 1 == len(page.all("script"))
        assert all(attrs["src"].startswith("data:image/") for attrs in page.all("img"))
        assert not [key for _, attrs in page.elements for key in attrs if key.startswith("on")]
        assert not page.all("b") or all(not attrs for attrs in page.all("b"))
        assert "alert(1)" in page.text  # the names are shown, as text
        for drawing in re.findall(r"<svg.*?</svg>", page.source, re.S):
            assert "{http://www.w3.org/2000/svg}script" not in {e.tag for e in ET.fromstring(drawing).iter()}


def test_several_runs_stand_side_by_side(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slow = {"health": {"verdict": "collapsed", "causes": [{"cause": "std fell", "remedy": "lower lr"}]}}
    runs = [make_run("20261120-1-aaa"), make_run("20261120-2-bbb", slow, seed=1, lag=2, ratio=0.6)]
    (runs[1] / "data.json").write_text(json.dumps({"name": "cifar10", "fingerprint": "other"}))
    file = html.write(runs)
    assert file.resolve() == tmp_path / "report.html"
    page = Page(file)
    for said in ("2 runs", "image/mae aaa", "image/mae bbb", "fingerprints differ", "masker.ratio 0.75 0.6", "seed 0 1",
                 "2 of 17 settings differ", "(collapsed): std fell Remedy: lower lr"):  # fmt: skip
        assert said in page.text, said
    drawing = next(svg for svg in re.findall(r"<svg.*?</svg>", page.source, re.S) if 'aria-label="train/loss:' in svg)
    names = [g.get("data-name") for g in ET.fromstring(drawing).iter() if g.get("data-name")]
    assert names == ["image/mae aaa", "image/mae bbb"]


def test_a_missing_directory_and_no_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run's directory"):
        html.write(tmp_path / "nope")
    with pytest.raises(ValueError, match="no run was given"):
        html.write([])


def test_a_failed_write_keeps_the_old_report(make_run, monkeypatch):
    run = make_run()
    (run / "report.html").write_text("old")
    monkeypatch.setattr("mmssl.report.markup.os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        html.write(run)
    assert (run / "report.html").read_text() == "old" and not list(run.glob(".*"))
