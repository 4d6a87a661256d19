import logging
import pickle

import numpy as np
import pytest
import torch

from mmssl.data import ragged
from mmssl.data.folder import Folder
from mmssl.data.memory import keep
from mmssl.data.ragged import Decoded
from tests.data.toy import Digits, write


class Word:
    """A lazy sample: digits that are counted at once, but read only when asked."""

    def __init__(self, values, note):
        self.values, self.said = values, note

    def size(self):
        return len(self.values)

    def whole(self):
        if 9 in self.values:
            raise ValueError("a nine")
        return torch.tensor([list(self.values)], dtype=torch.uint8)

    def note(self):
        return self.said

    @classmethod
    def over(cls, array, note):
        return cls(array[0], note)


class Words(Digits):
    """Any number of digits, opened lazily."""

    def open(self, path):
        text = path.read_text().strip()
        if not text.isdigit():
            raise ValueError("not digits")
        return Word([int(c) for c in text], {"length": len(text)})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def words(tmp_path, count=40, **odd):
    files = {f"{i:03}.txt": "12345678"[: 1 + i % 7] for i in range(count)}
    write(tmp_path / "d", files | {f"{name[1:]}.txt": text for name, text in odd.items()})
    return again(tmp_path)


def again(tmp_path):
    return Folder(Words(), root=str(tmp_path / "d"), test_share=0).splits()["train"]


def test_samples_of_any_length_are_decoded_once(tmp_path, cache, monkeypatch):
    dataset = words(tmp_path)
    kept = keep(dataset, 1)
    assert isinstance(kept, Decoded) and kept.in_memory and len(kept) == 40 and kept.cache_key() is None
    for i in range(40):
        assert torch.equal(kept.read(i).whole(), dataset.read(i).whole())
        assert kept.read(i).note() == dataset.read(i).note() and kept.name(i) == dataset.name(i)
    assert kept.fingerprint() == dataset.fingerprint() and isinstance(kept.read(3).values, np.memmap)
    assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".u8"]  # nothing temporary stays
    assert kept.path.stat().st_size == sum(1 + i % 7 for i in range(40))
    monkeypatch.setattr(ragged, "_decode", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(keep(again(tmp_path), 1).read(6).whole(), dataset.read(6).whole())


def test_it_travels_as_a_path(tmp_path):
    kept = keep(words(tmp_path), 1)
    sent = pickle.loads(pickle.dumps(kept))
    assert len(pickle.dumps(kept)) < 20_000 and torch.equal(sent.read(13).whole(), kept.read(13).whole())


def test_what_cannot_be_decoded_is_listed_and_the_rest_is_kept(tmp_path, caplog):
    dataset = words(tmp_path, _005="129", _011="letters")
    with caplog.at_level(logging.WARNING):
        kept = keep(dataset, 1)
    assert isinstance(kept, Decoded)
    assert "2 samples cannot be decoded" in caplog.text and "005.txt: a nine; 011.txt: not digits" in caplog.text
    for i, reason in ((5, "a nine"), (11, "not digits")):
        with pytest.raises(ragged.BadSample, match=reason):
            kept.read(i)
    assert kept.read(6).whole().shape == (1, 7) and kept.read(12).whole().shape == (1, 6)
    caplog.clear()
    keep(again(tmp_path), 1)
    assert "005.txt" in caplog.text  # said in every run, not only in the one that decoded


def test_too_large_a_set_stays_as_it_is(tmp_path, cache, monkeypatch):
    """By the estimate, or by what is decoded where the few samples that were looked at are the small ones."""
    dataset = words(tmp_path, 50)
    assert keep(dataset, 0) is dataset and not cache.exists()
    monkeypatch.setattr(Word, "size", lambda self: 2**20)
    assert keep(dataset, 1) is dataset
    assert [file.name.split(".")[1:] for file in cache.iterdir()] == [["1", "unfit"]]
    monkeypatch.setattr(Word, "size", lambda self: 1)
    monkeypatch.setattr(Word, "whole", lambda self: torch.zeros(2**20, dtype=torch.uint8))
    assert keep(dataset, 2) is dataset
    assert sorted(file.suffix for file in cache.iterdir()) == [".unfit", ".unfit"]
    monkeypatch.setattr(ragged, "_decode", lambda *_: pytest.fail("tried again"))
    assert keep(dataset, 2) is dataset


def test_a_smaller_budget_counts_for_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(Word, "whole", lambda self: torch.zeros(2**16, dtype=torch.uint8))
    dataset = words(tmp_path)  # 40 times 64 KiB
    assert isinstance(keep(dataset, 3), Decoded)
    assert keep(dataset, 2) is dataset
    assert isinstance(keep(dataset, 3), Decoded)


def test_changed_files_are_decoded_again(tmp_path):
    keep(words(tmp_path), 1)
    assert keep(words(tmp_path, _007="888"), 1).read(7).whole().tolist() == [[8, 8, 8]]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "file"))
    dataset = words(tmp_path)
    assert keep(dataset, 1) is dataset and "MMSSL_CACHE" in caplog.text
