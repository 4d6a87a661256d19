import hashlib
import io
import json
from functools import partial

import numpy as np
import pytest
import torch

from mmssl.data import contents
from mmssl.data.contents import alike, content, look
from mmssl.data.folder import Folder
from mmssl.data.module import Data
from mmssl.modalities.image.adapter import Image
from mmssl.modalities.pointcloud.mesh import Mesh
from mmssl.run.audit import audit, text
from tests.data.toy import Digits, classes, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def over(root, adapter=None, **said) -> Data:
    return Data(adapter or Digits(), 0, source=partial(Folder, root=str(root), **said), views={}, view=[], batch_size=1)


def test_counts_classes_and_facts(tmp_path):
    found = audit(over(classes(tmp_path, 10), test_share=0.2))
    assert (found["modality"], found["unit"], found["against"], found["overlap"]) == ("digits", "sample", None, [])
    assert list(found["splits"]) == ["train", "test"]
    train = found["splits"]["train"]
    assert (train["samples"], train["readable"], train["labelled"]) == (16, 16, 16)
    assert train["classes"] == {"ant": 8, "bee": 8} and train["facts"]["counted"] == 16
    assert train["unreadable"] == train["duplicates"] == train["conflicts"] == [] and found["near"] is None
    assert json.loads(json.dumps(found)) == found
    assert "train: 16 samples, 0 unreadable, 16 labels\n  classes: ant 8, bee 8" in text(found)


def test_unreadable_files_are_listed_with_the_reason(tmp_path):
    root = write(classes(tmp_path), {"ant/002.txt": "bad", "bee/003.txt": ""})
    found = audit(over(root, test_share=0))["splits"]["train"]
    assert found["unreadable"] == [{"name": f"{name}.txt", "reason": "not digits"} for name in ("ant/002", "bee/003")]
    assert found["readable"] == 18 and found["facts"]["counted"] == 18


def test_duplicates_are_those_of_equal_bytes(tmp_path):
    """The reference: groups of equal SHA-256 of the files, whose digits are their content."""
    numbers = np.random.default_rng(0).integers(100, 140, 60)
    root = write(tmp_path, {f"{'ab'[i % 2]}/{i:02}.txt": f"{number}" for i, number in enumerate(numbers)})
    groups, labels = {}, {}
    for path in sorted(root.rglob("*.txt")):
        key = hashlib.sha256(path.read_bytes()).hexdigest()
        groups.setdefault(key, []).append(path.relative_to(root).as_posix())
        labels.setdefault(key, set()).add(path.parent.name)
    found = audit(over(root, test_share=0))["splits"]["train"]
    assert sorted(found["duplicates"]) == sorted(group for group in groups.values() if len(group) > 1)
    assert sorted(found["conflicts"]) == sorted(group for key, group in groups.items() if len(labels[key]) > 1)
    assert found["conflicts"] and len(found["conflicts"]) < len(found["duplicates"])


def test_overlap_of_splits_and_with_other_data(tmp_path):
    one = write(tmp_path / "one", {"train/1.txt": "111", "train/2.txt": "222", "val/3.txt": "222", "test/4.txt": "444"})
    two = write(tmp_path / "two", {"train/a.txt": "555", "test/b.txt": "111", "test/c.txt": "111", "test/d.txt": "444"})
    found = audit(over(one), against=over(two))
    assert found["against"] == {"train": 1, "test": 3}
    assert [(row["in"], row["of"], row["samples"], row["share"], row["pairs"]) for row in found["overlap"]] == [
        ("train", "val", 1, 1.0, [["2.txt", "3.txt"]]),
        ("train", "against/test", 2, 2 / 3, [["1.txt", "b.txt"], ["1.txt", "c.txt"]]),
        ("test", "against/test", 1, 1 / 3, [["4.txt", "d.txt"]]),
    ]
    assert "1 samples of val (100.0%) are in train too\n  in both: 2.txt = 3.txt" in text(found)
    assert text(audit(over(classes(tmp_path / "c")))).endswith("no sample is in two splits")


def test_facts_that_cannot_be_measured_do_not_stop_the_rest(tmp_path):
    class Picky(Digits):
        def facts(self, samples):
            next(iter(samples))
            raise ValueError("samples differ")

    root = write(tmp_path, {"a.txt": "1", "b.txt": "22", "c.txt": "bad"})
    found = audit(over(root, Picky()))["splits"]["train"]
    assert found["facts"] == {"error": "samples differ"}
    assert (found["readable"], len(found["unreadable"])) == (2, 1)


def picture(seed, size=64):
    """A smooth picture, as photographs are."""
    from PIL import Image as Pil

    rough = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Pil.fromarray(rough).resize((size, size), Pil.Resampling.BICUBIC)


def encoded(image, kind, **said):
    content = io.BytesIO()
    image.save(content, kind, **said)
    return content.getvalue()


