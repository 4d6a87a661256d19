"""The recipe end to end: a short run on the sample, its checkpoint, and the table filled by it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet
import pytest
import torch

import mmssl
from mmssl import api
from mmssl.modalities.tabular.sets import TabularSample
from mmssl.types import View

torch.set_num_threads(1)
SMALL = [
    "data=sample", "encoder.dim=16", "encoder.depth=1", "encoder.heads=2", "objective.cells.predictor.dim=16",
    "objective.cells.predictor.depth=1", "objective.cells.predictor.heads=2", "evaluation.limit=200",
    "trainer.max_steps=30", "optim.base_lr=null", "optim.lr=3e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return mmssl.pretrain("tabular/remasker", [*SMALL, f"run.root={tmp_path_factory.mktemp('runs')}"])


def test_a_short_run_learns_and_is_scored(run):
    summary = run.summary
    assert summary["status"] == "completed" and summary["train"]["loss"] < 0.7 * summary["train"]["first_loss"]
    assert {"knn", "linear"} <= set(summary["eval"]) and summary["skipped"]["count"] == 0
    for score in summary["eval"].values():
        assert score["raw_input"] is not None and score["random_init"] is not None
    facts = json.loads((run.path / "data.json").read_text())
    assert [column["name"] for column in facts["columns"]][:2] == ["age", "workclass"] and facts["rows"] == 12000
    assert (run.path / "pictures" / "reconstructions.png").is_file()


def test_the_encoding_lies_in_the_checkpoint(run):
    """The encoder that is taken away scales rows by itself."""
    content = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)
    assert [column["name"] for column in content["mmssl"]["facts"]["columns"]][-1] == "native_country"
    network = mmssl.load(run.path)
    data = mmssl.build("tabular/remasker", SMALL)[1]
    test = data.splits["test"]
    cells = data.adapter.collate([test.read(i) for i in range(64)])
    assert cells.given is not None, "missing cells are among them"
    units = torch.from_numpy(data.adapter.encoding.decode(cells.values.numpy()))
    with torch.no_grad():
        first = network(View(cells, "tabular")).pool()
        second = network(torch.where(cells.given, units, torch.nan)).pool()
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_the_table_is_filled(run, tmp_path):
    result = api.embed(str(run.path), tmp_path / "filled.parquet", what="imputed")
    after = pyarrow.parquet.read_table(tmp_path / "filled.parquet")
    table = TabularSample(None).splits()["train"]
    assert result["rows"] == after.num_rows == 16000 and sum(result["filled"].values()) == int(
        np.isnan(table.table.values).sum()
    )
    assert all(column.null_count == 0 for column in after.columns)
    before = table.original.table
    for name in before.column_names:
        old, new = before[name].to_pylist(), after[name].to_pylist()
        assert all(o == n for o, n in zip(old, new, strict=True) if o is not None)
