import gzip
import json
import multiprocessing
import os
import re
import tarfile
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmssl.data import indexing, tars
from mmssl.data.places import expand
from tests.data.tars import UNEVEN, blob, data, numbers, sets, splits, write
from tests.data.toy import Digits


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def names(dataset):
    return [dataset.name(i) for i in range(len(dataset))]


def by_tarfile(folder):
    """What the standard library reads: (shard, member, content, label) of every sample, in order."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            held = {member.name: archive.extractfile(member).read() for member in archive}
        for name in held:
            if name.endswith(".txt"):
                found.append((path.name, name, held[name], held.get(name.replace(".txt", ".cls"))))
    return found


def test_samples_are_what_tarfile_reads(tmp_path):
    wanted = by_tarfile(write(tmp_path / "d"))
    found = splits(tmp_path / "d")
    assert list(found) == ["train"] and len(found["train"]) == sum(UNEVEN) == len(wanted)
    dataset = found["train"]
    assert names(dataset) == [f"{shard}:{member}" for shard, member, _, _ in wanted]
    assert [dataset.blob(i) for i in range(len(dataset))] == [content for _, _, content, _ in wanted]
    assert numbers(dataset) == list(range(100, 164))
    assert [dataset.classes[label] for label in dataset.labels] == [label.decode() for *_, label in wanted]


def test_long_and_foreign_names(tmp_path):
    long = "d" * 120 + "/" + "ü" * 60
    write(tmp_path, {"a.tar": {f"{long}.cls": "0", f"{long}.txt": "12", "b.x/c.txt": "34"}})
    dataset = splits(tmp_path, label=False)["train"]
    assert numbers(dataset) == [12, 34] and names(dataset) == [f"a.tar:{long}.txt", "a.tar:b.x/c.txt"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a/b.seg.png", ("a/b", "seg.png")), ("a.b/c.TXT", ("a.b/c", "txt")), ("0.jpg", ("0", "jpg")),
        ("._0.jpg", None), ("a/.hidden", None), ("README", None), ("a/b.", None),
    ],
)  # fmt: skip
def test_keys_and_endings(name, parts):
    """As WebDataset's base_plus_ext splits them."""
    assert tars.split_name(name) == parts


def test_labels_may_be_text_or_lie_in_json(tmp_path):
    write(tmp_path / "t", {"a.tar": {"1.txt": "1", "1.cls": "bee\n", "2.cls": "ant", "2.txt": "2"}})
    found = splits(tmp_path / "t")["train"]
    assert found.classes == ["ant", "bee"] and found.labels.tolist() == [1, 0]
    held = {"1.txt": "1", "1.json": json.dumps({"label": 7, "kind": "x"}), "2.txt": "2", "2.json": '{"label": 3}'}
    write(tmp_path / "j", {"a.tar": held})
    found = splits(tmp_path / "j")["train"]
    assert found.classes == ["3", "7"] and found.labels.tolist() == [1, 0]
    assert splits(tmp_path / "j", label=False)["train"].labels is None
    with pytest.raises(ValueError, match=r"data\.source\.label: 1 of 2 rows of a\.tar have no label"):
        splits(tmp_path / "j", label="kind")
    write(tmp_path / "e", {"a.tar": {"1.txt": "1", "1.species": "0", "2.txt": "2", "2.species": "1"}})
    assert splits(tmp_path / "e", label="species")["train"].labels.tolist() == [0, 1]
    for label in ("lable", True):
        with pytest.raises(ValueError, match=rf"data\.source\.label={label}: no sample has a label"):
            splits(tmp_path / "e", label=label)


def test_numbers_with_fractions_are_no_classes(tmp_path):
    write(tmp_path, {"a.tar": {"1.txt": "1", "1.cls": "0.5", "2.txt": "2", "2.cls": "3"}})
    assert splits(tmp_path)["train"].labels is None
    with pytest.raises(ValueError, match="holds no classes"):
        splits(tmp_path, label="cls")


def test_shards_with_and_without_labels_do_not_mix(tmp_path):
    write(tmp_path, {"a.tar": {"1.txt": "1", "1.cls": "0"}, "b.tar": {"2.txt": "2"}})
    with pytest.raises(ValueError, match=r"data\.source\.label: b\.tar holds no labels, and other shards of the train"):
        splits(tmp_path)


