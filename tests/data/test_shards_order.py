"""Shards in training: order, ranks, workers, resuming, and shards behind URLs."""

import http.server
import re
import threading
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from mmssl.data import ranges
from mmssl.data.sampler import EpochBatches
from mmssl.draws import shuffle
from tests.data.tars import UNEVEN, blob, data, numbers, sets, splits, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def remote():
    """The uneven shards behind memory:// URLs."""
    fs = fsspec.filesystem("memory")
    for name, members in sets().items():
        fs.pipe_file(f"/set/{name}", blob(members))
    yield "memory://set"
    fs.rm("/set", recursive=True)


def ids(loader):
    return [batch["id"].tolist() for batch in loader]


def test_one_stretch_is_the_order_of_folders(tmp_path):
    dataset = splits(write(tmp_path))["train"]
    for epoch in range(3):
        assert torch.equal(dataset.order(5, epoch), shuffle(64, 5, epoch))


@pytest.mark.parametrize("window", [1, 8, 20])
def test_neighbours_in_the_order_lie_in_few_shards(tmp_path, window):
    """Every shard is read within one stretch, which begins less than a window before the last of its shards does."""
    dataset = splits(write(tmp_path), window=window)["train"]
    shard_of = torch.repeat_interleave(torch.arange(7), torch.tensor(UNEVEN))
    orders = [dataset.order(seed, epoch) for seed in range(3) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(64))
        visited = shard_of[order]
        spans = [torch.nonzero(visited == shard).flatten() for shard in range(7) if UNEVEN[shard]]
        assert all(span.max() - span.min() < window + max(UNEVEN) for span in spans)
        if window == 1:  # shards one after the other
            assert all(span.max() - span.min() + 1 == len(span) for span in spans)
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)
    assert len({tuple(dict.fromkeys(shard_of[order].tolist())) for order in orders}) > 3
    assert torch.equal(dataset.order(1, 2), splits(tmp_path, window=window)["train"].order(1, 2))


def test_within_a_stretch_samples_are_mixed(tmp_path):
    """Positions of the first shard's samples in its stretch of two equal shards are those of a fair shuffle."""
    dataset = splits(write(tmp_path, sets((50,) * 4)), window=100)["train"]
    means = []
    for epoch in range(100):
        places = torch.argsort(dataset.order(0, epoch))
        means.append(float((places[:50] % 100).double().mean()))
    # the mean of 50 of 0..99 without replacement: 49.5, standard deviation 2.9, of 100 such 0.29
    assert abs(sum(means) / 100 - 49.5) < 4 * 0.29


