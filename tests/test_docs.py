"""Every command and every snippet of the README and the docs is run, page by page, as a reader would run it.

Sizes are cut down behind the reader's words; data are made from the shipped sets. What needs a cluster, a network or
minutes stands in ELSEWHERE with the test that runs it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mmssl
from mmssl import cli
from mmssl.config.files import recipes

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    *sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md") if "results" not in file.parts),
]
BLOCK = re.compile(r"^```(sh|bash|python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Beginnings of commands that cannot run here, and where what they promise is tested.
ELSEWHERE = {
    "make": "continuous integration runs the targets",
    "git clone": "continuous integration begins so",
    "pip install": "tests/test_plugins.py installs the package; extras are pyproject.toml's",
    ". .venv": "a shell's own",
    "cp ": "tests/slurm",
    "sbatch": "tests/slurm",
    "scancel": "tests/slurm",
    "wandb sync": "tests/test_loggers.py",
    "...": "keys behind a command of the same page",
}
PARTIAL = {  # words that make a command one of a cluster or of the network
    "hydra/launcher": "tests/slurm, tests/test_sweep.py", "hydra/sweeper": "tests/test_sweep.py", "s3://": "tests/data/test_shards.py",
    "https://": "tests/data/test_shards.py", "runs/sweeps": "tests/test_sweep.py", "=DIR": "tests/data, with files of their layout",
    "trainer.devices=2": "tests/test_launch.py", "shards/train-": "tests/data/test_shards.py",
    "data.root=set": "tests/data/test_shards.py", "series/mae": "tests/test_plugins.py", "timm:vit_small_patch16_224": "weights from the network; tests/evaluation, tests/test_finetune.py",
}  # fmt: skip
LESS = ["evaluation.limit=60", "evaluation.protocols.linear.max_iter=3", "evaluation.protocols.linear.l2=[0.1]"]
FEW = ["trainer.max_steps=2", "data.workers=0", "trainer.accelerator=cpu", *LESS]
SMALL = {
    "pretrain": ["data.batch_size=8", "encoder.dim=24", "encoder.depth=1", "encoder.heads=2", *FEW],
    "finetune": ["data.batch_size=8", *FEW],
    "evaluate": LESS,
    "resume": ["trainer.max_steps=4"],
}
LEFT = {"graph": ("data.", "encoder."), "timm:": ("encoder.",)}  # what does not apply


def commands(text):
    """Commands of a block, comments cut off, continued lines joined; several stand in a line behind wide gaps."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s{3,}(?=mmssl )", line.strip()):
            if words := shlex.split(part, comments=True):
                yield words


def elsewhere(words):
    said = " ".join(words)
    return any(said.startswith(begin) for begin in ELSEWHERE) or any(one in said for one in PARTIAL)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A working directory with a reader's own files in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMSSL_RUNS", "runs")
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    pretrain = mmssl.pretrain
    monkeypatch.setattr(
        mmssl, "pretrain", lambda *said: pretrain(said[0], [*said[1], *smaller(["pretrain", said[0], *said[1]])])
    )
    make(tmp_path)
    return tmp_path


