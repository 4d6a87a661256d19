import csv
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.data.module import Data
from mmssl.data.ragged import Decoded
from mmssl.modalities.video import sets
from mmssl.modalities.video.adapter import Video
from mmssl.modalities.video.sets import VideoFolder, VideoSample
from mmssl.modalities.video.views import ClipView
from mmssl.parts.views import CenterCrop, Resize
from tests.modalities.video.made import pixels, video
from tests.modalities.video.test_clips import folder

ADAPTER = Video()
OPS = [ClipView(frames=4, stride=2), Resize(size=16), CenterCrop(size=16)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def videos(root, count=8):
    """Two classes of videos of unlike length and size: files, folders of frames and arrays."""
    for i in range(count):
        path, frames = root / ("run", "walk")[i % 2] / f"v{i}", pixels(10 + i, 32, 40 + 8 * (i % 3))
        if i % 4 == 1:
            folder(path, frames)
        elif i % 4 == 2:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path.with_suffix(".npz"), frames=frames)
        else:
            video(path.with_suffix(".mp4" if i % 4 else ".webm"), frames, "libx264" if i % 4 else "libvpx")
    return root


def data(root, memory_mb=64, batch_size=4, workers=0, side=None, view=OPS, **said):
    source = partial(VideoFolder, root=str(root), cache_side=side, test_share=0)
    return Data(
        ADAPTER,
        3,
        source=source,
        views={"x": OPS},
        view=view,
        batch_size=batch_size,
        workers=workers,
        memory_mb=memory_mb,
        **said,
    )


