import hashlib
import io
import json
import os
import tarfile
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmssl.config.compose import ConfigError
from mmssl.data import writing
from mmssl.data.folder import Folder
from mmssl.data.manifest import Manifest
from mmssl.data.module import Data
from mmssl.data.shards import Shards
from mmssl.data.source import Arrays
from mmssl.draws import shuffle
from mmssl.run.write_shards import size_of, text, write_shards
from tests.data.toy import Digits, classes, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def over(source, root, **said) -> Data:
    return Data(Digits(), 0, source=partial(source, root=str(root), **said), views={}, view=[], batch_size=1)


def held(out, **said):
    return Shards(Digits(), root=str(out), **said).splits()


def content(dataset):
    """Label and digits of every sample by name, the name's place left out."""
    names = [dataset.name(i).rpartition(":")[2] for i in range(len(dataset))]
    labels = [None] * len(names) if dataset.labels is None else [dataset.classes[label] for label in dataset.labels]
    assert len(set(names)) == len(names)
    return {name: (label, dataset.read(i).tolist()) for i, (name, label) in enumerate(zip(names, labels, strict=True))}


def test_shards_hold_what_the_folder_holds(tmp_path):
    root = classes(tmp_path / "d", 50)
    found = write_shards(over(Folder, root), tmp_path / "out", samples=20)
    before, after = Folder(Digits(), root=str(root)).splits(), held(tmp_path / "out")
    assert {split: content(dataset) for split, dataset in after.items()} == {
        split: content(dataset) for split, dataset in before.items()
    }
    assert after["train"].classes == ["ant", "bee"]
    assert found["splits"]["train"] | {"bytes": 0} == {
        "samples": 90, "bytes": 0, "skipped": [], "shards": [f"train-{i:06}.tar" for i in range(5)],
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "shards.json").read_text()) == {
        k: v for k, v in found.items() if k != "folder"
    }
    assert [len(index.names) for index in after["train"].found] == [20, 20, 20, 20, 10]
    assert os.listdir(tmp_path).count("out") == 1 and not [name for name in os.listdir(tmp_path) if "tmp" in name]


def test_members_are_files_and_labels_in_a_fixed_shuffled_order(tmp_path):
    root = classes(tmp_path / "d", 6)
    write_shards(over(Folder, root, test_share=0), tmp_path / "out")
    files = sorted(f"{path.parent.name}/{path.name}" for path in root.rglob("*.txt"))
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    wanted = {}
    for i in shuffle(12, 0, 0).tolist():
        name = files[i].removesuffix(".txt")
        wanted[f"{name}.cls"] = str(["ant", "bee"].index(name.split("/")[0])).encode()
        wanted[f"{name}.txt"] = (root / files[i]).read_bytes()
    assert list(members.items()) == list(wanted.items())


def test_equal_data_give_equal_shards(tmp_path):
    one, two = classes(tmp_path / "a" / "d"), classes(tmp_path / "b" / "d")
    for root in (one, two):
        write_shards(over(Folder, root), root.parent / "out")
    for path in sorted((tmp_path / "a" / "out").glob("*.tar")):
        other = tmp_path / "b" / "out" / path.name
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()


def test_size_limits_shards(tmp_path):
    root = write(tmp_path / "d", {f"{i:02}.txt": "7" * (40_000 if i == 5 else 2_000) for i in range(30)})
    found = write_shards(over(Folder, root), tmp_path / "out", size="30kB")["splits"]["train"]
    sizes = [(tmp_path / "out" / name).stat().st_size for name in found["shards"]]
    assert sum(sizes) == found["bytes"] and found["samples"] == 30
    large = [size for size in sizes if size > 30_000]
    assert len(large) == 1 and large[0] > 40_000  # one sample is larger than the limit
    assert len(sizes) < 12


@pytest.mark.parametrize(
    ("said", "bytes_"), [("256MB", 256_000_000), ("1.5gb", 1_500_000_000), ("2MiB", 2 << 20), ("9", 9)]
)
def test_sizes(said, bytes_):
    assert size_of(said) == bytes_


@pytest.mark.parametrize("said", ["0", "MB", "3XB", "-1", "1.2.3MB"])
def test_sizes_that_are_none(said):
    with pytest.raises(ConfigError, match=r"size=.*such as 256MB"):
        size_of(said)


def test_unreadable_samples_are_skipped_counted_and_listed(tmp_path):
    root = write(classes(tmp_path / "d", 50), {"ant/000.txt": "bad", "bee/001.txt": "worse"})
    found = write_shards(over(Folder, root, test_share=0), tmp_path / "out")
    skipped = found["splits"]["train"]["skipped"]
    assert sorted(skipped) == [("ant/000.txt", "not digits"), ("bee/001.txt", "not digits")]
    assert len(content(held(tmp_path / "out", test_share=0)["train"])) == 98
    assert "skipped ant/000.txt: not digits" in text(found) and "98 samples in 1 shards" in text(found)


def test_names_become_keys(tmp_path):
    """A key has no dot, and no two samples have the same."""
    root = write(tmp_path / "d", {"a.b.txt": "1", "a_b.txt": "2", "a.dig": "3", "a.txt": "4", "x.y/c.TXT": "5"})
    write_shards(over(Folder, root), tmp_path / "out")
    found = content(held(tmp_path / "out")["train"])
    assert sorted(digits for _, (digits,) in found.values()) == [1, 2, 3, 4, 5]
    assert {name.partition(".")[0] for name in found if "/" not in name} == {"a_b", "a_b-2", "a", "a-2"}
    assert found["x.y/c.txt"] == (None, [5])


