"""The command line from outside: what it prints, how fast, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmssl.cli import main

TINY = [
    "data=sample", "trainer.max_steps=4", "trainer.log_every=2", "data.batch_size=16", "encoder.dim=24",
    "encoder.depth=1", "encoder.heads=2", "objective.pixels.predictor.dim=16", "objective.pixels.predictor.depth=1",
    "objective.pixels.predictor.heads=2", "evaluation.limit=120", "evaluation.protocols.linear=null",
]  # fmt: skip


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mmssl.cli", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [["--help"], ["list", "recipes"], ["doc", "masker/random"]])
def test_talking_is_quick_and_imports_no_torch(words):
    code = f"import sys; from mmssl.cli import main; main({words!r}); sys.exit('torch' in sys.modules)"
    start = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    # a limit with room for a busy machine: the contract says one second
    assert time.perf_counter() - start < 3


def test_import_is_light():
    code = "import sys, mmssl; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


REFUSED = [
    (["pretrian", "image/mae"], "did you mean 'pretrain'?"),
    (["pretrain", "image/mea"], "did you mean 'image/mae'"),
    (["pretrain"], "needs a recipe"),
    (["pretrain", "image/mae", "encoder=vit_xl"], "did you mean 'vit_l'?"),
    (["pretrain", "image/mae", "maskr.ratio=0.5"], "did you mean 'masker'?"),
    (
        ["pretrain", "image/mae", "masker.raito=0.5"],
        "masker.raito: masker/random takes no 'raito'; did you mean 'ratio'?",
    ),
    (["pretrain", "image/mae", "masker.ratio=many"], "masker.ratio: masker/random wants float"),
    (["pretrain", "image/mae", "masker.ratio=75"], "did you mean 0.75?"),
    (["pretrain", "image/mae", "masker.ratio=1.0"], "[0, 1)"),
    (["pretrain", "image/mae", "objective.pixels.loss._target_=loss/msee"], "did you mean 'loss/mse'?"),
    (["pretrain", "image/mae", "data=smaple"], "did you mean 'sample'?"),
    (["pretrain", "image/mae", "tokenizer.patch=5"], "tokenizer.patch=5 does not divide data.size=32"),
    (["pretrain", "image/mae", "encoder.heads=5"], "encoder.heads=5 does not divide encoder.dim=128"),
    (["pretrain", "image/mae", "encoder=beit_b"], "corruptor/drop works with encoders that accept"),
    (["pretrain", "image/mae", "data.batch_size=100000"], "data.batch_size"),
    (["pretrain", "image/mae", "optim.base_lr=1e-4"], "Exactly one of optim.lr"),
    (["pretrain", "image/mae", "data=folder"], "data.root"),
    (["pretrain", "image/mae", "--jsn"], "did you mean '--json'?"),
    (["plan", "image/mae", "-m", "data=sample"], "`plan` takes no -m, which is for pretrain"),
    (["pretrain", "image/mae", "--trust"], "`pretrain` takes no --trust, which is for finetune, evaluate, embed"),
    (["evaluate", "no/such/run"], "neither a run's directory"),
    (["list", "maskrs"], "did you mean 'maskers'?"),
    (["doc", "masker/randm"], "did you mean 'masker/random'?"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_nonsense_is_refused_with_what_was_meant(words, message, capsys, runs):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmssl: ")
    assert message in error
    assert "Traceback" not in error
    assert not list(runs.rglob("summary.json")), "a refused run leaves nothing behind"


def test_pretrain_evaluate_report_and_runs(capsys, runs):
    assert main(["pretrain", "image/mae", "--json", *TINY]) == 0
    out = capsys.readouterr().out
    summary = json.loads(out)
    assert out.count("\n") == 1
    assert summary["status"] == "completed"
    assert summary["steps"] == 4
    knn = summary["eval"]["knn"]
    assert {"metric", "value", "ci95", "random_init", "random_init_ci95", "raw_input", "raw_input_ci95"} <= set(knn)
    assert knn["ci95"][0] <= knn["value"] <= knn["ci95"][1]
    (path,) = [file.parent for file in runs.rglob("summary.json")]
    names = {"config.yaml", "environment.json", "data.json", "metrics.csv", "timing.csv", "report.html"}
    assert names <= {file.name for file in path.iterdir()}
    assert json.loads((path / "summary.json").read_text()) == summary

    assert main(["evaluate", str(path), "protocol=knn", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["eval"]["knn"]["value"] == pytest.approx(knn["value"], abs=1e-9)

    assert main(["runs", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [row["recipe"] for row in rows] == ["image/mae"]
    assert main(["report", str(path), f"out={path / 'again.html'}"]) == 0
    assert (path / "again.html").stat().st_size > 10_000


def test_same_seed_gives_the_same_metrics(runs):
    files = []
    for _ in range(2):
        assert main(["pretrain", "image/mae", "--json", *TINY, "trainer.max_steps=6"]) == 0
    files = [file.read_bytes() for file in sorted(runs.rglob("metrics.csv"))]
    assert len(files) == 2
    assert files[0] == files[1]
    assert main(["pretrain", "image/mae", "--json", *TINY, "trainer.max_steps=6", "seed=1"]) == 0
    assert len({file.read_bytes() for file in runs.rglob("metrics.csv")}) == 2


def test_sweep_over_recipes_and_values(capsys, runs):
    words = [
        "pretrain",
        "-m",
        "image/mae,image/crossmae",
        "masker.ratio=0.5,0.75",
        "--json",
        *TINY,
        "trainer.max_steps=2",
    ]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["jobs"]) == 4
    assert {job["status"] for job in result["jobs"]} == {"completed"}
    assert len({job["run"] for job in result["jobs"]}) == 4
    assert json.loads(Path(result["path"], "sweep.json").read_text())["status"] == "completed"
    recipes = {json.loads(file.read_text())["recipe"] for file in runs.rglob("summary.json")}
    assert recipes == {"image/mae", "image/crossmae"}


def test_one_failed_job_does_not_sink_the_sweep(capsys, runs):
    words = ["pretrain", "-m", "image/mae", "tokenizer.patch=5,4", "--json", *TINY, "trainer.max_steps=2"]
    assert main(words) == 1
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert [job["status"] for job in jobs] == ["failed", "completed"]
    assert "does not divide" in jobs[0]["why"]


def test_nan_loss_stops_keeps_the_checkpoint_and_saves_the_batch(capsys, runs):
    words = [
        "pretrain",
        "image/mae",
        "--json",
        *TINY,
        "optim.lr=1e30",
        "trainer.max_steps=20",
        "trainer.checkpoint_every=1",
    ]
    assert main(words) == 1
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["status"] == "diverged"
    assert summary["health"]["verdict"] == "diverged"
    assert "offending_batch.pt" in captured.err and "not finite: the term pixels. The batch" in captured.err
    import torch

    path = next(runs.rglob("summary.json")).parent
    batch = torch.load(path / "offending_batch.pt", weights_only=True)
    assert batch["x"].dtype == torch.uint8
    kept = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(bool(value.isfinite().all()) for value in kept["state_dict"].values())


def test_show_tells_where_values_come_from(capsys):
    assert main(["show", "image/mae", "data=sample", "masker.ratio=0.6", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    origin = shown["origin"]
    assert shown["config"]["masker"]["ratio"] == 0.6
    assert origin["masker.ratio"] == "command line"
    assert origin["encoder.dim"] == "preset"
    assert origin["objective.pixels.loss._target_"] == "recipe"
    assert origin["seed"] == "conf"


def test_preview_draws_a_picture(tmp_path, capsys):
    from PIL import Image

    assert main(["preview", "image/mae", "data=sample", f"out={tmp_path / 'p.png'}"]) == 0
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 200
        assert len(picture.convert("L").getcolors() or []) > 20


def test_bench_reports_numbers(capsys):
    assert main(["bench", "image/mae", "steps=2", "--json", *TINY]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["verb"] == "bench"
    assert row["step_ms"] > 0
    assert row["samples_per_s"] > 0
    assert row["forward_ms"] + row["backward_ms"] + row["optimizer_ms"] > 0


def test_a_reader_that_has_seen_enough_is_no_error():
    """As in `mmssl list recipes | head -1`."""
    with subprocess.Popen(
        [sys.executable, "-m", "mmssl.cli", "list", "recipes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
