import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmssl.data.manifest import Manifest
from tests.data.toy import Digits, write


def splits(root, **said):
    return Manifest(Digits(), root=str(root), **said).splits()


def csv(folder, text, name="table.csv"):
    return write(folder, {name: text}) / name


@pytest.fixture
def files(tmp_path):
    return write(tmp_path, {f"d/{i}.txt": f"{i}" for i in range(8)})


def hub(path, values, labels=None, names=None):
    """Parquet as the Hugging Face hub writes it."""
    cells = [{"bytes": str(value).encode(), "path": f"{value}.txt"} for value in values]
    columns = {"dig": cells} | ({} if labels is None else {"label": labels})
    table = pa.table(columns)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "dig": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_csv_of_paths(files):
    rows = "".join(f"d/{i}.txt,{'abc'[i % 3]},{'train' if i < 6 else 'valid'}\n" for i in range(8))
    found = splits(csv(files, "path,label,split\n" + rows))
    assert list(found) == ["train", "val"]
    assert [int(found["val"].read(i)) for i in range(2)] == [6, 7]
    assert found["val"].name(1) == "d/7.txt"
    assert found["train"].classes == ["a", "b", "c"]
    assert found["train"].labels.tolist() == [0, 1, 2, 0, 1, 2] and found["val"].labels.tolist() == [0, 1]


def test_tsv_and_columns_by_name(files):
    root = csv(files, "what\twhich\tkind\nx\td/1.txt\t7\ny\td/2.txt\t3\n", "table.tsv")
    found = splits(root, label="kind", test_share=0)["train"]  # the column of paths is found by its endings
    assert found.classes == ["3", "7"] and found.labels.tolist() == [1, 0]
    assert found.name(0) == "d/1.txt"
    assert splits(root)["train"].labels is None


def test_hub_layout_with_class_names(tmp_path):
    hub(tmp_path / "train.parquet", [10, 11, 12], [2, 0, 2], ["zebra", "ant", "bee"])
    hub(tmp_path / "test.parquet", [13], [1], ["zebra", "ant", "bee"])
    found = splits(tmp_path)
    assert found["train"].classes == ["zebra", "ant", "bee"]  # the file's order, not sorted
    assert found["train"].labels.tolist() == [2, 0, 2] and found["test"].labels.tolist() == [1]
    assert found["test"].read(0).tolist() == [1, 3] and found["test"].name(0) == "13.txt"


def test_shards_are_joined(tmp_path):
    for shard in range(3):
        hub(tmp_path / f"data/train-{shard:05}-of-00003.parquet", [3 * shard + i for i in range(3)], [shard] * 3)
    found = splits(tmp_path, test_share=0)["train"]
    assert [int(found.read(i)) for i in range(9)] == list(range(9))
    assert found.labels.tolist() == np.repeat(range(3), 3).tolist()
    assert found.name(5) == "5.txt"


def test_bytes_without_paths_are_named_by_row(tmp_path):
    pq.write_table(pa.table({"blob": [b"1", b"2"], "other": [0.5, 1.5]}), tmp_path / "t.parquet")
    found = splits(tmp_path)["train"]
    assert found.name(1) == "t.parquet:1" and int(found.read(1)) == 2


def test_labelled_tables_hold_out_a_test_share(tmp_path):
    hub(tmp_path / "t.parquet", range(40), [i % 2 for i in range(40)])
    found = splits(tmp_path / "t.parquet", test_share=0.2)
    assert found["train"].labels.bincount().tolist() == [16, 16] and found["test"].labels.bincount().tolist() == [4, 4]
    assert list(splits(tmp_path / "t.parquet", label=False)) == ["train"]


def test_a_split_without_labels_is_unlabelled(tmp_path):
    hub(tmp_path / "train.parquet", [1, 2], [0, 1], ["a", "b"])
    hub(tmp_path / "test.parquet", [3, 4], [-1, -1], ["a", "b"])  # as the hub writes hidden labels
    found = splits(tmp_path)
    assert found["test"].labels is None and found["train"].labels.tolist() == [0, 1]
    hub(tmp_path / "test.parquet", [3, 4], [-1, 1], ["a", "b"])
    with pytest.raises(ValueError, match=r"1 of 2 rows of .*test\.parquet have no label, the first is row 0"):
        splits(tmp_path)


def test_numbers_with_fractions_are_no_classes(files):
    root = csv(files, "path,target\nd/1.txt,0.5\nd/2.txt,1.5\n")
    assert splits(root)["train"].labels is None
    with pytest.raises(ValueError, match="holds no classes"):
        splits(root, label="target")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"label": "lable"}, r"data\.source\.label=lable.*did you mean 'label'.*columns are: path, label"),
        ({"column": "file"}, r"data\.source\.column=file.*no such column"),
        ({"split": "fold"}, r"data\.source\.split=fold.*no such column"),
    ],
)
def test_missing_columns_are_named(files, said, message):
    with pytest.raises(ValueError, match=message):
        splits(csv(files, "path,label\nd/1.txt,0\n"), **said)


def test_other_errors_name_the_remedy(files):
    with pytest.raises(ValueError, match="has no column called label, labels"):
        splits(csv(files, "path,x\nd/1.txt,0\n"), label=True)
    with pytest.raises(ValueError, match=r"no column of .*\.txt, \.dig"):
        splits(csv(files, "name,x\nfoo,0\n"))
    with pytest.raises(ValueError, match=r"has the split 'tarin'; did you mean 'train'"):
        splits(csv(files, "path,split\nd/1.txt,tarin\n"))
    with pytest.raises(ValueError, match="has no rows"):
        splits(csv(files, "path,label\n"), column="path")
    with pytest.raises(ValueError, match="holds no table"):
        splits(files / "d")
    with pytest.raises(ValueError, match="has no train split, only test"):
        splits(csv(files, "path,split\nd/1.txt,test\n"))
    with pytest.raises(ValueError, match="has to be one of"):
        splits(files / "d" / "1.txt")


def test_missing_file_is_an_unreadable_sample(files):
    found = splits(csv(files, "path\nd/1.txt\nd/99.txt\n"))["train"]
    with pytest.raises(OSError, match=r"99\.txt"):
        found.read(1)


def test_fingerprints(tmp_path):
    hub(tmp_path / "a" / "t.parquet", [1, 2])
    hub(tmp_path / "b" / "t.parquet", [1, 2])
    one, two = splits(tmp_path / "a")["train"], splits(tmp_path / "b")["train"]
    assert one.fingerprint() == two.fingerprint()
    hub(tmp_path / "b" / "t.parquet", [1, 3])
    assert one.fingerprint() != splits(tmp_path / "b")["train"].fingerprint()