def test_the_sample_among_several_members(tmp_path):
    write(tmp_path, {"a.tar": {"1.txt": "1", "1.dig": "10", "2.txt": "2", "2.dig": "20"}})
    with pytest.raises(
        ValueError, match=r"a\.tar: the sample 1 has several members .*1\.txt and 1\.dig.*source\.column"
    ):
        splits(tmp_path)
    assert numbers(splits(tmp_path, column="dig")["train"]) == [10, 20]
    with pytest.raises(ValueError, match=r"hold no digits samples: .*end in dog, found 2 \.txt, 2 \.dig"):
        splits(tmp_path, column="dog")


@pytest.mark.parametrize("folders", [False, True])
def test_splits_by_name(tmp_path, folders):
    shards = {
        f"{split}{'/' if folders else '-'}0.tar": {f"{i}.txt": f"{i}"}
        for i, split in enumerate(("train", "valid", "test"))
    }
    write(tmp_path, shards)
    found = splits(tmp_path)
    assert {split: numbers(dataset) for split, dataset in found.items()} == {"train": [0], "val": [1], "test": [2]}


def test_splits_by_pattern(tmp_path):
    write(tmp_path, {f"{word}_{i}.tar": {f"{i}.txt": f"{i}"} for word in ("big", "small") for i in range(4)})
    found = splits(tmp_path, train="big_{0..2}.tar", test=["small_3.tar", str(tmp_path / "small_[01].tar")])
    assert numbers(found["train"]) == [0, 1, 2] and numbers(found["test"]) == [3, 0, 1]
    assert numbers(splits(None, train=str(tmp_path / "big_?.tar"))["train"]) == [0, 1, 2, 3]
    assert numbers(splits(tmp_path / "{big_1,small_2}.tar")["train"]) == [1, 2]
    with pytest.raises(ValueError, match=r"big_1\.tar is in two splits"):
        splits(tmp_path, train="big_*.tar", val="big_1.tar")


def test_labelled_shards_hold_out_the_same_share_as_folders(tmp_path):
    whole = splits(write(tmp_path))["train"]
    found = splits(tmp_path, test_share=0.25)
    train, test = found["train"], found["test"]
    assert sorted(names(train) + names(test)) == sorted(names(whole))
    assert train.labels.bincount().tolist() == [16, 16, 16] and test.labels.bincount().tolist() == [5, 6, 5]
    for part in (train, test):
        assert [number % 3 for number in numbers(part)] == part.labels.tolist()
        assert sorted(part.order(0, 0).tolist()) == list(range(len(part)))
    assert len({part.fingerprint() for part in (whole, train, test)}) == 3


def test_braces():
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"] and expand("plain") == ["plain"]
    with pytest.raises(ValueError, match=r"the braces \{3\.\.1\}"):
        expand("x{3..1}")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"root": "trian-*.tar"}, r"data\.root=.*trian-\*\.tar matches no shard \(\.tar, \.parquet\); in .*: did you mean 'train-000\.tar'"),
        ({"root": "train-{000..007}.tar"}, r"data\.root: there is no file://.*train-007\.tar; in .*: did you mean 'train-00"),
        ({"root": "nowhere/x-*.tar"}, r"nowhere/x-\*\.tar matches no shard .*; in "),
        ({"root": "..", "train": "t/train-009.tar"}, r"data\.source\.train: there is no file://.*train-009\.tar"),
        ({"root": ".", "val": "train-000.tar"}, r"data\.source\.train has to be given where val or test"),
        ({"root": "notes.md"}, r"notes\.md is no shard: its name has to end in \.tar or \.parquet"),
        ({"root": "{train-000.tar,train-*.tar}"}, r"names the shard file://.*train-000\.tar twice"),
        ({"root": "sub"}, r"data\.root=.*sub holds no shard .*only a\.txt; for a folder of files use data=folder"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named_with_what_is_near(tmp_path, said, message):
    write(tmp_path / "t")
    (tmp_path / "t" / "notes.md").write_text("")
    (tmp_path / "t" / "sub").mkdir()
    (tmp_path / "t" / "sub" / "a.txt").write_text("1")
    with pytest.raises(ValueError, match=message):
        splits(f"{tmp_path}/t/{said.pop('root')}", **said)


def test_other_errors_name_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"data\.root has to be given"):
        splits(None)
    with pytest.raises(ValueError, match=r"Protocol not known: fuu"):
        splits("fuu://bucket/x.tar")
    write(tmp_path / "m", {"train-0.tar": {"1.txt": "1"}, "more-0.tar": {"1.txt": "1"}})
    with pytest.raises(ValueError, match=r"more-0\.tar is not named after the train split, and others name a split"):
        splits(tmp_path / "m")
    write(tmp_path / "v", {"val-0.tar": {"1.txt": "1"}})
    with pytest.raises(ValueError, match=r"val-0\.tar is not named after the train split, and no other shard is"):
        splits(tmp_path / "v" / "val-0.tar")
    write(tmp_path / "o", {"0.tar": {"1.xyz": "1", "2.xyz": "2", "3.flac": "3"}})
    with pytest.raises(
        ValueError, match=r"train shards hold no digits samples: .*\.txt, \.dig, found 2 \.xyz, 1 \.flac"
    ):
        splits(tmp_path / "o")
    with pytest.raises(ValueError, match=r"data\.source\.window has to be at least 1"):
        splits(tmp_path / "o", window=0)