def make(folder):
    import soundfile
    from PIL import Image

    generator = np.random.default_rng(0)
    for k in range(48):
        kind = ("cats", "dogs")[k % 2]
        for name in ("photos", "masks", "videos", "recordings", "scans"):
            (folder / name / kind).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / kind / f"{k}.png")
        Image.fromarray(pixels[:, :, 0] // 128).save(folder / "masks" / kind / f"{k}.png")
        np.savez(
            folder / "videos" / kind / f"{k}.npz",
            frames=generator.integers(0, 256, (40, 48, 48, 3), dtype=np.uint8),
            fps=10.0,
        )
        soundfile.write(folder / "recordings" / kind / f"{k}.wav", generator.normal(size=8000) * 0.1, 8000)
        np.save(folder / "scans" / kind / f"{k}.npy", generator.normal(size=(1200, 3)).astype(np.float32))
    (folder / "network").mkdir()
    edges = generator.integers(0, 60, (2, 200))
    np.save(folder / "network" / "edge_index.npy", np.concatenate([edges, edges[::-1]], 1))
    np.save(folder / "network" / "x.npy", generator.normal(size=(60, 12)).astype(np.float32))
    np.save(folder / "network" / "y.npy", generator.integers(0, 3, 60))
    rows = [f"{age},{'' if age % 7 == 0 else age * 2},{'abc'[age % 3]},{age % 2}" for age in range(20, 90)]
    (folder / "patients.csv").write_text("\n".join(["age,pressure,ward,ill", *rows]) + "\n")


def newest(recipe=None):
    """The newest run, of a recipe; a page may begin with a run that the reader has."""
    found = sorted(Path("runs").glob(f"{recipe or '*/*'}/*/summary.json"), key=lambda file: file.stat().st_mtime)
    found = [file for file in found if recipe or file.parts[1] not in ("finetune", "evaluate", "sweeps")]
    if not found:
        run(["mmssl", "pretrain", recipe or "image/mae", "data=sample"])
        return newest(recipe)
    return str(found[-1].parent)


def as_here(word):
    if word in ("RUN", "RUN_A", "RUN_B"):
        return newest()
    example = re.match(r"runs/(\w+/\w+)/\d{8}-\d{6}-[0-9a-f]{6}$", word)
    return newest(example[1]) if example else word


def smaller(words):
    """What cuts a command's size down, as far as the reader does not say it."""
    said = {word.partition("=")[0] for word in words}
    left = [
        prefix
        for word in words
        for begin, prefixes in LEFT.items()
        if word.startswith((begin, f"runs/{begin}"))
        for prefix in prefixes
    ]
    left += ["encoder."] if "encoder" in said else []
    folder = any(word.startswith("image/") for word in words) and "data=sample" not in words
    small = ["data.size=32"] if folder else []
    return [
        w
        for w in [*SMALL.get(words[0], []), *small]
        if w.partition("=")[0] not in said and not w.startswith(tuple(left))
    ]


def run(words):
    """One command of mmssl, in this process."""
    assert words[0] == "mmssl", f"a command that is neither run nor in ELSEWHERE: {shlex.join(words)}"
    words = [as_here(word) for word in words[1:]]
    if "-m" in words:  # the first job of a sweep; tests/test_sweep.py runs sweeps
        words = [re.sub(r"^([^{}\[\]]*?),.*", r"\1", word) for word in words if word != "-m"]
    told, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(wrong):
        status = cli.main([*words, *smaller(words)])
    # a run of two steps may end as anything but refused; a machine may have faults
    fine = (0, 1) if words[0] in ("pretrain", "resume", "finetune", "doctor") else (0,)
    assert status in fine, f"{shlex.join(words)}\n{wrong.getvalue()[-3000:]}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_snippets_run(page, desk):
    blocks = BLOCK.findall((ROOT / page).read_text())
    space: dict[str, object] = {"images": torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)}
    for kind, text in blocks:
        if kind == "yaml":
            (desk / "mine.yaml").write_text(text)
        elif kind == "python":
            exec(compile(here(text), page, "exec"), space)
        else:
            for words in commands(text):
                if not elsewhere(words):
                    run(words)


def here(text):
    return re.sub(r'"(runs/\w+/\w+/\d{8}-\d{6}-[0-9a-f]{6})"', lambda m: repr(as_here(m[1])), text)


def test_what_is_not_run_is_still_known(monkeypatch):
    """Every verb that a page names is one, and nothing stands in ELSEWHERE that no page says."""
    said = [
        words
        for page in PAGES
        for kind, text in BLOCK.findall((ROOT / page).read_text())
        if kind in ("sh", "bash")
        for words in commands(text)
    ]
    assert all(words[1] in cli.VERBS for words in said if words[0] == "mmssl" and len(words) > 1)
    lines = [" ".join(words) for words in said]
    assert [begin for begin in ELSEWHERE if not any(line.startswith(begin) for line in lines)] == []
    assert [word for word in PARTIAL if not any(word in line for line in lines)] == []


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"], cwd=ROOT,
        capture_output=True, text=True, timeout=300, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "site" / "reference" / "recipes" / "index.html").read_text()
    assert all(f"<code>{name}</code>" in table for name in recipes())
    for name in ("masker/random", "loss/mse", "protocol/linear"):
        kind = name.partition("/")[0]
        assert f'id="{name.replace("/", "-")}"' in (tmp_path / "site" / "reference" / kind / "index.html").read_text()
