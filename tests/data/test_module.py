import json

import numpy as np
import pytest
import torch

from mmssl.data.module import Data
from mmssl.data.skipped import Skipped
from mmssl.data.source import Arrays, BadSample
from mmssl.draws import Draws, shuffle
from mmssl.types import View
from tests.data.toy import Digits, classes, data, jitter, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def same(one, two):
    assert one.keys() == two.keys()
    for key, value in one.items():
        other = two[key]
        if isinstance(value, View):
            value, other = value.data, other.data
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key


def all_same(ones, twos):
    ones, twos = list(ones), list(twos)
    assert len(ones) == len(twos)
    for one, two in zip(ones, twos, strict=True):
        same(one, two)


def test_a_batch_is_what_its_definition_says(tmp_path):
    """Samples in the order of the epoch; each operation draws from (seed, epoch, sample, view, place)."""
    held = data(classes(tmp_path / "d"), seed=5, folder={"test_share": 0})
    dataset = held.splits["train"]
    batch = next(iter(held.train_dataloader()))
    ids = shuffle(20, 5, 0)[:4]
    assert torch.equal(batch["id"], ids) and batch["epoch"].tolist() == [0] * 4 and batch["bad"] == []
    assert torch.equal(batch["label"], dataset.labels[ids])
    draws = Draws.of(5, 0, ids)
    raw = torch.stack([dataset.read(int(i)) for i in ids])
    for name, count in {"a": 2, "b": 1}.items():
        moved = sum(draws.named(f"view/{name}/{place}").integers(0, 50, 1) for place in range(count))
        assert torch.equal(batch[name].data, raw + moved.to(torch.uint8))
        assert batch[name].modality == "digits"


def test_unlabelled_data_have_no_label(tmp_path):
    held = data(write(tmp_path, {f"{i}.txt": f"{i}" for i in range(5)}))
    assert "label" not in next(iter(held.train_dataloader()))
    assert held.eval_loader("test") is None


def test_workers_change_nothing(tmp_path):
    root = classes(tmp_path / "d")
    all_same(data(root).train_dataloader(), data(root, workers=2).train_dataloader())


def test_memory_changes_nothing(tmp_path):
    root = classes(tmp_path / "d")
    fast, slow = data(root), data(root, memory_mb=0)
    all_same(fast.train_dataloader(), slow.train_dataloader())
    assert fast.dataset("train").in_memory and not slow.dataset("train").in_memory
    assert fast.facts() == slow.facts()


def test_epochs_follow_each_other_and_resume_is_a_start(tmp_path):
    root = classes(tmp_path / "d")
    loader = data(root).train_dataloader()
    epochs = [list(loader), list(loader)]
    assert [batch["epoch"].unique().tolist() for batches in epochs for batch in batches] == [[0]] * 4 + [[1]] * 4
    resumed = data(root)
    resumed.set_start(1, 2)
    all_same(resumed.train_dataloader(), epochs[1][2:])


def test_ranks_and_accumulation_see_the_same_global_batch(tmp_path):
    root = classes(tmp_path / "d")
    whole = list(data(root).train_dataloader())
    parts = []
    for rank in range(2):
        held = data(root)
        held.set_share(rank, 2, 2)
        parts.append(list(held.train_dataloader()))
    for step, batch in enumerate(whole):
        pieces = [parts[rank][2 * step + piece] for rank in range(2) for piece in range(2)]
        for key in ("a", "b"):
            assert torch.equal(torch.cat([piece[key].data for piece in pieces]), batch[key].data)
        for rank in range(2):
            first, second = parts[rank][2 * step : 2 * step + 2]
            assert first["later"] == [second] and "later" not in second


