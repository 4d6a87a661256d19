import pickle

import numpy as np
import pytest
import torch

from mmssl.data import memory
from mmssl.data.folder import Folder
from tests.data.toy import Digits, classes, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def train(root):
    return Folder(Digits(), root=str(root), test_share=0).splits()["train"]


def test_samples_are_decoded_once_and_mapped(tmp_path, cache, monkeypatch):
    dataset = train(classes(tmp_path / "d"))
    kept = memory.keep(dataset, 1)
    assert kept.in_memory and isinstance(kept.array, np.memmap)
    assert all(torch.equal(kept.read(i), dataset.read(i)) for i in range(20))
    assert kept.labels is dataset.labels and kept.name(3) == dataset.name(3)
    assert kept.fingerprint() == dataset.fingerprint()
    assert [file.suffix for file in cache.iterdir()] == [".npy"]  # nothing temporary stays
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["ant", "bee"]
    monkeypatch.setattr(memory, "_decode", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(memory.keep(train(tmp_path / "d"), 1).read(5), dataset.read(5))


class Turned(Digits):
    """Samples (2, 3, 1) whose first axis is the innermost in memory, as decoders of pictures give them."""

    def decode(self, blob, channels=None):
        return super().decode(blob, channels)[:3].repeat(2, 1).t().contiguous().t().unsqueeze(-1)


def test_a_sample_comes_back_as_it_lay_in_memory(tmp_path, cache):
    dataset = Folder(Turned(), root=str(classes(tmp_path / "d")), test_share=0).splits()["train"]
    kept = memory.keep(dataset, 1)
    assert kept.read(7).stride()[:2] == dataset.read(7).stride()[:2] == (1, 2)
    assert all(torch.equal(kept.read(i), dataset.read(i)) for i in range(20))
    assert kept.array.shape == (20, 3, 1, 2) or kept.array.shape == (20, 3, 2, 1)


def test_what_is_read_can_be_written_to(tmp_path):
    kept = memory.keep(train(classes(tmp_path / "d")), 1)
    before = kept.read(0)
    kept.read(0).zero_()
    assert torch.equal(kept.read(0), before)


def test_changed_files_are_decoded_again(tmp_path):
    memory.keep(train(classes(tmp_path / "d")), 1)
    write(tmp_path / "d", {"ant/000.txt": "999"})
    assert memory.keep(train(tmp_path / "d"), 1).read(0).tolist() == [9, 9, 9]


def test_a_kept_set_travels_as_a_path(tmp_path):
    kept = memory.keep(train(classes(tmp_path / "d")), 1)
    again = pickle.loads(pickle.dumps(kept))
    assert isinstance(again.array, np.memmap) and torch.equal(again.read(7), kept.read(7))
    inside = memory.Kept(kept.dataset, np.array(kept.array), (0,))
    assert torch.equal(pickle.loads(pickle.dumps(inside)).read(7), kept.read(7))


def test_large_sets_are_not_kept(tmp_path, cache):
    dataset = train(classes(tmp_path / "d"))
    assert memory.keep(dataset, 0) is dataset and not cache.exists()


@pytest.mark.parametrize("odd", ["1", "not digits"])
def test_unlike_or_unreadable_samples_stay_files(tmp_path, cache, odd, monkeypatch):
    """The odd one is not among the few that are looked at first."""
    dataset = train(write(classes(tmp_path / "d", 50), {"ant/002.txt": odd}))
    assert memory.keep(dataset, 1) is dataset
    assert [file.suffix for file in cache.iterdir()] == [".unfit"]
    monkeypatch.setattr(memory, "_decode", lambda *_: pytest.fail("tried again"))
    assert memory.keep(dataset, 1) is dataset


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "file"))
    dataset = train(classes(tmp_path / "d"))
    kept = memory.keep(dataset, 1)
    assert not isinstance(kept.array, np.memmap) and torch.equal(kept.read(3), dataset.read(3))
    assert "MMSSL_CACHE" in caplog.text