def test_what_is_no_tar_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(gzip.compress(blob({"1.txt": "1"})))
    with pytest.raises(ValueError, match=r"a\.tar is no tar archive .*compressed has to be unpacked"):
        splits(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(ValueError, match=r"a\.tar is no tar archive"):
        splits(tmp_path)


def test_empty_shards_are_no_harm(tmp_path, caplog):
    write(tmp_path, {"a.tar": {}, "b.tar": {"1.txt": "1", "1.cls": "0"}})
    assert numbers(splits(tmp_path)["train"]) == [1] and not caplog.records
    (tmp_path / "c.tar").write_bytes(b"")
    assert numbers(splits(tmp_path)["train"]) == [1]
    assert "c.tar: the file is empty" in caplog.text


@pytest.mark.parametrize("cut", range(0, 4096, 256))
def test_a_truncated_shard_keeps_what_is_whole(tmp_path, caplog, cut):
    """The reference: the samples whose members lie before the cut. The broken one is counted and listed, or warned of."""
    whole = blob({name: text for i in range(3) for name, text in ((f"{i}.cls", f"{i}"), (f"{i}.txt", f"{i}"))})
    start = 1024 * 2  # of the second sample: a header and a block of data for each member
    (tmp_path / "a.tar").write_bytes(whole[: start + cut])
    found = splits(tmp_path)["train"]
    good = [i for i in range(3) if (i + 1) * 2048 - 511 <= start + cut]  # its one byte is there
    read = []
    for i in range(len(found)):
        try:
            read.append(int(found.read(i)))
        except ValueError as error:
            assert re.match("the shard ends in the middle|the sample has no member", str(error))
            assert i == len(found) - 1
    assert read == good and found.labels.tolist() == list(range(len(found)))
    assert len(found) <= len(good) + 1
    assert "a.tar: the archive breaks off at byte" in caplog.text


def test_a_truncated_shard_is_counted_by_the_loader(tmp_path):
    write(tmp_path / "d", {"a.tar": {f"{i}.txt": f"{i}" for i in range(100, 160)}})
    path = tmp_path / "d" / "a.tar"
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1].offset_data
    path.write_bytes(path.read_bytes()[: last + 1])
    held = data(tmp_path / "d", bad_share=0.1)
    ids = [i for batch in held.train_dataloader() for i in batch["id"].tolist()]
    assert held.skipped == ["a.tar:159.txt"] and sorted(set(ids)) == list(range(59)) and len(ids) == 60


def test_a_broken_header_loses_the_rest_with_a_warning(tmp_path, caplog):
    whole = bytearray(blob({f"{i}.txt": f"{i}" for i in range(5)}))
    whole[1024 * 2 : 1024 * 2 + 100] = b"\xff" * 100
    (tmp_path / "a.tar").write_bytes(whole)
    assert numbers(splits(tmp_path)["train"]) == [0, 1]
    assert "a.tar: the archive breaks off at byte 2048; the last sample is 1" in caplog.text
    splits(tmp_path)  # from the cache
    assert caplog.text.count("breaks off") == 2