def test_splits_and_missing_labels_are_kept(tmp_path):
    root = write(tmp_path / "d", {"train/a/1.txt": "1", "train/b/2.txt": "2", "val/b/3.txt": "3", "test/4.txt": "4"})
    write_shards(over(Folder, root), tmp_path / "out")
    found = held(tmp_path / "out")
    assert list(found) == ["train", "val", "test"] and found["test"].labels is None
    assert content(found["val"]) == {"b/3.txt": ("b", [3])} and found["val"].labels.tolist() == [1]


def test_tables_and_shards_are_written_too(tmp_path):
    cells = [{"bytes": str(i).encode(), "path": None if i % 2 else f"p/{i}.txt"} for i in range(10, 20)]
    (tmp_path / "t").mkdir()
    pq.write_table(pa.table({"dig": cells, "label": [i % 3 for i in range(10)]}), tmp_path / "t" / "train.parquet")
    write(
        tmp_path / "p",
        {f"{i}.txt": f"{i}" for i in range(4)} | {"table.csv": "path\n" + "".join(f"{i}.txt\n" for i in range(5))},
    )
    write_shards(over(Manifest, tmp_path / "t", test_share=0.2), tmp_path / "one")
    write_shards(over(Shards, tmp_path / "one"), tmp_path / "two", samples=3)
    one, two = held(tmp_path / "one"), held(tmp_path / "two")
    assert {split: content(dataset) for split, dataset in one.items()} == {s: content(d) for s, d in two.items()}
    both = content(one["train"]) | content(one["test"])
    assert sorted(int("".join(map(str, digits))) for _, digits in both.values()) == list(range(10, 20))
    found = write_shards(over(Manifest, tmp_path / "p" / "table.csv"), tmp_path / "three")["splits"]["train"]
    assert found["samples"] == 4 and [name for name, _ in found["skipped"]] == ["4.txt"]


def test_an_index_comes_along(tmp_path, monkeypatch):
    """A reader with an empty cache reads through no shard; after a copy the index is still that of the shard."""
    write_shards(over(Folder, classes(tmp_path / "d")), tmp_path / "out")
    os.rename(tmp_path / "out", tmp_path / "elsewhere")
    wanted = content(Folder(Digits(), root=str(tmp_path / "d")).splits()["train"])

    def scan(*said):
        raise AssertionError("the shard was read through")

    monkeypatch.setattr("mmssl.data.tars.scan", scan)
    assert content(held(tmp_path / "elsewhere")["train"]) == wanted
    path = tmp_path / "elsewhere" / "train-000000.tar"
    path.write_bytes(path.read_bytes() + bytes(10240))  # another file
    with pytest.raises(AssertionError, match="read through"):
        held(tmp_path / "elsewhere")


def test_a_stale_index_beside_a_shard_is_noticed(tmp_path):
    write_shards(over(Folder, classes(tmp_path / "d"), test_share=0), tmp_path / "out")
    path = tmp_path / "out" / "train-000000.tar"
    with tarfile.open(path) as archive:
        held_ = [(member.name, archive.extractfile(member).read()) for member in archive][::-1]
    size = path.stat().st_size
    with tarfile.open(path, "w") as archive:
        for name, blob in held_:
            member = tarfile.TarInfo(name)
            member.size = len(blob)
            archive.addfile(member, io.BytesIO(blob))
    assert path.stat().st_size == size
    with pytest.raises(ValueError, match=r"is not the file that was indexed; remove .*train-000000\.tar\.index"):
        held(tmp_path / "out", test_share=0)["train"].read(0)


def test_nothing_is_left_of_what_was_broken_off(tmp_path, monkeypatch):
    data = over(Folder, classes(tmp_path / "d", 50))
    real = writing._Open.close

    def close(self, *said):
        if self.path.name == "train-000003.tar":
            raise OSError(28, "No space left on device")
        return real(self, *said)

    monkeypatch.setattr(writing._Open, "close", close)
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\); nothing is left"):
        write_shards(data, tmp_path / "out", samples=5)
    assert sorted(os.listdir(tmp_path)) == ["d"]


def test_what_cannot_be_written_is_refused(tmp_path):
    data = over(Folder, classes(tmp_path / "d"))
    (tmp_path / "empty").mkdir()
    write_shards(data, tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"out=.*empty is there already"):
        write_shards(data, tmp_path / "empty")
    with pytest.raises(ConfigError, match="written to a folder of this machine"):
        write_shards(data, "s3://bucket/x")
    for count in (0, "many"):
        with pytest.raises(ConfigError, match=f"samples={count}"):
            write_shards(data, tmp_path / "x", samples=count)
    with pytest.raises(ConfigError, match=r"nothing of the train split can be read; a\.txt: not digits"):
        write_shards(over(Folder, write(tmp_path / "bad", {"a.txt": "?"})), tmp_path / "x")

    class Held:
        def __init__(self, adapter, *, root):
            self.adapter = adapter

        def splits(self):
            return {"train": Arrays(np.zeros((3, 1), np.uint8), None, None, "x")}

    with pytest.raises(ValueError, match=r"no encoded files \(Arrays\).*use data=folder"):
        write_shards(over(Held, "."), tmp_path / "x")
    assert not (tmp_path / "x").exists()