def test_facts(tmp_path):
    root = classes(tmp_path / "d")
    facts = data(root, size=32).facts()
    numbers = [data(root).splits["train"].read(i).float() for i in range(18)]
    assert facts["mean"] == pytest.approx(float(torch.stack(numbers).mean()))
    wanted = {"width": 3, "counted": 18, "size": 32, "classes": ["ant", "bee"], "samples": 18}
    assert wanted.items() <= facts.items() and facts["splits"] == {"train": 18, "test": 2}
    assert facts == data(root, seed=1, size=32).facts() and json.loads(json.dumps(facts)) == facts
    write(root, {"ant/000.txt": "10000"})
    with pytest.raises(RuntimeError):  # the toy does not stack samples of unequal length
        data(root, folder={"test_share": 0}).facts()


def test_facts_are_measured_on_at_most_4096(tmp_path, monkeypatch):
    monkeypatch.setattr("mmssl.data.module._MEASURED", 6)
    held = data(classes(tmp_path / "d"), folder={"test_share": 0})
    chosen = shuffle(20, 0, 0)[:6].sort().values.tolist()
    wanted = torch.stack([held.splits["train"].read(i).float() for i in chosen]).mean()
    assert held.facts()["mean"] == pytest.approx(float(wanted)) and held.facts()["counted"] == 6


def test_evaluation_is_in_order_and_knows_no_seed(tmp_path):
    from tests.data.toy import jitter

    root = classes(tmp_path / "d")
    one = list(data(root, view=[jitter], batch_size=5).eval_loader("train"))
    all_same(one, data(root, view=[jitter], batch_size=5, seed=9).eval_loader("train"))
    assert [i for batch in one for i in batch["id"].tolist()] == list(range(18))
    assert [len(batch["x"].data) for batch in one] == [5, 5, 5, 3]
    labels = torch.cat([batch["label"] for batch in one])
    assert torch.equal(labels, data(root).splits["train"].labels)


def test_limited_evaluation_draws_from_all_classes(tmp_path):
    held = data(classes(tmp_path / "d", 50), folder={"test_share": 0})
    ids = torch.cat([batch["id"] for batch in held.eval_loader("train", limit=40)])
    assert len(ids) == 40 and (ids.diff() > 0).all() and torch.equal(ids, held.chosen("train", 40))
    assert held.splits["train"].labels[ids].bincount().min() > 10


def test_plain_samples_and_one_batch(tmp_path):
    held = data(write(classes(tmp_path / "d"), {"ant/000.txt": "bad"}), folder={"test_share": 0}, bad_share=0.5)
    assert [(i, sample.tolist()) for i, sample in held.plain("train", [0, 1])] == [(1, [1, 0, 2])]
    same(held.batch([(0, int(i)) for i in shuffle(20, 0, 0)[:4]]), next(iter(held.train_dataloader())))


def test_unreadable_samples_are_replaced_by_the_next(tmp_path):
    root = write(classes(tmp_path / "d", 50), {"ant/002.txt": "bad", "ant/004.txt": "bad"})
    held = data(root, folder={"test_share": 0}, bad_share=0.5)
    batches = list(held.train_dataloader())
    ids = [i for batch in batches for i in batch["id"].tolist()]
    assert 1 not in ids and 2 not in ids and ids.count(3) == 3  # 1 and 2 stand for 3: ant/006
    wanted = [3 if i in (1, 2) else i for i in shuffle(100, 0, 0).tolist()]
    assert ids == wanted
    assert sorted(held.skipped) == ["ant/002.txt", "ant/004.txt"]
    assert sorted({name for batch in batches for name in batch["bad"]}) == sorted(held.skipped)
    for batch in batches:
        assert torch.equal(batch["label"], held.splits["train"].labels[batch["id"]])


def test_evaluation_leaves_unreadable_samples_out(tmp_path):
    root = write(classes(tmp_path / "d", 50), {"ant/002.txt": "bad"})
    held = data(root, folder={"test_share": 0}, bad_share=0.1)
    ids = torch.cat([batch["id"] for batch in held.eval_loader("train")])
    assert ids.tolist() == [i for i in range(100) if i != 1] and held.skipped == ["ant/002.txt"]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_unreadable_samples_are_an_error(tmp_path, workers):
    root = write(classes(tmp_path / "d", 50), {f"ant/{i:03}.txt": "bad" for i in range(0, 40, 2)})
    held = data(root, folder={"test_share": 0}, workers=workers, bad_share=0.1)
    with pytest.raises(
        ValueError, match=r"data\.bad_share=0\.1: \d+ of \d+ samples cannot be read: ant/.*: not digits"
    ):
        list(held.train_dataloader())


