"""The wheel holds everything, and works away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = {"mmssl": "mmssl", "conf": "mmssl/conf", "experiments": "mmssl/experiments", "hydra_plugins": "hydra_plugins"}


def run(*command, **options):
    """The finished process; a failure shows what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    run(*pip, "-w", folder, ROOT)
    (built,) = folder.glob("mmssl-*.whl")
    return built


@pytest.fixture(scope="module")
def away(wheel, tmp_path_factory):
    """A fresh environment with the wheel in it, which sees the libraries of this one, but not its mmssl.

    The wheel's folder comes first on the path. The folders behind it are named in a .pth file; Python does not read
    .pth files in those again, and an editable install is nothing but such a file.
    """
    folder = tmp_path_factory.mktemp("away")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", show).stdout.strip())
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "libraries.pth").write_text("\n".join(libraries))
    return python


def outside(folder):
    """The environment of a user: no trace of the checkout or of this test run, but a folder for runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "MMSSL"))}
    return {**kept, "MMSSL_RUNS": str(folder / "runs"), "MMSSL_CACHE": str(folder / "cache")}


def test_holds_every_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = {name.split(".dist-info/")[1] for name in archive.namelist() if ".dist-info/" in name}
    wanted = {
        f"{place}/{file.relative_to(ROOT / source).as_posix()}"
        for source, place in SHIPPED.items()
        for file in (ROOT / source).rglob("*")
        if file.is_file() and not any(part.startswith((".", "__pycache__")) for part in file.relative_to(ROOT).parts)
    }
    assert held == wanted
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= info
    assert any(name.startswith("mmssl/conf/") and name.endswith(".yaml") for name in held)
    assert "mmssl/experiments/image/mae.yaml" in held


def test_is_the_one_imported(away, tmp_path):
    code = "import mmssl; print(mmssl.__file__)"
    found = Path(run(away, "-c", code, cwd=tmp_path, env=outside(tmp_path)).stdout.strip())
    assert found.is_relative_to(away.parent.parent)
    assert ROOT not in found.parents


def test_lists_and_trains_away_from_the_checkout(away, tmp_path):
    mmssl, env = away.with_name("mmssl"), outside(tmp_path)
    assert "image/mae" in run(mmssl, "list", "recipes", cwd=tmp_path, env=env).stdout
    command = ["pretrain", "image/mae", "data=sample", "trainer.max_steps=2", "evaluation.limit=200", "--json"]
    printed = json.loads(run(mmssl, *command, cwd=tmp_path, env=env).stdout)
    (written,) = (tmp_path / "runs" / "image" / "mae").glob("*/summary.json")
    assert json.loads(written.read_text()) == printed
    assert (printed["recipe"], printed["status"], printed["steps"]) == ("image/mae", "completed", 2)
    code = "from hydra.core.plugins import Plugins; from hydra.plugins.launcher import Launcher; print(Plugins.instance().discover(Launcher))"
    assert "SlurmLauncher" in run(away, "-c", code, cwd=tmp_path, env=env).stdout