def test_the_sample_is_what_its_readme_says():
    found = VideoSample(ADAPTER).splits()
    assert len(found["train"]) == 100 and len(found["test"]) == 60 and found["train"].classes == ["fight", "noFight"]
    assert found["train"].labels.bincount().tolist() == [50, 50] and found["test"].labels.bincount().tolist() == [
        30,
        30,
    ]
    path = Path(sets.__file__).parent / "sample"
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 3_200_000
    assert "MIT License" in (path / "LICENSE").read_text()
    with (path / "clips.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    groups = [{row["source_group"] for row in rows.values() if row["split"] == split} for split in ("train", "test")]
    assert not groups[0] & groups[1]
    names = {f"{split}/{dataset.name(i)}" for split, dataset in found.items() for i in range(len(dataset))}
    assert names == set(rows)
    for split, i in (("train", 0), ("train", 99), ("test", 31)):
        row, clip = rows[f"{split}/{found[split].name(i)}"], found[split].read(i)
        assert clip.count == int(row["frames"]) and clip.fps == pytest.approx(float(row["fps"]), abs=1e-3)
        assert min(clip.frames([clip.count - 1]).shape[-2:]) == 64


def test_files_folders_and_arrays_below_classes(tmp_path):
    found = VideoFolder(ADAPTER, root=str(videos(tmp_path / "d")), test_share=0).splits()["train"]
    names = [found.name(i) for i in range(8)]
    assert names == [
        "run/v0.webm",
        "run/v2.npz",
        "run/v4.webm",
        "run/v6.npz",
        "walk/v1",
        "walk/v3.mp4",
        "walk/v5",
        "walk/v7.mp4",
    ]
    assert found.labels.tolist() == [0] * 4 + [1] * 4 and found.classes == ["run", "walk"]
    assert [found.read(i).count for i in range(8)] == [10, 12, 14, 16, 11, 13, 15, 17]
    before, key = found.fingerprint(), found.cache_key()
    (tmp_path / "d" / "walk" / "v1" / "f2.png").write_bytes(b"changed")
    assert found.fingerprint() != before and found.cache_key() != key
    other = VideoFolder(ADAPTER, root=str(tmp_path / "d"), test_share=0, cache_side=16).splits()["train"]
    assert other.cache_key() != found.cache_key() and other.read(0).frames([0]).shape[-2:] == (16, 20)


def test_split_folders_and_held_out_shares(tmp_path):
    for split in ("train", "val"):
        videos(tmp_path / "d" / split, 4)
    found = VideoFolder(ADAPTER, root=str(tmp_path / "d")).splits()
    assert {name: len(dataset) for name, dataset in found.items()} == {"train": 4, "val": 4}
    found = VideoFolder(ADAPTER, root=str(tmp_path / "d" / "train"), test_share=0.5).splits()
    assert {name: len(dataset) for name, dataset in found.items()} == {"train": 2, "test": 2}
    flat = VideoFolder(ADAPTER, root=str(tmp_path / "d" / "train" / "walk")).splits()["train"]
    assert len(flat) == 2 and flat.labels is None


def test_folders_without_videos(tmp_path):
    (tmp_path / "d" / "inner").mkdir(parents=True)
    (tmp_path / "d" / "inner" / "a.txt").write_text("x")
    with pytest.raises(
        ValueError, match=r"data\.root=.* holds no videos: .*found \.txt; check data\.root and modality"
    ):
        VideoFolder(ADAPTER, root=str(tmp_path / "d")).splits()
    with pytest.raises(ValueError, match="is a file, not a folder"):
        VideoFolder(ADAPTER, root=str(tmp_path / "d" / "inner" / "a.txt")).splits()
    with pytest.raises(ValueError, match=r"data\.source\.labels=true, but .* has no class folders"):
        VideoFolder(ADAPTER, root=str(videos(tmp_path / "e", 4) / "run"), labels=True).splits()
    with pytest.raises(ValueError, match=r"cache_side is in pixels"):
        VideoFolder(ADAPTER, root="x", cache_side=0)


@pytest.mark.parametrize("side", [None, 16])
def test_batches_are_the_same_with_and_without_the_cache(tmp_path, side):
    root = videos(tmp_path / "d")
    kept, plain = data(root, 64, side=side), data(root, 0, side=side)
    assert isinstance(kept.dataset("train"), Decoded) and not plain.dataset("train").in_memory
    for epoch in range(2):
        for made in (kept, plain):
            made.set_start(epoch)
        for one, two in zip(kept.train_dataloader(), plain.train_dataloader(), strict=True):
            assert one["x"].data.shape == (4, 4, 3, 16, 16) and torch.equal(one["x"].data, two["x"].data)
            assert torch.equal(one["label"], two["label"])
    assert kept.facts() == plain.facts()
    for i in range(8):
        samples = [made.dataset("train").read(i) for made in (kept, plain)]
        assert torch.equal(*(ADAPTER.baseline(sample) for sample in samples)) and samples[0].fps == samples[1].fps


def test_workers_and_repeats(tmp_path):
    root = videos(tmp_path / "d")
    batches = [list(data(root, 64, workers=workers, repeats=2).train_dataloader()) for workers in (0, 2)]
    for one, two in zip(*batches, strict=True):
        assert one["x"].data.shape == (8, 4, 3, 16, 16) and torch.equal(one["x"].data, two["x"].data)
    assert not torch.equal(batches[0][0]["x"].data[0::2], batches[0][0]["x"].data[1::2])


@pytest.mark.parametrize("memory_mb", [0, 64])
def test_what_cannot_be_read_is_replaced_and_listed(tmp_path, memory_mb, caplog):
    root = videos(tmp_path / "d")
    (root / "run" / "empty.mp4").write_bytes(b"")
    (root / "walk" / "v1" / "f3.png").write_bytes(b"damaged")  # opens, but cannot be decoded
    made = data(root, memory_mb, batch_size=9, bad_share=0.5, view=[ClipView(frames=8, stride=1, at=0.0), *OPS[1:]])
    with caplog.at_level(logging.WARNING):
        batch = next(iter(made.train_dataloader()))
    assert len(batch["x"].data) == 9 and batch["bad"]
    rows = [row for batch in made.eval_loader("train") for row in batch["id"].tolist()]
    names = [made.dataset("train").name(i) for i in rows]
    assert len(rows) == 7 and "run/empty.mp4" not in names and "walk/v1" not in names
    assert set(made.skipped) == {"run/empty.mp4", "walk/v1"}
    if memory_mb:
        assert "2 samples cannot be decoded" in caplog.text and "the frame f3.png cannot be read" in caplog.text


def test_short_videos_are_skipped_where_that_is_asked(tmp_path):
    made = data(
        videos(tmp_path / "d"), 64, bad_share=0.5, view=[ClipView(frames=4, stride=4, at=0.5, short="skip"), *OPS[1:]]
    )
    rows = [row for batch in made.eval_loader("train") for row in batch["id"].tolist()]
    assert sorted(made.dataset("train").read(i).count for i in rows) == [13, 14, 15, 16, 17]
    assert set(made.skipped) == {"run/v0.webm", "run/v2.npz", "walk/v1"}