def test_a_bad_sample_counts_once(tmp_path):
    root = write(classes(tmp_path / "d", 50), {"ant/002.txt": "bad"})
    held = data(root, folder={"test_share": 0}, bad_share=0.01)
    loader = held.train_dataloader()
    for _ in range(3):
        list(loader)  # 1 of 100 is just the share allowed, and 1 of the first 70 proves nothing yet
    assert held.skipped == ["ant/002.txt"]


def test_the_share_is_exact_once_all_is_read():
    held, dataset = Skipped(0.01), Arrays(np.zeros((400, 1), np.uint8), None, None, "x")
    held.note("train", dataset, torch.arange(100), ["x[399]", "x[398]", "x[397]"])  # of 103: may be chance
    held.note("train", dataset, torch.arange(395), ["x[396]"])  # 4 of 399
    with pytest.raises(ValueError, match=r"5 of 400 samples cannot be read"):
        held.note("train", dataset, torch.arange(395), ["x[395]"])
    with pytest.raises(ValueError, match=r"1 of 21 samples"):  # not even one is allowed
        Skipped(0).note("train", dataset, torch.arange(20), ["x[399]"])


def test_nothing_readable_is_an_error_at_once(tmp_path):
    held = data(write(tmp_path, {f"{i}.txt": "bad" for i in range(10)}))
    with pytest.raises(ValueError, match=r"10 samples in a row cannot be read.*not digits"):
        next(iter(held.train_dataloader()))


def test_channels_are_converted(tmp_path):
    held = data(classes(tmp_path / "d"), channels=2, views={"x": []})
    batch = next(iter(held.train_dataloader()))
    assert batch["x"].data.shape == (4, 2) and held.facts()["width"] == 2


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"workers": "many"}, r"data\.workers has to be 'auto' or"),
        ({"batch_size": 0}, r"data\.batch_size has to be a number from 1 on, or 'full'"),
        ({"bad_share": 1}, r"data\.bad_share has to be"),
    ],
)
def test_arguments_are_checked(tmp_path, said, message):
    with pytest.raises(ValueError, match=message):
        data(tmp_path, **said)


def test_batch_sizes_that_do_not_fit(tmp_path):
    held = data(classes(tmp_path / "d"), batch_size=19)
    with pytest.raises(ValueError, match=r"19 is larger than the train split, which has 18.*at most 18"):
        held.train_dataloader()
    with pytest.raises(ValueError, match=r"19 does not divide into 4 ranks x 2 .*set it to 16 or 24"):
        held.set_share(0, 4, 2)
    with pytest.raises(ValueError, match=r"set it to 32$"):
        held.set_share(0, 32)
    held = data(classes(tmp_path / "d"), batch_size=8, drop_last=False)
    held.set_share(0, 2, 2)
    with pytest.raises(ValueError, match=r"leaves 2 samples for the last batch .* 4 parts \(2 ranks x 2 passes\)"):
        held.train_dataloader()


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="no 'tset' split; did you mean 'test'"):
        data(classes(tmp_path / "d")).dataset("tset")


def test_no_global_generator_is_used(tmp_path):
    held = data(classes(tmp_path / "d"))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    held.facts()
    held.batch([(0, 1)])
    assert torch.equal(before, torch.random.get_rng_state())


