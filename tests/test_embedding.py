"""`embed`: every row of every split, written in formats that other libraries read back."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from torch import nn

from mmssl.config.compose import ConfigError
from mmssl.run import embedding
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


@pytest.mark.parametrize("suffix", embedding.FORMATS)
def test_features_of_all_splits_are_written(held, tmp_path, suffix):
    out = tmp_path / f"features{suffix}"
    told = embedding.embed(SimpleNamespace(network=Plain()), held, TREE, out)
    want = expected(held)
    assert told == {"file": str(out), "rows": 20, "dim": 3}
    if suffix == ".npz":
        found = dict(np.load(out, allow_pickle=False))
    elif suffix == ".parquet":
        found = {name: np.array(values) for name, values in pq.read_table(out).to_pydict().items()}
    else:
        with safe_open(out, "np") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            found["split"] = np.array(file.metadata()["splits"].split(","))[found["split"]]
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
