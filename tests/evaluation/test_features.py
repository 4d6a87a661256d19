"""Embedding: right rows and labels, and nothing disturbed."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmssl.evaluation.features import Features, embed, rows
from mmssl.types import Tokens, View

torch.set_num_threads(1)


def tokens(x: Tensor, **fields: Any) -> Tokens:
    index = torch.arange(x.shape[1]).expand(x.shape[:2])
    return Tokens(raw=x, pos=x[..., :1], index=index, x=x, **fields)


class Net(nn.Module):
    """(b, n, 3) -> tokens of width 4, with parts whose behaviour depends on the mode; `frozen` is never training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(4).eval()

    def forward(self, view: View) -> Tokens:
        assert torch.is_inference_mode_enabled()
        x = self.linear(view.data)
        return tokens(self.drop(self.frozen(self.norm(x.mT)).mT))


def collate(items: list[tuple[Tensor, int]]) -> dict[str, Any]:
    return {"x": View(torch.stack([x for x, _ in items]), "toy"), "label": torch.tensor([y for _, y in items])}


def items(n: int = 10) -> list[tuple[Tensor, int]]:
    data = torch.randn(n, 5, 3, generator=torch.Generator().manual_seed(0))
    return [(data[i], i % 3) for i in range(n)]


def states() -> list[Any]:
    return [torch.random.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def test_embed_is_the_pooled_forward_in_evaluation_mode() -> None:
    net, data = Net().train(), items()
    net.frozen.eval()
    found = embed(net, DataLoader(data, batch_size=4, collate_fn=collate), "mean")
    whole = torch.stack([x for x, _ in data])
    expected = (whole @ net.linear.weight.T + net.linear.bias).mean(1) / (1 + 1e-5)  # both norms are still at (0, 1)
    torch.testing.assert_close(found.x, expected.detach(), rtol=1e-5, atol=1e-6)
    assert found.y.tolist() == [y for _, y in data]
    assert (found.x.dtype, found.y.dtype) == (torch.float32, torch.int64)
    assert not found.x.is_inference() and not found.y.is_inference()


def test_embed_disturbs_nothing() -> None:
    net = Net().train()
    net.frozen.eval()
    flags = {name: part.training for name, part in net.named_modules()}
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    before = states()
    loader = DataLoader(items(), batch_size=4, collate_fn=collate, shuffle=True)  # iterating it draws a seed
    embed(net, loader)
    assert states() == before
    assert {name: part.training for name, part in net.named_modules()} == flags
    assert flags["norm"] and not flags["frozen"]
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())


def test_flags_and_random_state_come_back_after_an_error() -> None:
    net, before = Net().train(), states()

    def batches() -> Any:
        torch.rand(3), random.random(), np.random.rand()
        yield collate(items(2))
        raise RuntimeError("a worker died")

    with pytest.raises(RuntimeError, match="a worker died"):
        embed(net, batches())
    assert states() == before and net.norm.training


def test_limit_reads_no_further_than_it_must() -> None:
    seen = []

    def batches() -> Any:
        for i in range(5):
            seen.append(i)
            yield collate(items(4))

    found = embed(Net(), batches(), limit=6)
    assert len(found) == 6 and found.x.shape == (6, 4) and seen == [0, 1]


def test_unlabelled_data_get_minus_one() -> None:
    batch = collate(items(3))
    del batch["label"]
    assert embed(Net(), [batch]).y.tolist() == [-1, -1, -1]
    assert embed(Net(), [{**batch, "label": None}]).labelled().x.shape == (0, 4)


def test_a_row_per_valid_token() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    label = torch.tensor([[5, 6, -1], [7, 8, 9]])
    found, y = rows(tokens(x, valid=valid), label, "token")
    assert y.tolist() == [5, 6, 7, 8, 9]
    assert torch.equal(found, torch.stack([x[0, 0], x[0, 1], x[1, 0], x[1, 1], x[1, 2]]))
    swapped = tokens(x).but(index=torch.tensor([[2, 1, 0], [0, 1, 2]]))  # labels go by place, not by order
    assert rows(swapped, label, "token")[1].tolist() == [-1, 6, 5, 7, 8, 9]
    packed = tokens(x, valid=valid).pack()
    found, y = rows(packed, label, "token")
    assert y.tolist() == [5, 6, 7, 8, 9] and torch.equal(found, packed.x)
    seeds, y = rows(packed, label[:, :1], "token")  # labels of first places only: the others are mere neighbours
    assert y.tolist() == [5, 7] and torch.equal(seeds, packed.x[[0, 2]])
    pooled, y = rows(packed, torch.tensor([3, 4]), "mean")
    torch.testing.assert_close(pooled, torch.stack([x[0, :2].mean(0), x[1].mean(0)]))


def test_labels_that_do_not_fit_are_refused() -> None:
    x = tokens(torch.zeros(2, 3, 2))
    with pytest.raises(ValueError, match=r"labels are torch.float32"):
        rows(x, torch.zeros(2), "mean")
    with pytest.raises(ValueError, match="pool=token"):
        rows(x, torch.zeros(2, 3, dtype=torch.int64), "mean")
    with pytest.raises(ValueError, match="needs a label per token"):
        rows(x, torch.zeros(2, dtype=torch.int64), "token")
    with pytest.raises(ValueError, match="nothing to embed"):
        embed(Net(), [])


def test_features_select_rows() -> None:
    found = Features(torch.arange(6.0).reshape(3, 2), torch.tensor([1, -1, 0])).labelled()
    assert found.x.tolist() == [[0, 1], [4, 5]] and found.y.tolist() == [1, 0] and len(found) == 2
