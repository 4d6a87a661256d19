"""Settings and fixtures of all tests. Imports no torch: collecting the tests of one file stays quick."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Read when torch is first imported, also by child processes.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
# No test reaches the network.
os.environ.update(WANDB_MODE="offline", HF_HUB_OFFLINE="1")

REQUIRE = "MMSSL_REQUIRE"


def _slurm() -> str | None:
    if not shutil.which("sbatch") or not shutil.which("sinfo"):
        return "sbatch or sinfo is not on PATH"
    answer = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=60)
    return None if answer.returncode == 0 and answer.stdout.strip() else f"sinfo fails: {answer.stderr.strip()}"


def _browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return None if any(shutil.which(name) for name in names) else f"none of {', '.join(names)} is on PATH"


def _fsdp() -> str | None:
    from torch import distributed

    if not distributed.is_available():
        return "this torch was built without torch.distributed"
    return None if distributed.is_gloo_available() else "this torch was built without gloo"


def _export() -> str | None:
    names = ("onnx", "onnxruntime", "onnxscript", "transformers")
    lacking = [name for name in names if importlib.util.find_spec(name) is None]
    return f"{', '.join(lacking)} not installed: pip install 'mmssl[export]'" if lacking else None


# Each says what is missing, or None.
TOOLS: dict[str, Callable[[], str | None]] = {
    "slurm": _slurm, "browser": _browser, "fsdp": _fsdp, "export": _export,
}  # fmt: skip


@functools.cache
def missing(tool: str) -> str | None:
    return TOOLS[tool]()


def demanded() -> set[str]:
    """Tools that have to be there, from a comma list: a test that needs one may then not be skipped."""
    return {name.strip() for name in os.environ.get(REQUIRE, "").split(",") if name.strip()}


def pytest_configure() -> None:
    if unknown := demanded() - TOOLS.keys():
        raise pytest.UsageError(f"{REQUIRE} names {', '.join(sorted(unknown))}; there is: {', '.join(TOOLS)}")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes make no names: a file made while collecting may hold the second it was made in, and every process collects."""
    return argname if isinstance(val, bytes) else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("requires"):
        for tool in marker.args:
            if tool not in TOOLS:
                pytest.fail(f"requires({tool!r}): there is {', '.join(TOOLS)}", pytrace=False)
            if not (reason := missing(tool)):
                continue
            if tool in demanded():
                pytest.fail(f"{tool} is demanded by {REQUIRE}, but {reason}", pytrace=False)
            pytest.skip(f"needs {tool}: {reason}")


@pytest.fixture(scope="session", autouse=True)
def _folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs and caches go to a temporary folder, also those of child processes and of fixtures of any scope."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MMSSL_RUNS", "MMSSL_CACHE"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that this test's runs go to."""
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("MMSSL_RUNS", str(folder))
    return folder
