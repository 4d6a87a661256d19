"""`embed`: every row of every split, written in formats that other libraries read back."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from torch import nn

from mmssl import api
from mmssl.config.compose import ConfigError
from mmssl.run import embedding, tables
from mmssl.types import Tokens
from tests.data.toy import classes, data

TREE = {"evaluation": {"pool": "mean"}}


class Plain(nn.Module):
    """Three tokens per sample, each the digits times its number; of odd samples the last token is padding."""

    def forward(self, view):
        x = view.data.float()
        index = torch.arange(3).expand(len(x), 3)
        valid = torch.ones_like(index, dtype=torch.bool)
        valid[:, 2] = x.sum(1) % 2 == 0
        made = torch.stack([x, 2 * x, 3 * x], 1)
        return Tokens(raw=made, pos=index.unsqueeze(-1), index=index, x=made, valid=valid)


@pytest.fixture
def held(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    return data(classes(tmp_path / "d"), view=[])


def expected(held):
    rows = []
    for split in held.splits:
        dataset = held.splits[split]
        for i in range(len(dataset)):
            x = dataset.read(i).float()
            factor = 2.0 if x.sum() % 2 == 0 else 1.5
            rows.append((split, i, int(dataset.labels[i]), (factor * x).tolist()))
    return rows


def opened(out):
    """The columns of a written file, read by the libraries whose formats they are."""
    if out.suffix == ".npz":
        return dict(np.load(out, allow_pickle=False))
    if out.suffix == ".parquet":
        return {name: np.array(values) for name, values in pq.read_table(out).to_pydict().items()}
    with safe_open(out, "np") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        found["split"] = np.array(file.metadata()["splits"].split(","))[found["split"]]
    return found


@pytest.mark.parametrize("suffix", embedding.FORMATS)
def test_features_of_all_splits_are_written(held, tmp_path, suffix):
    out = tmp_path / f"features{suffix}"
    told = embedding.embed(SimpleNamespace(network=Plain()), held, TREE, out)
    want = expected(held)
    assert told == {"file": str(out), "rows": 20, "dim": 3}
    found = opened(out)
    assert found["split"].tolist() == [row[0] for row in want] and found["id"].tolist() == [row[1] for row in want]
    assert found["label"].tolist() == [row[2] for row in want]
    np.testing.assert_allclose(found["x"], [row[3] for row in want])


def test_a_row_per_token_says_which(held):
    for dataset in held.splits.values():
        dataset.labels = None
    found = embedding.table(Plain(), held, "token")
    one = (found["split"] == "train") & (found["id"] == 0)
    x = held.splits["train"].read(0).float().numpy()
    want = 3 if x.sum() % 2 == 0 else 2
    assert found["place"][one].tolist() == list(range(want)) and set(found["label"]) == {-1}
    np.testing.assert_allclose(found["x"][one], [x * (k + 1) for k in range(want)])


def test_what_cannot_be_written_is_refused(held, tmp_path):
    with pytest.raises(
        ConfigError, match=r"out=.*features\.csv: features are written as \.npz, \.parquet, \.safetensors"
    ):
        embedding.embed(SimpleNamespace(network=Plain()), held, TREE, tmp_path / "features.csv")
    with pytest.raises(ConfigError, match=r"what=imputed: the modality digits has no missing values"):
        embedding.impute(Plain(), held, tmp_path / "filled.csv")


def pieces(counts, width=3):
    """Pieces of rows whose values say which row they are."""
    start = 0
    for count in counts:
        number = np.arange(start, start + count)
        x = (number[:, None] * width + np.arange(width)).astype(np.float32)
        yield {"x": x, "label": number % 3, "id": number, "split": np.full(count, "test" if start else "train")}
        start += count


@pytest.mark.parametrize("suffix", embedding.FORMATS)
@pytest.mark.parametrize("counts", [(4, 0, 3, 1), (0, 2), (1,)])
def test_pieces_of_any_size_make_one_table(tmp_path, suffix, counts):
    out = tmp_path / f"features{suffix}"
    assert tables.write(pieces(counts), out, ["train", "validation", "test"]) == (sum(counts), 3)
    found, parts = opened(out), list(pieces(counts))
    assert found.keys() == {"x", "label", "id", "split"}
    for name, values in found.items():
        whole = np.concatenate([part[name] for part in parts])
        assert np.array_equal(values, whole) and (suffix == ".parquet" or values.dtype.kind == whole.dtype.kind)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", embedding.FORMATS)
def test_a_failure_leaves_the_file_that_was_there(tmp_path, suffix):
    out = tmp_path / f"features{suffix}"
    tables.write(pieces((2,)), out, ["train", "test"])
    before = out.read_bytes()

    def broken():
        yield from pieces((2, 2))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        tables.write(broken(), out, ["train", "test"])
    assert out.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [out.name]


MEASURED = """
import os, resource, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from torch import nn
from mmssl.run import embedding
from mmssl.types import Tokens, View

class Wide(nn.Module):
    def forward(self, view):
        x = view.data[:, None, :1].float().expand(-1, 1, 4096).contiguous()
        index = torch.zeros(len(x), 1, dtype=torch.int64)
        return Tokens(raw=x, pos=index.unsqueeze(-1), index=index, x=x)

class Data:
    unit, splits = "sample", {"train": None}
    def __init__(self, batches): self.batches = batches
    def eval_loader(self, split):
        for i in range(self.batches):
            yield {"x": View(torch.full((64, 4), i % 7), ""), "id": torch.arange(64 * i, 64 * i + 64)}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

tree = {"evaluation": {"pool": "mean"}}
for suffix in embedding.FORMATS:
    if os.fork():  # a process each, because a peak never falls
        assert os.wait()[1] == 0
        continue
    out = Path(sys.argv[1]) / f"features{suffix}"
    embedding.embed(SimpleNamespace(network=Wide()), Data(50), tree, out)  # libraries are loaded, all buffers have been in use
    before = peak()
    rows = embedding.embed(SimpleNamespace(network=Wide()), Data(200), tree, out)["rows"]
    print(suffix, rows * 4096 * 4 / 2**20, peak() - before, flush=True)
    os._exit(0)
"""


def test_memory_does_not_grow_with_the_data(tmp_path):
    """200 MiB of features through less than a tenth of that, the growth of the process's peak, as the system counts it."""
    done = subprocess.run([sys.executable, "-c", MEASURED, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    assert [(suffix, float(size)) for suffix, size, _ in told] == [(suffix, 200) for suffix in embedding.FORMATS]
    assert all(float(growth) < 20 for _, _, growth in told), told


def test_a_timm_model_on_data_of_ours(tmp_path):
    small = ["data=sample", "data.size=32", "tokenizer.patch=8", "encoder.pretrained=false", "data.batch_size=500"]
    told = api.embed("timm:test_vit", tmp_path / "features.npz", small)
    found = opened(tmp_path / "features.npz")
    assert told["rows"] == 10_000 and told["dim"] == found["x"].shape[1] == 64
    assert np.isfinite(found["x"]).all() and found["x"].std(0).min() > 0 and set(found["label"]) == set(range(10))
    with pytest.raises(ConfigError, match=r"what=imputed: timm:test_vit predicts no values"):
        api.embed("timm:test_vit", tmp_path / "filled.csv", small, "imputed")
