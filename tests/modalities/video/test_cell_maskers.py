"""VideoMAE V2's second mask against the cells of its paper, and what the term makes of it."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.config import build
from mmssl.draws import Draws
from mmssl.modalities.video.cell_maskers import RunningCell
from mmssl.modalities.video.maskers import Tube
from mmssl.types import Tokens, View


def tokens(grid, b=6):
    n = math.prod(grid)
    index = torch.arange(n).expand(b, n)
    return Tokens(raw=torch.zeros(b, n, 1), pos=torch.zeros(b, n, 3), index=index, grid=grid)


def ask(masker, grid=(8, 14, 14), b=6):
    return masker(tokens(grid, b), Draws.of(0, 0, torch.arange(b)), 0.0, None)


def test_cells_run_as_in_the_released_code():
    left_out = ~RunningCell(masker=Tube()).asked((4, 4, 4), torch.tensor([0]))[0]
    wanted = [[[1, 0], [0, 1]], [[0, 0], [1, 1]], [[0, 1], [1, 0]], [[1, 1], [0, 0]]]
    assert torch.equal(left_out.int(), torch.tensor(wanted, dtype=torch.int32).repeat(1, 2, 2))
    queue = [1, 1, 0, 0]
    for start in range(4):
        found = ~RunningCell(masker=Tube()).asked((8, 2, 2), torch.tensor([start]))[0]
        for time in range(8):
            assert found[time].flatten().tolist() == [bool(queue[(j + start + 1 + time) % 4]) for j in range(4)]
    for ratio, count in ((0.25, 1), (0.75, 3)):
        one = ~RunningCell(masker=Tube(), ratio=ratio).asked((8, 2, 2), torch.tensor([1]))[0]
        assert (one.sum((1, 2)) == count).all() and (one.sum(0) == 2 * count).all()


def test_the_decoder_is_asked_for_784_and_704_count():
    mask = ask(RunningCell(masker=Tube(ratio=0.9)))
    assert (mask.visible.sum(1) == 160).all() and (mask.visible_count, mask.target_count) == (160, 784)
    assert (mask.targets.sum(2) == 784).all() and (mask.loss.sum(2) == 704).all()
    assert torch.equal(mask.loss[:, 0], mask.targets[:, 0] & mask.hidden)
    assert len({tuple(row.tolist()) for row in mask.targets[:, 0]}) > 1  # samples start their cells apart
    tube = Tube(ratio=0.9)(tokens((8, 14, 14)), Draws.of(0, 0, torch.arange(6)).named("encoder"), 0.0, None)
    assert torch.equal(mask.visible, tube.visible)


def test_the_loss_is_over_what_is_asked_for_and_hidden():
    decoder = {"_target_": "predictor/transformer", "dim": 24, "depth": 1, "heads": 2, "prefix": "none"}
    tree = {
        "modality": "video", "seed": 0, "keep": "student", "views": {"x": []}, "data": {"batch_size": 2},
        "tokenizer": {"_target_": "tokenizer/tubelet", "size": 16, "patch": 4, "frames": 4, "tubelet": 2},
        "encoder": {"_target_": "encoder/vit", "dim": 24, "depth": 1, "heads": 2, "class_token": False},
        "masker": {"_target_": "masker/running_cell", "masker": {"_target_": "masker/tube", "ratio": 0.75}},
        "corruptor": {"_target_": "corruptor/drop"}, "optim": {"_target_": "optim/adamw", "lr": 1e-3},
        "objective": {"pixels": {
            "_target_": "term/predict", "predictor": decoder, "loss": {"_target_": "loss/mse"},
            "target": {"_target_": "target/raw"},
        }},
    }  # fmt: skip
    part = build.module(tree, {"channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3})
    clip = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    step = part.begin({"x": View(clip, "video"), "id": torch.arange(2), "epoch": torch.zeros(2, dtype=torch.int64)})
    term = part.objective["pixels"]
    total, count = term(step)
    mask, look = step["x"].mask, step["x"]
    assert int(count) == int(term.count(step)) == int(mask.loss.sum()) < int(mask.targets.sum()) == 2 * 16
    index = mask.target_index[0][:, 0]
    query = look.tokens.take(index)
    x = torch.cat([term.predictor.embed(look.seen.x), term.predictor.mask_token.expand(2, 16, -1)], 1)
    x = x + torch.cat([term.predictor.position(look.seen), term.predictor.position(query)], 1)
    for block in term.predictor.blocks:
        x = block(x)
    losses = (term.predictor.head(term.predictor.norm(x[:, -16:])) - query.raw).square().mean(-1)
    torch.testing.assert_close(total, losses[mask.hidden.gather(1, index)].sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(8, 7, 14), (14, 14)])
def test_grids_without_cells_are_refused(grid):
    with pytest.raises(ValueError, match="even rows and columns"):
        ask(RunningCell(masker=Tube()), grid)


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"masker\.masker\.ratio"):
        RunningCell(masker=Tube(), ratio=1.0)