def test_pictures_that_look_alike(tmp_path):
    """The same picture encoded anew, smaller, or brighter is near; another one, or a plain one, is not."""
    scenes = {f"{i:02}.png": encoded(picture(i), "PNG") for i in range(30)}
    again = {
        "jpeg.jpg": encoded(picture(3), "JPEG", quality=60),
        "small.png": encoded(picture(5).resize((48, 48)), "PNG"),
        "bright.png": encoded(picture(7).point(lambda value: int(value * 0.9 + 20)), "PNG"),
        "same.png": encoded(picture(9), "PNG", compress_level=0),
        "black.png": encoded(picture(0).point(lambda value: 0), "PNG"),
        "blank.png": encoded(picture(0).point(lambda value: 1), "PNG"),
    }
    for split, files in {"train": scenes, "test": again}.items():
        (tmp_path / split).mkdir()
        for name, blob in files.items():
            (tmp_path / split / name).write_bytes(blob)
    found = audit(over(tmp_path, Image()))
    pairs = [("03.png", "jpeg.jpg"), ("05.png", "small.png"), ("07.png", "bright.png")]
    assert sorted(tuple(row["pair"]) for row in found["near"]) == pairs
    assert {(row["in"], row["of"]) for row in found["near"]} == {("train", "test")}
    assert [(row["in"], row["of"], row["pairs"]) for row in found["overlap"]] == [
        ("train", "test", [["09.png", "same.png"]])
    ]
    assert audit(over(tmp_path, Image()), near=False)["near"] is None


def test_near_pairs_are_all_pairs_of_few_bits():
    """Against the distances of all pairs."""
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 256, (300, 16), dtype=np.uint8)
    for i in range(150, 300):  # neighbours in 0 to 9 bits
        bits = np.unpackbits(hashes[i - 150])
        bits[rng.choice(128, i % 10, replace=False)] ^= 1
        hashes[i] = np.packbits(bits)
    apart = np.unpackbits(hashes[:, None] ^ hashes[None], axis=-1).sum(-1)
    wanted = [(i, j) for i in range(300) for j in range(i + 1, 300) if apart[i, j] <= 5]
    assert alike(hashes) == wanted and len(wanted) == 90
    assert alike(np.zeros((0, 16), np.uint8)) == []


def test_plain_crowds_are_left_out(monkeypatch):
    monkeypatch.setattr(contents, "_CROWD", 10)
    assert alike(np.zeros((11, 16), np.uint8)) == []
    assert len(alike(np.zeros((10, 16), np.uint8))) == 45


def test_a_plain_picture_has_no_look():
    assert look(np.full((20, 30, 3), 7, np.uint8)) is None
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], 32, 0).repeat(3, 2)
    assert np.unpackbits(np.frombuffer(look(ramp), np.uint8)).tolist() == [1] * 64 + [0] * 64


def test_content_is_values_shapes_and_types():
    adapter, base = Digits(), torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    known = content(adapter, base)
    assert known == content(adapter, base.clone()) and len(known) == 16
    others = [base.flip(0), base.view(2, 2), base.to(torch.int32), torch.tensor([1, 2, 3, 5], dtype=torch.uint8)]
    assert len({known, *(content(adapter, other) for other in others)}) == 5

    class Whole(Digits):
        def collate(self, samples):
            raise ValueError("a view has to come first")

    corners = torch.tensor([[0, 1, 2]])
    mesh = Mesh(torch.rand(3, 3, generator=torch.Generator().manual_seed(0)), corners)
    assert content(Whole(), mesh) == content(Whole(), Mesh(mesh.vertices.clone(), corners.clone()))
    assert content(Whole(), mesh) != content(Whole(), Mesh(mesh.vertices, corners.flip(1)))


def test_labels_of_tokens_are_counted_and_not_compared():
    from mmssl.modalities.graph.adapter import Graph
    from mmssl.modalities.graph.sets import GraphSample

    data = Data(Graph(), 0, source=GraphSample, views={}, view=[], batch_size="full")
    found = audit(data)
    assert {split: one["labelled"] for split, one in found["splits"].items()} == {
        "train": 140,
        "val": 500,
        "test": 1000,
    }
    assert sum(found["splits"]["val"]["classes"].values()) == 500
    assert found["overlap"] == [] and found["near"] is None and found["unit"] == "token"


def test_rows_of_tables_are_compared_as_encoded(tmp_path):
    from mmssl.modalities.tabular.adapter import Tabular
    from mmssl.modalities.tabular.sets import Tables

    write(tmp_path, {
        "train.csv": "a,b,label\n1,x,0\n2,y,1\n1,x,1\n4,y,0\n", "test.csv": "a,b,label\n4,y,0\n1,y,1\n",
    })  # fmt: skip
    source = partial(Tables, root=str(tmp_path), label="label")
    found = audit(Data(Tabular(), 0, source=source, views={}, view=[], batch_size=1))
    (group,) = found["splits"]["train"]["duplicates"]
    assert len(group) == 2 and found["splits"]["train"]["conflicts"] == [group]
    assert [(row["in"], row["of"], row["samples"]) for row in found["overlap"]] == [("train", "test", 1)]
