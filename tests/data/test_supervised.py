"""The labelled splits that fine-tuning reads."""

from __future__ import annotations

import pytest
import torch

from mmssl.data.module import Data
from mmssl.data.supervised import Supervised, held_out
from tests.data.toy import Digits, classes, data


class Some:
    """Twenty samples of a number each, with labels."""

    in_memory, classes = True, None

    def __init__(self, labels, name="some"):
        self.labels = None if labels is None else torch.as_tensor(labels)
        self.origin = name

    def __len__(self):
        return 20 if self.labels is None else len(self.labels)

    def read(self, i):
        return torch.tensor([float(i)])

    def name(self, i):
        return f"{self.origin}[{i}]"

    def fingerprint(self):
        return self.origin

    def cache_key(self):
        return None


def split(share=0.1, unit="sample", **splits):
    class Source:
        def __init__(self, adapter):
            self.unit = unit

        def splits(self):
            return dict(splits)

    return Supervised(None, source=Source, share=share)


def test_validation_is_a_part_of_each_class():
    labels = [0] * 10 + [1] * 6 + [2] * 1 + [-1] * 3
    made = split(0.25, train=Some(labels), test=Some([0, 1])).splits()
    counts = {name: torch.bincount(part.labels, minlength=3).tolist() for name, part in made.items()}
    assert counts == {"train": [8, 4, 1], "val": [2, 2, 0], "test": [1, 1, 0]}
    names = {name: {part.name(i) for i in range(len(part))} for name, part in made.items() if name != "test"}
    assert not names["train"] & names["val"] and len(names["train"] | names["val"]) == 17
    assert float(made["val"].read(0)) == int(made["val"].name(0)[5:-1])
    again = split(0.25, train=Some(labels), test=Some([0, 1])).splits()
    assert again["val"].fingerprint() == made["val"].fingerprint() != made["train"].fingerprint()


def test_a_validation_split_is_taken_as_it_is():
    made = split(train=Some([0, 1, -1, 1]), val=Some([0, -1, 1]), test=Some([0, 1])).splits()
    assert [made[name].labels.tolist() for name in ("train", "val", "test")] == [[0, 1, 1], [0, 1], [0, 1]]


def test_what_is_not_tested_on_otherwise_becomes_the_test_split():
    made = split(train=Some([0, 1] * 10), val=Some([1, 0, 1])).splits()
    assert made["test"].labels.tolist() == [1, 0, 1]
    assert torch.bincount(made["val"].labels).tolist() == [1, 1] and len(made["train"]) == 18


def test_labels_of_tokens_are_hidden_and_not_their_samples():
    labels = torch.full((1, 40), -1)
    labels[0, :30] = torch.arange(30) % 3
    made = split(0.2, "token", train=Some(labels), test=Some(labels)).splits()
    train, val = made["train"].labels, made["val"].labels
    assert train.shape == val.shape == (1, 40) and not bool(((train >= 0) & (val >= 0)).any())
    assert torch.where(train >= 0, train, val).tolist() == labels.tolist()
    assert torch.bincount(val[val >= 0]).tolist() == [2, 2, 2]
    assert made["train"].fingerprint() != made["val"].fingerprint() and made["train"].name(0) == "some[0]"


def test_held_out_keeps_one_of_each_class():
    labels = torch.tensor([0, 0, 1, -1])
    held = held_out(labels, 0.9)
    assert int(held[:2].sum()) == 1 and not held[2:].any()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"train": Some(None)}, r"the train split \(20 samples\) has no labels, which fine-tuning needs"),
        ({"train": Some([-1, -1])}, r"has no labels"),
        ({"train": Some([0, 1, 2])}, r"no class of the train split has two labelled samples"),
        ({"train": Some([0]), "share": 1.5}, r"data\.source\.share has to be between 0 and 1"),
    ],
)
def test_data_that_cannot_be_fine_tuned_on(said, message):
    with pytest.raises(ValueError, match=message):
        split(**said).splits()


def test_the_data_module_reads_it():
    labels = torch.arange(40) % 4

    class Source:
        def __init__(self, adapter):
            pass

        def splits(self):
            return {"train": Some(labels), "test": Some(labels[:8])}

    def source(adapter):
        return Supervised(adapter, source=Source)

    held = Data(Digits(), 0, source=source, views={"x": []}, view=[], batch_size=6, workers=0)
    assert held.facts()["splits"] == {"train": 36, "test": 8, "val": 4}
    seen = next(iter(held.train_dataloader()))
    assert torch.equal(seen["label"], held.splits["train"].labels[seen["id"]])


def test_evaluation_may_see_several_draws_of_a_training_view(tmp_path):
    held = data(classes(tmp_path))
    rows = list(held.eval_loader("train", 6, "b", 3))
    ids, seen = torch.cat([row["id"] for row in rows]), torch.cat([row["x"].data for row in rows])
    assert len(ids) == 18 and torch.equal(ids[::3], held.chosen("train", 6))
    assert torch.equal(ids.view(6, 3), ids[::3].unsqueeze(1).expand(6, 3))
    assert not bool((seen.view(6, 3, -1) == seen.view(6, 3, -1)[:, :1]).all())
    assert torch.equal(
        seen, torch.cat([row["x"].data for row in data(tmp_path, seed=5).eval_loader("train", 6, "b", 3)])
    )
    assert len(next(iter(held.eval_loader("train", 6)))["id"]) == 4
