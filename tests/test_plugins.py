"""A package outside mmssl brings a loss, a modality and a recipe: `tests/plugin`, installed by pip for real."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmssl import registry
from mmssl.config import files

PLUGIN = Path(__file__).parent / "plugin"
SMALL = [
    "data=sample",
    "trainer.max_steps=6",
    "encoder.dim=24",
    "encoder.depth=1",
    "encoder.heads=2",
    "evaluation.limit=60",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder for PYTHONPATH that the package is installed in."""
    folder = tmp_path_factory.mktemp("site")
    words = [
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "-q",
        "--target",
        folder,
        PLUGIN,
    ]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300)
    return folder


def ask(site, *words, runs="."):
    path = os.pathsep.join(filter(None, [str(site or ""), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-m", "mmssl.cli", *words], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": path, "MMSSL_RUNS": str(runs)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(site, tmp_path_factory):
    """A run of the plug-in's recipe."""
    folder = tmp_path_factory.mktemp("runs")
    done = ask(site, "pretrain", "series/mae", "--json", *SMALL, runs=folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("series/mae/*")), json.loads(done.stdout)


def test_recipes_parts_and_choices_are_listed_without_importing_them(site):
    found = json.loads(ask(site, "list", "recipes", "--json").stdout)["recipes"]
    (mine,) = [one for one in found if one["name"] == "series/mae"]
    assert mine["modality"] == "series" and mine["family"] == ["mae"] and "loss/log_cosh" in mine["parts"]
    assert "loss/log_cosh" in ask(site, "list", "losses").stdout
    assert "series" in json.loads(ask(site, "list", "modalities", "--json").stdout)["choices"]
    assert "square near 0" in ask(site, "doc", "loss/log_cosh").stdout
    lines = ask(site, "show", "series/mae", "tokenizer.patch=16").stdout.splitlines()
    assert any(line.startswith("tokenizer.patch: 16") and line.endswith("# command line") for line in lines)


def test_its_modality_trains_and_is_scored_like_our_own(run):
    path, summary = run
    assert summary["status"] == "completed" and summary["recipe"] == "series/mae"
    for protocol in ("knn", "linear"):
        entry = summary["eval"][protocol]
        assert entry["n_train"] == 60 and entry["random_init"] is not None and entry["raw_input"] is not None
    assert json.loads((path / "environment.json").read_text())["plugins"] == {"mmssl-series": "0.3.0"}
    assert (path / "report.html").stat().st_size > 10_000


def test_recipes_may_inherit_across_packages(site, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("# @package _global_\ndefaults: [/recipe/series/mae, _self_]\nmasker: {ratio: 0.5}\n")
    told = json.loads(ask(site, "show", str(mine), "--json").stdout)
    assert told["config"]["masker"]["ratio"] == 0.5 and told["config"]["modality"] == "series"


def test_its_parts_are_refused_for_other_modalities(site):
    told = ask(site, "show", "image/mae", "tokenizer._target_=tokenizer/series", "tokenizer.patch=8")
    assert told.returncode == 2
    assert "tokenizer/series is made for modality 'series', and this run is of modality 'image'" in told.stderr


def test_a_run_says_which_plugin_it_needs(run):
    path, _ = run
    told = ask(None, "evaluate", str(path), "protocol=knn")
    assert told.returncode == 2 and "unknown part" in told.stderr
    assert "was made with mmssl-series 0.3.0; install it: pip install mmssl-series" in told.stderr


def test_the_loss_is_the_logarithm_of_cosh(monkeypatch):
    monkeypatch.syspath_prepend(str(PLUGIN))
    from mmssl_series.losses import log_cosh  # pyright: ignore[reportMissingImports]

    error = torch.linspace(-5, 5, 21, dtype=torch.float64).reshape(3, 7)
    torch.testing.assert_close(log_cosh(error, torch.zeros_like(error)), error.cosh().log().mean(-1))
    assert log_cosh(torch.tensor([[1000.0]]), torch.zeros(1, 1)).isfinite().all()


@pytest.fixture
def point(monkeypatch):
    """Names a package as the only plug-in; what is remembered of plug-ins is forgotten before and after."""
    remembered = [registry.roots, registry.entries, files.folders, files._recipes, files.group_files]

    def forget():
        for function in remembered:
            function.cache_clear()

    def name(package):
        point = importlib.metadata.EntryPoint("mine", package, "mmssl")
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == "mmssl" else [])
        forget()

    yield name
    monkeypatch.undo()
    forget()


def test_a_package_that_is_gone_is_named_and_the_others_work(point):
    point("no_such_package.inner")
    with pytest.warns(
        UserWarning, match=r"plug-in mine names the package 'no_such_package\.inner', which is not there"
    ):
        assert "loss/mse" in registry.names("loss")
    assert "image/mae" in files.recipes()


def test_two_recipes_of_one_name_are_refused(point, tmp_path, monkeypatch):
    folder = tmp_path / "twice" / "experiments" / "image"
    folder.mkdir(parents=True)
    (tmp_path / "twice" / "__init__.py").write_text("")
    (folder / "mae.yaml").write_text("# @package _global_\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    point("twice")
    with pytest.raises(ValueError, match=r"two files are called experiments/image/mae: .*rename one"):
        files.recipes()