def test_repeats_are_rows_of_one_sample_with_draws_of_their_own(tmp_path):
    root = classes(tmp_path / "d")
    held = data(root, repeats=3)
    batch = next(iter(held.train_dataloader()))
    once = next(iter(data(root).train_dataloader()))
    assert batch["id"].tolist() == [i for i in once["id"].tolist() for _ in range(3)]
    assert batch["copy"].tolist() == [0, 1, 2] * 4 and torch.equal(batch["label"], once["label"].repeat_interleave(3))
    raw = torch.stack([held.splits["train"].read(int(i)) for i in batch["id"]])
    draws = Draws.of(0, 0, batch["id"], batch["copy"])
    moved = sum(draws.named(f"view/a/{place}").integers(0, 50, 1) for place in range(2))
    assert torch.equal(batch["a"].data, raw + moved.to(torch.uint8))
    assert len({tuple(row) for row in (batch["a"].data - raw)[:3].tolist()}) > 1
    evaluated = next(iter(held.eval_loader("train")))
    assert "copy" not in evaluated and len(evaluated["id"]) == 4


def breaks(sample, draws):
    """A view operation that finds every third sample unreadable only now."""
    if int(sample.sum()) % 3 == 0:
        raise BadSample("a multiple of three")
    return sample


def test_samples_that_break_in_a_view_are_replaced_and_counted(tmp_path):
    held = data(
        classes(tmp_path / "d"), views={"a": [breaks, jitter]}, view=[breaks], bad_share=0.9, folder={"test_share": 0}
    )
    dataset, order = held.splits["train"], shuffle(20, 0, 0)[:4].tolist()
    batch = next(iter(held.train_dataloader()))

    def readable(i):
        return int(dataset.read(i % 20).sum()) % 3 != 0

    want = [next(i + k for k in range(20) if readable(i + k)) % 20 for i in order]
    assert batch["id"].tolist() == want
    assert set(held.skipped) == set(batch["bad"]) and len(batch["bad"]) == sum(not readable(i) for i in order)
    moved = Draws.of(0, 0, batch["id"]).named("view/a/1").integers(0, 50, 1)
    assert torch.equal(batch["a"].data, torch.stack([dataset.read(i) for i in want]) + moved.to(torch.uint8))
    seen = [i for part in held.eval_loader("train") for i in part["id"].tolist()]
    assert seen == [i for i in range(20) if readable(i)]


def test_a_full_batch_is_all_of_train(tmp_path):
    held = data(classes(tmp_path / "d"), batch_size="full", folder={"test_share": 0})
    batches = list(held.train_dataloader())
    assert held.batch_size == 20 and len(batches) == 1 and sorted(batches[0]["id"].tolist()) == list(range(20))
    with pytest.raises(ValueError, match=r"data\.batch_size=full .* 2 ranks x 1 .*seed nodes"):
        held.set_share(0, 2)


class Seeded:
    """A source whose splits can be parts drawn around seeds."""

    unit = "token"

    def __init__(self, adapter):
        self.whole = Arrays(np.zeros((1, 2), np.uint8), None, None, "whole")
        self.parts = Arrays(np.ones((6, 2), np.uint8), None, None, "parts")

    def splits(self):
        return {"train": self.whole}

    def seeds(self):
        return {"train": self.parts}


def test_a_batch_of_seeds_takes_parts_of_the_whole():
    full, seeds = (
        Data(Digits(), 0, source=Seeded, views={"x": []}, view=[], batch_size=size, workers=0) for size in ("full", 3)
    )
    assert len(full.splits["train"]) == 1 and len(seeds.splits["train"]) == 6 and seeds.unit == "token"
    assert full.unit == "token"


def test_facts_fitted_before_are_handed_on(tmp_path):
    class Told(Digits):
        told = None

        def use(self, facts):
            self.told = facts

    held = data(classes(tmp_path / "d"))
    held.adapter = Told()
    facts = held.facts()
    assert held.adapter.told is facts and facts["width"] == 3
    held.use({"width": 7})
    assert held.facts() == held.adapter.told == {"width": 7}


def test_the_last_smaller_batch_may_be_kept(tmp_path):
    root = classes(tmp_path / "d")
    sizes = [
        len(batch["id"])
        for batch in data(root, batch_size=8, drop_last=False, folder={"test_share": 0}).train_dataloader()
    ]
    assert sizes == [8, 8, 4]