def test_a_label_without_a_sample_is_an_unreadable_sample(tmp_path):
    write(
        tmp_path,
        {"a.tar": {"1.cls": "0", "1.txt": "1", "2.cls": "1", "2.md": "", "3.cls": "2", "3.txt": "3", "README.md": ""}},
    )
    found = splits(tmp_path)["train"]
    assert names(found) == ["a.tar:1.txt", "a.tar:2", "a.tar:3.txt"] and found.labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="has no member that could be decoded"):
        found.read(1)
    assert int(found.read(2)) == 3


def test_undecodable_members_are_listed_like_bad_files(tmp_path):
    members = {f"{i}.txt": "bad" if i == 17 else f"{100 + i}" for i in range(36)}
    held = data(write(tmp_path / "d", {"a.tar": members}), bad_share=0.1)
    batches = list(held.train_dataloader())
    assert held.skipped == ["a.tar:17.txt"] and [name for batch in batches for name in batch["bad"]] == ["a.tar:17.txt"]


def scans(monkeypatch):
    """The shards that are really read through."""
    seen, real = [], tars.scan

    def scan(file, shard, asked):
        seen.append(shard.name)
        return real(file, shard, asked)

    monkeypatch.setattr(tars, "scan", scan)
    return seen


def test_an_index_is_found_once_and_again_where_the_shard_changed(tmp_path, monkeypatch):
    seen = scans(monkeypatch)
    root = write(tmp_path / "d", {"a.tar": {"1.txt": "1"}, "b.tar": {"2.txt": "2"}})
    first = splits(root)["train"]
    assert sorted(seen) == ["a.tar", "b.tar"]
    again = splits(root)["train"]
    assert len(seen) == 2 and again.fingerprint() == first.fingerprint() and numbers(again) == [1, 2]
    path, stat = root / "a.tar", (root / "a.tar").stat()
    path.write_bytes(blob({"7.txt": "7"}))  # as long as before
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns
    changed = splits(root)["train"]
    assert seen[2:] == ["a.tar"] and numbers(changed) == [7, 2]
    assert changed.fingerprint() != first.fingerprint() and changed.cache_key() != first.cache_key()
    splits(root, column="txt")  # another question
    assert len(seen) == 5


def test_the_fingerprint_is_of_content_not_of_place(tmp_path):
    one, two = splits(write(tmp_path / "a"))["train"], splits(write(tmp_path / "b"))["train"]
    assert one.fingerprint() == two.fingerprint() and one.cache_key() != two.cache_key()


def test_a_shard_that_changes_under_its_index_is_noticed(tmp_path):
    root = write(tmp_path / "d", {"a.tar": {"1.txt": "1", "2.txt": "2"}})
    dataset = splits(root)["train"]
    (root / "a.tar").write_bytes(blob({"3.txt": "3", "4.txt": "4"}))
    with pytest.raises(ValueError, match=r"a\.tar is not the file that was indexed"):
        dataset.read(0)


def test_a_broken_index_is_made_again(tmp_path, monkeypatch):
    seen, root = scans(monkeypatch), write(tmp_path / "d", {"a.tar": {"1.txt": "1"}})
    splits(root)
    (file,) = indexing.index_folder().glob("*.index")
    file.write_bytes(file.read_bytes()[:50])
    assert numbers(splits(root)["train"]) == [1] and len(seen) == 2


def test_without_a_cache_folder_indexes_are_not_kept(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "file"))
    assert numbers(splits(write(tmp_path / "d", {"a.tar": {"1.txt": "1"}}))["train"]) == [1]
    assert "set MMSSL_CACHE to another folder" in caplog.text


def index_all(root, barrier, found, place):
    real = tars.scan

    def slow(file, shard, asked):
        time.sleep(0.02)
        return real(file, shard, asked)

    tars.scan = slow
    indexing._TOGETHER = 1
    barrier.wait()
    dataset = splits(root)["train"]
    found[place] = (dataset.fingerprint(), numbers(dataset))