def test_the_sampler_takes_the_order_of_the_data():
    batches = EpochBatches(6, 2, 3, ordered=lambda seed, epoch: torch.arange(6).roll(seed + epoch))
    assert [[i for _, i in batch] for batch in batches] == [[3, 4], [5, 0], [1, 2]]
    assert [[i for _, i in batch] for batch in batches] == [[2, 3], [4, 5], [0, 1]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_sample_comes_once_an_epoch(tmp_path, world, workers):
    """Over ranks and workers together, with shards of 0 to 31 samples; and the global batches are those of one rank."""
    root = write(tmp_path / "d")
    whole = ids(data(root, drop_last=False, shards={"window": 16}).train_dataloader())
    parts = []
    for rank in range(world):
        held = data(root, drop_last=False, workers=workers, shards={"window": 16})
        held.set_share(rank, world)
        loader = held.train_dataloader()
        parts.append([ids(loader) for _ in range(2)])
        del loader
    for epoch in range(2):
        joined = [[i for rank in range(world) for i in parts[rank][epoch][step]] for step in range(6)]
        assert sorted(i for batch in joined for i in batch) == list(range(64))
        if epoch == 0:
            assert joined == whole
        order = splits(root, window=16)["train"].order(0, epoch).tolist()
        assert [i for batch in joined for i in batch] == order


@pytest.mark.parametrize(("at", "world", "workers"), [(0, 1, 0), (3, 1, 2), (3, 2, 0), (5, 3, 0)])
def test_resuming_in_the_middle_of_an_epoch(tmp_path, at, world, workers):
    """The remaining batches are those that would have come, samples and all, also on another number of ranks."""
    root = write(tmp_path / "d")
    loader = data(root, shards={"window": 16}).train_dataloader()
    wanted = [batch for _ in range(2) for batch in loader][at:]
    got = []
    for rank in range(world):
        held = data(root, workers=workers, shards={"window": 16})
        held.set_share(rank, world)
        held.set_start(0, at)
        loader = held.train_dataloader()
        got.append([batch for _ in range(2) for batch in loader][: len(wanted)])
    for step, batch in enumerate(wanted):
        pieces = [part[step] for part in got]
        assert torch.cat([piece["id"] for piece in pieces]).tolist() == batch["id"].tolist()
        assert {piece["epoch"].unique().item() for piece in pieces} == {batch["epoch"][0].item()}
        assert torch.equal(torch.cat([piece["x"].data for piece in pieces]), batch["x"].data)


def test_decoded_data_come_in_the_same_order(tmp_path):
    """What is kept in memory must not change what is trained on."""
    root = write(tmp_path / "d")
    held = data(root, memory_mb=64, shards={"window": 16})
    assert held.dataset("train").in_memory
    assert ids(held.train_dataloader()) == ids(data(root, shards={"window": 16}).train_dataloader())


def test_decoded_data_are_those_of_the_column(tmp_path):
    members = {name: text for i in range(12) for name, text in ((f"{i}.txt", f"{100 + i}"), (f"{i}.dig", f"{300 + i}"))}
    root = write(tmp_path / "d", {"a.tar": members})
    for column, first in (("txt", 100), ("dig", 300), ("txt", 100)):
        dataset = data(root, memory_mb=64, shards={"column": column}).dataset("train")
        assert dataset.in_memory and numbers(dataset) == list(range(first, first + 12))


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_urls(tmp_path, remote, workers):
    local = data(write(tmp_path / "d"))
    held = data(remote, workers=workers)
    assert held.facts() == local.facts()
    for one, two in zip(held.train_dataloader(), local.train_dataloader(), strict=True):
        assert torch.equal(one["id"], two["id"]) and torch.equal(one["x"].data, two["x"].data)
    pattern = splits(f"{remote}/train-{{000..002}}.tar")["train"]
    assert numbers(pattern) == list(range(100, 127)) == numbers(splits(f"{remote}/train-00[0-2].tar")["train"])
    with pytest.raises(ValueError, match=r"data\.root=memory://set/trian-\*\.tar matches no shard .* 'train-000\.tar'"):
        splits(f"{remote}/trian-*.tar")


def test_file_urls(tmp_path):
    root = write(tmp_path / "d")
    assert splits(f"file://{root}")["train"].fingerprint() == splits(root)["train"].fingerprint()


def test_remote_shards_are_copied_once_and_whole(tmp_path, remote, monkeypatch):
    fetched, real = [], MemoryFileSystem.get_file

    def get_file(self, path, target, **said):
        fetched.append(path)
        assert Path(target).suffix != ".tar"  # never to the final name
        return real(self, path, target, **said)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    copies = tmp_path / "copies"
    held = splits(remote, copies=str(copies))["train"]
    (copies / f"{'0' * 32}.tmp").write_bytes(b"what a kill has left")
    threads = [threading.Thread(target=numbers, args=(held,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(held) == list(range(100, 164)) == numbers(splits(remote, copies=str(copies))["train"])
    assert sorted(fetched) == sorted({*fetched}) and len([*copies.glob("*.tar")]) == 7
    fsspec.filesystem("memory").rm("/set/train-005.tar")
    assert numbers(held) == list(range(100, 164))  # from the copy


def test_a_full_disk_makes_no_copies(tmp_path, remote, monkeypatch, caplog):
    def full(shard, folder):
        raise OSError(28, "No space left on device")

    dataset = splits(remote, copies=str(tmp_path / "copies"))["train"]
    dataset.ranges.copies = tmp_path / "others"
    monkeypatch.setattr(ranges, "_copy", full)
    assert numbers(dataset) == list(range(100, 164))
    assert caplog.text.count("is full") == 1


def test_a_network_that_fails_for_a_moment_changes_nothing(remote, monkeypatch):
    dataset = splits(remote)["train"]
    failures, real = [2], MemoryFileSystem.cat_file

    def cat_file(self, path, **said):
        if failures[0]:
            failures[0] -= 1
            raise OSError("connection reset")
        return real(self, path, **said)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr(ranges.time, "sleep", lambda seconds: None)
    assert int("".join(map(str, dataset.read(0).tolist()))) == 100
    failures[0] = 99
    with pytest.raises(OSError, match="connection reset"):
        dataset.read(0)
    assert failures[0] == 95
    failures[0] = 0
    fsspec.filesystem("memory").rm("/set/train-000.tar")
    with pytest.raises(FileNotFoundError):
        dataset.read(0)


class Ranged(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with the ranges that http.server itself does not know."""

    def do_GET(self):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        start, stop = (int(wanted[1]), int(wanted[2] or len(content) - 1)) if wanted else (0, len(content) - 1)
        part = content[start : stop + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)
        return None

    def log_message(self, *said):
        pass


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_behind_http(tmp_path, workers):
    """An asynchronous file system, which does not survive a fork, is made anew in every worker."""
    root = write(tmp_path / "d")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *said: Ranged(*said, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/train-{{000..006}}.tar"
        held = data(url, workers=workers)
        assert held.splits["train"].fingerprint() == splits(root)["train"].fingerprint()
        for one, two in zip(held.train_dataloader(), data(root).train_dataloader(), strict=True):
            assert torch.equal(one["id"], two["id"]) and torch.equal(one["x"].data, two["x"].data)
            assert one["bad"] == []
    finally:
        server.shutdown()
        server.server_close()
