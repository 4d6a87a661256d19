"""Runs as a whole: loggers, loading, foreign checkpoints, bad files, frozen teachers."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

import mmssl
from mmssl.cli import main
from mmssl.config.compose import ConfigError
from mmssl.run.metrics import Table

TINY = [
    "data=sample", "trainer.max_steps=3", "trainer.log_every=1", "data.batch_size=16", "encoder.dim=24", "encoder.depth=1",
    "encoder.heads=2", "objective.pixels.predictor.dim=16", "objective.pixels.predictor.depth=1",
    "objective.pixels.predictor.heads=2", "evaluation.limit=60", "evaluation.protocols.linear=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMSSL_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield mmssl.pretrain("image/mae", TINY)


def test_accumulated_passes_are_the_large_batch(tmp_path, capsys):
    """Rows with missing cells: passes ask for unequal numbers of tokens, in two regions."""
    said = ["data=sample", "data.batch_size=32", "trainer.max_steps=6", "trainer.log_every=1", "evaluation.limit=20"]
    said += ["evaluation.protocols.linear=null", "trainer.accelerator=cpu", f"run.root={tmp_path}"]
    runs = [mmssl.pretrain("tabular/remasker", [*said, f"trainer.accumulate={n}"]) for n in (1, 4)]
    one, other = ([float(row["train/loss"]) for row in Table.read(run.path / "metrics.csv") if "train/loss" in row] for run in runs)  # fmt: skip
    assert len(one) == 6 and one == pytest.approx(other, rel=1e-5)
    assert "not the step of the whole batch" not in capsys.readouterr().err


def test_passes_that_compare_samples_are_told_apart(tmp_path, capsys):
    said = [
        "data=sample",
        "data.batch_size=8",
        "trainer.max_steps=1",
        "evaluation.protocols.linear=null",
        "evaluation.protocols.knn=null",
        "evaluation.limit=40",
        f"run.root={tmp_path}",
    ]
    mmssl.pretrain("tabular/scarf", [*said, "trainer.accumulate=2"])
    told = (
        "trainer.accumulate=2 is not the step of the whole batch: objective.contrast compares samples within one pass"
    )
    assert told in capsys.readouterr().err


def test_load_gives_the_trained_encoder(run):
    encoder = mmssl.load(run.path)
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    tokens = encoder(images)
    assert tokens.x.shape == (2, 64, 24)
    assert tokens.pool("mean").shape == (2, 24)
    state = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)
    torch.testing.assert_close(state["state_dict"]["networks.main.encoder.norm.weight"], encoder.encoder.norm.weight)
    known = {"config", "facts", "fingerprint", "versions", "plugins", "git", "platform", "command"}
    assert known <= set(state["mmssl"]), "a checkpoint alone says where it comes from"


def test_build_trains_nothing():
    module, data = mmssl.build("image/mae", TINY)
    assert sum(p.numel() for p in module.parameters()) > 0
    assert data.facts()["channels"] == 1


def test_a_truncated_checkpoint_is_refused(run, tmp_path):
    whole = (run.path / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="is truncated or no checkpoint"):
        mmssl.load(tmp_path / "cut.ckpt")


def test_a_checkpoint_of_another_architecture_is_refused(run):
    source = run.path / "checkpoints" / "last.ckpt"
    with pytest.raises(ConfigError, match=r"below init_share=0.9.*another architecture"):
        mmssl.pretrain("image/mae", [*TINY, "encoder.dim=32", f"init_from={source}"])


def test_init_from_our_own_checkpoint_loads_everything(run, capsys):
    again = mmssl.pretrain("image/mae", [*TINY, "trainer.max_steps=1", f"init_from={run.path}/checkpoints/last.ckpt"])
    assert "100.0% of" in capsys.readouterr().err
    assert again.summary["status"] == "completed"


def test_init_from_the_official_mae_layout(capsys, tmp_path):
    module, _ = mmssl.build("image/mae", TINY)
    ours = module.state_dict()
    pairs = [
        ("networks.main.encoder.blocks.", "blocks."), ("networks.main.encoder.norm.", "norm."),
        ("networks.main.encoder.prefix", "cls_token"), ("networks.main.embed.proj.bias", "patch_embed.proj.bias"),
        ("objective.pixels.predictor.embed.", "decoder_embed."), ("objective.pixels.predictor.blocks.", "decoder_blocks."),
        ("objective.pixels.predictor.norm.", "decoder_norm."), ("objective.pixels.predictor.head.", "decoder_pred."),
        ("objective.pixels.predictor.mask_token", "mask_token"),
    ]  # fmt: skip
    official = {}
    for key, value in ours.items():
        for prefix, name in pairs:
            if key.startswith(prefix):
                official[name + key.removeprefix(prefix)] = torch.full_like(value, 0.5)
    official["patch_embed.proj.weight"] = torch.full((24, 1, 4, 4), 0.25)
    official["pos_embed"] = torch.zeros(1, 65, 24)
    file = tmp_path / "mae_pretrain.pth"
    torch.save({"model": official, "epoch": 1, "args": argparse.Namespace(lr=1e-3)}, file)
    mmssl.pretrain("image/mae", [*TINY, "trainer.max_steps=1", f"init_from=official/mae:{file}"])
    told = capsys.readouterr().err
    assert "100.0% of" in told
    with pytest.raises(ValueError, match="unknown part 'format/official/mea'"):
        mmssl.pretrain("image/mae", [*TINY, f"init_from=official/mea:{file}"])


def test_a_frozen_teacher_of_ours(run):
    words = [word for word in TINY if "predictor" not in word]
    path = f"objective.mimic.target.network.path={run.path}"
    mimic = mmssl.pretrain("image/mr_mae", [*words, "objective.mimic.target.network._target_=network/run", path])
    assert mimic.summary["status"] == "completed"
    state = torch.load(mimic.path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not [key for key in state if "_network" in key], "a frozen teacher is made again, not saved"


def test_evaluate_a_timm_encoder(capsys, runs):
    words = [
        "evaluate",
        "timm:test_vit",
        "data=sample",
        "data.size=32",
        "tokenizer.patch=4",
        "encoder.pretrained=false",
    ]
    assert main([*words, "evaluation.limit=60", "protocol=knn", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["encoder"] == "timm:test_vit"
    assert 0 <= summary["eval"]["knn"]["value"] <= 1


def test_unlabelled_files_some_of_them_broken(tmp_path, capsys, runs):
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(40):
        pixels = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:02d}.png")
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:60])
    words = [word for word in TINY if word != "data=sample"]
    words += ["data=folder", f"data.root={folder}", "data.size=16", "tokenizer.patch=4"]
    words += ["optim.base_lr=null", "optim.lr=1e-3"]
    assert main(["pretrain", "image/mae", "--json", *words, "data.bad_share=0.1"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["eval"] == {}
    assert summary["skipped"]["count"] == 1
    assert "05.png" in summary["skipped"]["files"][0]
    assert summary["health"]["verdict"] in ("unknown", "warning", "healthy")
    for i in range(10, 30):
        (folder / f"{i:02d}.png").write_bytes(b"no picture")
    assert main(["pretrain", "image/mae", *words]) == 2
    assert "data.bad_share" in capsys.readouterr().err


def test_loggers_by_key(runs):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    done = mmssl.pretrain("image/mae", [*TINY, "logger=[wandb,tensorboard]", "logger.wandb.offline=true"])
    assert list(done.path.rglob("*.wandb")), "W&B writes offline, without an account"
    assert list((done.path / "tensorboard").glob("events.*"))


def test_wandb_works_offline_without_an_account(runs):
    done = mmssl.pretrain("image/mae", [*TINY, "logger=wandb", "logger.wandb.offline=true"])
    assert list(done.path.rglob("*.wandb"))


def test_an_unwritable_place_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["pretrain", "image/mae", *TINY, f"run.root={tmp_path / 'file'}"]) == 2
    assert "run.root: the run directory" in capsys.readouterr().err


def test_embed_writes_the_features_of_a_run(run, tmp_path, capsys):
    out = tmp_path / "features.npz"
    assert main(["embed", str(run.path), f"out={out}", "data=folder", f"data.root={tmp_path / 'pictures'}"]) == 2
    assert "has no 'pictures'" in capsys.readouterr().err
    import numpy as np
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.fromarray(np.full((32, 32), 40 * i, np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    assert (
        main(["embed", str(run.path), f"out={out}", "data=folder", f"data.root={tmp_path / 'pictures'}", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out) == {"verb": "embed", "schema": 1, "file": str(out), "rows": 3, "dim": 24}
    images = torch.arange(3).mul(40).to(torch.uint8).view(3, 1, 1, 1).expand(3, 1, 32, 32)
    with torch.no_grad():
        want = mmssl.load(run.path)(images).pool("mean")
    np.testing.assert_allclose(np.load(out)["x"], want.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs out=FILE"),
        (["out=f.npz", "what=imputd"], "did you mean 'imputed'"),
        (["out=f.npz", "optim.lr=1"], "takes data=..., data.\\* and evaluation.\\*"),
        (["out=f.csv", "what=imputed"], "the modality image has no missing values"),
    ],
)
def test_embed_refuses(run, capsys, words, message):
    assert main(["embed", str(run.path), *words]) == 2
    import re

    assert re.search(message, capsys.readouterr().err)