def test_processes_that_index_at_once_do_no_harm(tmp_path):
    root = write(tmp_path / "d", sets((3,) * 12))
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        found, barrier = manager.dict(), context.Barrier(3)
        workers = [context.Process(target=index_all, args=(root, barrier, found, i)) for i in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        assert len({found[i][0] for i in range(3)}) == 1 and found[0][1] == list(range(100, 136))
    assert len(list(indexing.index_folder().glob("*.index"))) == 12 and not list(indexing.index_folder().glob("*.tmp"))


def hub(path, values, labels=None, group=4):
    """Parquet as the Hugging Face hub writes it, with small row groups."""
    cells = [{"bytes": None if value is None else str(value).encode(), "path": f"{value}.txt"} for value in values]
    table = pa.table({"dig": cells} | ({} if labels is None else {"label": labels}))
    if labels is not None:
        features = {"label": {"names": ["x", "y", "z"], "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)


def test_parquet_of_bytes(tmp_path):
    hub(tmp_path / "train-0.parquet", range(100, 110), [i % 3 for i in range(10)])
    hub(tmp_path / "train-1.parquet", [110, None], [2, 0])
    found = splits(tmp_path)["train"]
    assert [int(found.blob(i)) for i in range(11)] == list(range(100, 111))
    assert found.classes == ["x", "y", "z"] and found.labels.tolist() == [0, 1, 2] * 3 + [0, 2, 0]
    assert names(found)[8:] == [f"train-0.parquet:{i}.txt" for i in (108, 109)] + [
        "train-1.parquet:110.txt", "train-1.parquet:None.txt",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="the row holds no bytes"):
        found.read(11)
    assert found.found[0].blocks == [4, 4, 2]
    pq.write_table(pa.table({"blob": [b"7", b"8"], "n": [1, 2]}), tmp_path / "plain.parquet")
    plain = splits(tmp_path / "plain.parquet")["train"]
    assert numbers(plain) == [7, 8] and names(plain) == ["plain.parquet:0", "plain.parquet:1"]


def test_row_groups_are_read_once_in_a_stretch(tmp_path, monkeypatch):
    hub(tmp_path / "a.parquet", range(100, 148))
    dataset = splits(tmp_path, window=12)["train"]
    read, real = [], pq.ParquetFile.read_row_group

    def counted(self, group, **said):
        read.append(group)
        return real(self, group, **said)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    assert [int(dataset.blob(i)) - 100 for i in dataset.order(0, 0).tolist()] == dataset.order(0, 0).tolist()
    assert sorted(read) == list(range(12))


def test_parquet_errors(tmp_path):
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"], "c": ["d/1.txt"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"several columns of bytes; name one of a, b"):
        splits(tmp_path)
    assert numbers(splits(tmp_path, column="b")["train"]) == [2]
    with pytest.raises(ValueError, match=r"c of .*t\.parquet holds bytes; its columns are: a, b, c.*data=manifest"):
        splits(tmp_path, column="c")
    with pytest.raises(ValueError, match=r"data\.source\.column=d: .* no such column"):
        splits(tmp_path, column="d")
    with pytest.raises(ValueError, match=r"data\.source\.label=lable: .* no such column"):
        splits(tmp_path, column="a", label="lable")
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"t\.parquet is no Parquet file"):
        splits(tmp_path)


class Lazy(Digits):
    """An adapter that only opens files."""

    decode = property(lambda self: (_ for _ in ()).throw(AttributeError("decode")))

    def open(self, path):
        assert path.suffix == ".txt"
        return Digits().decode(path.read_bytes())


def test_an_adapter_that_only_opens_files_gets_one(tmp_path):
    from mmssl.data.shards import Shards

    dataset = Shards(Lazy(), root=str(write(tmp_path / "d"))).splits()["train"]
    assert numbers(dataset) == numbers(dataset) and len(set(numbers(dataset))) == len(dataset)


def test_a_data_set_goes_to_another_process(tmp_path):
    import pickle

    dataset = splits(write(tmp_path / "d"))["train"]
    assert numbers(dataset) == numbers(pickle.loads(pickle.dumps(dataset)))
    hub(tmp_path / "p" / "a.parquet", range(100, 110))
    dataset = splits(tmp_path / "p")["train"]
    assert numbers(dataset) == numbers(pickle.loads(pickle.dumps(dataset)))
