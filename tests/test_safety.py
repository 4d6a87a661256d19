"""What a run keeps of the step whose loss is no number, in every modality."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mmssl
from mmssl.run.safety import Diverged, Guard, plain

RECIPES = {
    "image/mae": "x", "video/videomae": "x", "audio/audio_mae": "x.data", "pointcloud/point_mae": "x",
    "graph/graphmae": "x.x", "tabular/remasker": "x.values", "multimodal/croma": "radar",
}  # fmt: skip
NAN = torch.tensor(float("nan"))


def failed(folder, batch, **terms):
    with pytest.raises(Diverged) as raised:
        looked(folder, batch, loss=NAN, **terms)
    return str(raised.value)


def looked(folder, batch, **latest):
    trainer: Any = SimpleNamespace(global_step=3)
    module = SimpleNamespace(latest=latest, device=torch.device("cpu"))
    guard = Guard(folder)
    guard.on_train_batch_end(trainer, module, None, batch, 0)
    guard.check()


def leaf(tree, name):
    for key in name.split("."):
        tree = tree[key]
    return tree


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_batch_is_kept_as_what_may_be_read_without_running_code(recipe, tmp_path):
    small = [] if recipe.startswith("graph/") else ["data.batch_size=2"]
    _, data = mmssl.build(recipe, ["data=sample", *small])
    batch = data.batch([(0, i) for i in range(data.batch_size)])
    said = failed(tmp_path, batch, good=torch.tensor(1.0))
    assert "The loss is nan at step 3; not finite: only their sum. " in said
    kept = torch.load(tmp_path / "offending_batch.pt", weights_only=True)
    assert kept["id"].tolist() == batch["id"].tolist()
    name = RECIPES[recipe]
    view, _, rest = name.partition(".")
    given = getattr(batch[view].data, rest) if rest else batch[view].data
    assert torch.equal(leaf(kept, name), given)


def test_what_is_not_finite_is_named(tmp_path):
    _, data = mmssl.build("tabular/remasker", ["data=sample", "data.batch_size=2"])
    batch = data.batch([(0, 0), (0, 1)])
    batch["x"].data.values[1, 2:4] = float("inf")
    said = failed(tmp_path, batch, cells=NAN, other=torch.tensor(2.0), **{"cells/spread": NAN})
    assert "not finite: the term cells, 2 values of the view x.values. The batch is saved as" in said


def test_a_loss_that_is_a_number_is_none_of_its_business(tmp_path):
    looked(tmp_path, {}, loss=torch.tensor(1.0))
    assert not list(tmp_path.iterdir())


def test_what_has_no_plain_form_is_told_in_words():
    assert plain({1: (torch.Size([2]), None, object)}) == {"1": [[2], None, repr(object)]}
