"""Checkpoints: what is written whole, what is refused, and what a foreign file fills."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from pathlib import Path

import pytest
import torch

import mmssl
from mmssl.config.compose import ConfigError
from mmssl.run import checkpoints
from mmssl.run.checkpoints import SCHEMA, fill, init_from, ours, read, save
from tests.small import VIT, batch, module

CONTENT = {
    "state_dict": {"a": torch.arange(6.0).reshape(2, 3)},
    "mmssl": {"schema": 1, "config": {"seed": 0}, "list": [1, "b", None]},
}


class Evil:
    """Would run code when a careless loader reads it."""

    def __reduce__(self):
        return os.mkdir, ("hacked",)


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path):
    save(CONTENT, tmp_path / "last.ckpt")
    found = read(tmp_path / "last.ckpt")
    assert torch.equal(found["state_dict"]["a"], CONTENT["state_dict"]["a"]) and found["mmssl"] == CONTENT["mmssl"]
    assert ours(found) == CONTENT["mmssl"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["mmssl"]["schema"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file(CONTENT["state_dict"], tmp_path / "a.safetensors")
    assert torch.equal(read(tmp_path / "a.safetensors")["a"], CONTENT["state_dict"]["a"])


@pytest.mark.parametrize("failing", ["torch.save", "os.fsync", "os.replace"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, failing):
    save(CONTENT, tmp_path / "last.ckpt")
    before = (tmp_path / "last.ckpt").read_bytes()

    def broken(*args):
        if failing == "torch.save":
            Path(args[1]).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(failing, broken)
    with pytest.raises(ConfigError, match=r"disk full.*The one before is intact"):
        save({"new": torch.zeros(3)}, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_save_replaces_in_one_step(tmp_path, monkeypatch):
    """At the moment the name changes hands the new file is whole and on disk, and the old one still there."""
    save({"old": torch.zeros(1)}, tmp_path / "last.ckpt")
    replace, synced, seen = os.replace, [], []
    monkeypatch.setattr("os.fsync", lambda fd: synced.append(fd))

    def watch(source, target):
        seen.append((set(read(source)), set(read(target)), len(synced)))
        replace(source, target)

    monkeypatch.setattr("os.replace", watch)
    save({"new": torch.zeros(1)}, tmp_path / "last.ckpt")
    assert seen == [({"new"}, {"old"}, 1)] and set(read(tmp_path / "last.ckpt")) == {"new"}


def test_a_missing_file_is_answered_with_a_near_name(tmp_path):
    save(CONTENT, tmp_path / "last.ckpt")
    with pytest.raises(ConfigError, match=r"there is no checkpoint .*lsat\.ckpt; did you mean 'last\.ckpt'\?"):
        read(tmp_path / "lsat.ckpt")
    with pytest.raises(ConfigError, match=r"there is no checkpoint .*gone.*last\.ckpt"):
        read(tmp_path / "gone" / "last.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    save({"state_dict": {"a": torch.randn(100, 100)}}, tmp_path / "whole.ckpt")
    content = (tmp_path / "whole.ckpt").read_bytes()
    file = tmp_path / "cut.ckpt"
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        ConfigError, match=rf"cut\.ckpt \({int(share * len(content))} bytes\) is truncated or no checkpoint"
    ):
        read(file)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    for name, content in (("a.ckpt", b"just some text\n" * 9), ("b.ckpt", b"<html></html>"), ("c.ckpt", bytes(100))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=re.escape(name)):
            read(tmp_path / name)


def test_truncated_safetensors_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.randn(50, 50)}, tmp_path / "a.safetensors")
    file = tmp_path / "b.safetensors"
    file.write_bytes((tmp_path / "a.safetensors").read_bytes()[:500])
    with pytest.raises(ConfigError, match=r"b\.safetensors \(500 bytes\) is truncated or no checkpoint"):
        read(file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_a_pickled_class_is_not_run(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.ckpt"
    if how == "pickle":
        file.write_bytes(pickle.dumps({"a": Evil()}))
    else:
        torch.save({"a": torch.zeros(2), "b": Evil()}, file, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(
        ConfigError, match=r"evil\.ckpt holds more than tensors and plain containers and could run code"
    ):
        read(file)
    assert not (tmp_path / "hacked").exists()


def test_a_foreign_file_needs_its_format_named(tmp_path):
    torch.save({"model": {"a": torch.zeros(2)}}, tmp_path / "mae.pth")
    with pytest.raises(
        ConfigError, match=r"mae\.pth was not written by mmssl\. Name its format, for instance official/mae:FILE"
    ):
        init_from(module(), str(tmp_path / "mae.pth"), 0.9)
    with pytest.raises(
        ValueError, match=r"init_from: unknown part 'format/official/mea'; did you mean 'format/official/mae'"
    ):
        init_from(module(), f"official/mea:{tmp_path / 'mae.pth'}", 0.9)


def test_a_file_of_a_newer_layout_is_refused(tmp_path):
    own = {"schema": SCHEMA + 1, "versions": {"mmssl": "9.0.0"}}
    assert ours({"mmssl": own | {"schema": SCHEMA}})["versions"] == {"mmssl": "9.0.0"}
    with pytest.raises(
        ConfigError, match=r"a\.ckpt was written by a newer mmssl \(layout 2, .* update mmssl to 9\.0\.0"
    ):
        ours({"mmssl": own}, tmp_path / "a.ckpt")


# filling


def test_fill_loads_what_fits_and_says_how_much():
    first, second = module(seed=0), module(seed=1)
    state = {name: value for name, value in first.state_dict().items() if "predictor.blocks" not in name}
    state |= {"extra": torch.zeros(3), "objective.pixels.predictor.head.bias": torch.zeros(7)}
    report = fill(second, state, 0.5, "FILE")
    total = sum(p.numel() for p in second.parameters())
    left_out = [n for n, _ in first.named_parameters() if "predictor.blocks" in n or n.endswith("predictor.head.bias")]
    loaded = total - sum(p.numel() for n, p in first.named_parameters() if n in left_out)
    assert report.startswith(
        f"FILE: {len(state) - 2} of {len(state)} tensors loaded, {loaded / total:.1%} of {total:,} parameters"
    )
    assert left_out[0] in report
    for (name, mine), theirs in zip(second.named_parameters(), first.parameters(), strict=True):
        assert torch.equal(mine, theirs) == (name not in left_out or mine.ndim == 1), name


def test_fill_of_everything_names_nothing():
    assert fill(module(seed=1), module(seed=0).state_dict(), 1.0, "FILE").endswith("of the encoder's 31,680")


def test_fill_refuses_too_little():
    part = module()
    before = {name: value.clone() for name, value in part.state_dict().items()}
    other = module(encoder=VIT | {"dim": 48}).state_dict()
    with pytest.raises(ConfigError) as error:
        fill(part, other, 0.9, "FILE")
    message = str(error.value)
    assert message.startswith("init_from: FILE: ") and "below init_share=0.9" in message
    assert "networks.main.embed.proj.weight (48, 192) for (32, 192)" in message and "lower init_share" in message
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())
    with pytest.raises(ConfigError, match=r"0 of 1 tensors loaded, 0\.0%"):
        fill(part, {"nothing": torch.zeros(1)}, 0.1, "FILE")


def test_init_from_a_checkpoint_of_ours(tmp_path, capsys):
    first, second = module(seed=0), module(seed=1)
    save({"state_dict": first.state_dict(), "mmssl": {"schema": checkpoints.SCHEMA}}, tmp_path / "last.ckpt")
    init_from(second, str(tmp_path / "last.ckpt"), 1.0)
    for mine, theirs in zip(second.parameters(), first.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    captured = capsys.readouterr()
    assert "100.0% of" in captured.err and not captured.out


def official(part):
    """The weights of a module in the layout of the official MAE."""
    rules = [
        ("networks.main.encoder.prefix", "cls_token"), ("networks.main.encoder.", ""), ("networks.main.embed.", "patch_embed."),
        ("objective.pixels.predictor.mask_token", "mask_token"), ("objective.pixels.predictor.embed", "decoder_embed"),
        ("objective.pixels.predictor.blocks", "decoder_blocks"), ("objective.pixels.predictor.norm", "decoder_norm"),
        ("objective.pixels.predictor.head", "decoder_pred"),
    ]  # fmt: skip
    found = {"pos_embed": torch.zeros(1, 17, 32), "decoder_pos_embed": torch.zeros(1, 17, 32)}
    for name, value in part.named_parameters():
        for ours_name, theirs in rules:
            if name.startswith(ours_name):
                found[theirs + name.removeprefix(ours_name)] = value.detach().clone()
                break
    weight = found["patch_embed.proj.weight"]
    found["patch_embed.proj.weight"] = weight.reshape(-1, 8, 8, 3).permute(0, 3, 1, 2).contiguous()
    return found


def as_saved_by_the_official_script(part, file):
    """main_pretrain.py of MAE: model, optimizer, epoch, scaler and the command line as argparse.Namespace."""
    args = argparse.Namespace(
        batch_size=64, epochs=800, model="mae_vit_base_patch16", blr=1.5e-4, lr=None, norm_pix_loss=True
    )
    optimizer = torch.optim.AdamW(part.parameters(), lr=1e-3)
    part.training_step(batch()).backward()
    optimizer.step()
    saved = {
        "model": official(part),
        "optimizer": optimizer.state_dict(),
        "epoch": 799,
        "scaler": {"scale": 2.0},
        "args": args,
    }
    torch.save(saved, file)


def test_official_mae_as_its_training_script_saves_it(tmp_path, capsys):
    first, second = module(seed=0), module(seed=1)
    as_saved_by_the_official_script(first, tmp_path / "checkpoint-799.pth")
    init_from(second, f"official/mae:{tmp_path / 'checkpoint-799.pth'}", 1.0)
    for (name, mine), theirs in zip(second.named_parameters(), first.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    step = [part.begin(batch())["x"].whole.x for part in (first, second)]
    assert torch.equal(*step)
    assert "100.0%" in capsys.readouterr().err


def test_the_namespace_is_let_in_for_official_formats_alone(tmp_path):
    file = tmp_path / "checkpoint.pth"
    as_saved_by_the_official_script(module(), file)
    with pytest.raises(ConfigError, match="could run code"):
        read(file)
    with pytest.raises(ConfigError, match="could run code"):
        init_from(module(), f"timm/vit:{file}", 0.1)
    torch.save({"model": {}, "args": argparse.Namespace(a=Evil())}, file)
    with pytest.raises(ConfigError, match="could run code"):
        init_from(module(), f"official/mae:{file}", 0.1)


def test_the_released_encoder_alone_fills_a_pretraining_module(tmp_path):
    """mae_pretrain_vit_base.pth holds the encoder only; the decoder of the new run starts fresh, whatever its size."""
    first, second = module(seed=0), module(seed=1)
    state = {name: value for name, value in official(first).items() if "decoder" not in name and name != "mask_token"}
    torch.save({"model": state}, tmp_path / "mae_pretrain.pth")
    share = sum(p.numel() for p in second.networks.parameters()) / sum(p.numel() for p in second.parameters())
    assert share < 0.9
    init_from(second, f"official/mae:{tmp_path / 'mae_pretrain.pth'}", 0.9)
    for mine, theirs in zip(second.networks.parameters(), first.networks.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_teacher_starts_from_what_was_loaded(tmp_path):
    teacher = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.99}}
    first, second = module(seed=0), module(seed=1, teacher=teacher)
    torch.save({"model": official(first)}, tmp_path / "mae.pth")
    init_from(second, f"official/mae:{tmp_path / 'mae.pth'}", 0.4)
    for twin, student in zip(
        second.teacher.twins["main"].parameters(), second.networks["main"].parameters(), strict=True
    ):
        assert torch.equal(twin, student)


def test_a_trunk_of_one_modality_begins_that_of_another(tmp_path, capsys):
    """Blocks have the same names everywhere, so that pictures may begin what goes on with recordings; it is told what did not fit."""
    small = ["data=sample", "encoder._target_=encoder/vit", "encoder.dim=24", "encoder.depth=2", "encoder.heads=2"]
    pictures, recordings = (mmssl.build(name, small)[0] for name in ("image/mae", "audio/audio_mae"))
    save({"state_dict": pictures.state_dict(), "mmssl": {}}, tmp_path / "pictures.ckpt")
    init_from(recordings, str(tmp_path / "pictures.ckpt"), 0.8)
    found, given = recordings.kept.encoder.state_dict(), pictures.kept.encoder.state_dict()
    blocks = [name for name in found if name.startswith("blocks.")]
    assert len(blocks) == 24 and all(torch.equal(found[name], given[name]) for name in blocks)
    said = capsys.readouterr().err
    assert "of the encoder's" in said and "not in the file: networks.main.embed.proj.weight" in said
