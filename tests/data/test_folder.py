import hashlib

import numpy as np
import pytest

from mmssl.data.folder import Folder
from mmssl.data.source import Arrays, digest_file
from mmssl.data.subset import hold_out
from tests.data.toy import Digits, classes, write


def splits(root, **said):
    return Folder(Digits(), root=str(root), **said).splits()


def names(dataset):
    return [dataset.name(i) for i in range(len(dataset))]


def test_flat_files_are_unlabelled_and_sorted(tmp_path):
    write(tmp_path, {"b.txt": "2", "a.TXT": "1", ".hidden.txt": "3", "notes.md": ""})
    found = splits(tmp_path)
    assert list(found) == ["train"]
    assert names(found["train"]) == ["a.TXT", "b.txt"]
    assert found["train"].labels is None and found["train"].classes is None
    assert [int(found["train"].read(i)) for i in range(2)] == [1, 2]


def test_one_folder_or_mixed_depth_is_no_class(tmp_path):
    assert splits(write(tmp_path / "one", {"x/a.txt": "1", "x/b.txt": "2"}))["train"].labels is None
    assert splits(write(tmp_path / "mixed", {"x/a.txt": "1", "y/b.txt": "2", "c.txt": "3"}))["train"].labels is None


def test_class_folders_give_labels_and_a_stratified_test_share(tmp_path):
    found = splits(classes(tmp_path, 20), test_share=0.25)
    train, test = found["train"], found["test"]
    assert train.classes == test.classes == ["ant", "bee"]
    assert train.labels.bincount().tolist() == [15, 15] and test.labels.bincount().tolist() == [5, 5]
    assert not set(names(train)) & set(names(test))
    for dataset in (train, test):
        for i, label in enumerate(dataset.labels.tolist()):
            assert dataset.name(i).split("/")[0] == dataset.classes[label]
            assert int("".join(map(str, dataset.read(i).tolist()))) == int(dataset.name(i)[4:7]) + 100


def test_held_out_are_the_smallest_digests_of_each_class(tmp_path):
    """Independent of place and of how many others there are: only of names."""
    found = splits(classes(tmp_path, 20), test_share=0.25)["test"]
    for label, name in enumerate(("ant", "bee")):
        files = [f"{name}/{i:03}.txt" for i in range(label, 40, 2)]
        ranked = sorted(files, key=lambda file: hashlib.sha256(f"{len(file)}:{file}".encode()).hexdigest())
        assert [n for n in names(found) if n.startswith(name)] == sorted(ranked[:5])


def test_small_classes_stay_in_train():
    import torch

    labels = torch.tensor([0, 1, 1])
    found = hold_out(Arrays(np.zeros((3, 1), np.uint8), labels, ["a", "b"], "x"), 0.1)
    assert found["train"].labels.tolist() == [0, 1] and found["test"].labels.tolist() == [1]
    with pytest.raises(ValueError, match="test_share has to be at least 0 and below 1"):
        hold_out(found["train"], 1.0)


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders(tmp_path, val):
    write(tmp_path, {"train/bee/1.txt": "1", "train/ant/2.txt": "2", f"{val}/bee/3.txt": "3", "test/4.txt": "4"})
    found = splits(tmp_path)
    assert list(found) == ["test", "train", "val"]
    assert names(found["train"]) == ["ant/2.txt", "bee/1.txt"]
    assert found["train"].labels.tolist() == [0, 1] and found["val"].labels.tolist() == [1]
    assert found["test"].labels is None  # flat, as ImageNet's official test set


def test_a_class_called_train_is_a_class(tmp_path):
    found = splits(write(tmp_path, {"train/1.txt": "1", "bus/2.txt": "2"}), test_share=0)
    assert found["train"].classes == ["bus", "train"]


def test_labels_can_be_refused_and_demanded(tmp_path):
    found = splits(classes(tmp_path / "a"), labels=False)
    assert list(found) == ["train"] and found["train"].labels is None and len(found["train"]) == 20
    with pytest.raises(ValueError, match=r"data\.source\.labels=true.* has no class folders"):
        splits(write(tmp_path / "b", {"1.txt": "1"}), labels=True)


def test_splits_have_to_agree(tmp_path):
    write(tmp_path, {"train/bee/1.txt": "1", "train/ant/2.txt": "2", "test/beee/3.txt": "3"})
    with pytest.raises(ValueError, match=r"test split has the class 'beee'.*did you mean 'bee'"):
        splits(tmp_path)
    write(tmp_path / "two", {"train/1.txt": "1", "val/2.txt": "2", "valid/3.txt": "3"})
    with pytest.raises(ValueError, match="two folders for the same split"):
        splits(tmp_path / "two")


def test_links_are_followed_once(tmp_path):
    write(tmp_path, {"data/a.txt": "1", "data/sub/b.txt": "2"})
    (tmp_path / "data" / "sub" / "up").symlink_to(tmp_path / "data")
    assert names(splits(tmp_path / "data")["train"]) == ["a.txt", "sub/b.txt"]


def test_empty_folder_says_what_is_there(tmp_path):
    write(tmp_path, {"a.json": "", "b.json": "", "c.parquet": ""})
    with pytest.raises(ValueError, match=r"\.txt, \.dig, found 2 \.json, 1 \.parquet; use data=manifest"):
        splits(tmp_path)
    with pytest.raises(ValueError, match="is a file, not a folder"):
        splits(tmp_path / "a.json")


def test_missing_root_names_its_neighbours(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match=r"has no 'pictuers'; did you mean 'pictures'"):
        splits(tmp_path / "pictuers")
    with pytest.raises(ValueError, match=r"has no 'data'; there is: pictures"):
        splits(tmp_path / "data" / "train")


def test_fingerprint_follows_content_not_place(tmp_path):
    one, two = splits(classes(tmp_path / "a"), test_share=0), splits(classes(tmp_path / "b"), test_share=0)
    assert one["train"].fingerprint() == two["train"].fingerprint()
    assert one["train"].cache_key() != two["train"].cache_key()
    write(tmp_path / "b", {"ant/000.txt": "1000"})
    assert one["train"].fingerprint() != two["train"].fingerprint()
    parts = splits(tmp_path / "a", test_share=0.5)
    assert len({parts["train"].fingerprint(), parts["test"].fingerprint(), one["train"].fingerprint()}) == 3


def test_digest_of_large_files_sees_size_and_ends(tmp_path):
    path = tmp_path / "big"
    blob = bytearray(3 << 20)
    seen = set()
    for change in (None, 0, -1):
        if change is not None:
            blob[change] += 1
        path.write_bytes(blob)
        seen.add(digest_file(path, whole=1 << 20))
    path.write_bytes(blob + b"\0")
    assert len(seen | {digest_file(path, whole=1 << 20)}) == 4
    assert digest_file(path) == hashlib.sha256(blob + b"\0").hexdigest()
