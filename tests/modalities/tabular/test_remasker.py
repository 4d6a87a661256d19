"""The recipe against ReMasker written plainly: a dense decoder, unshuffled tokens, the two-part loss."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch

import mmssl
from mmssl.modalities.tabular.encoding import Cells
from mmssl.types import View

torch.set_num_threads(1)
SIZES = [
    "encoder.dim=16", "encoder.depth=2", "encoder.heads=4", "objective.cells.predictor.dim=16",
    "objective.cells.predictor.depth=1", "objective.cells.predictor.heads=4", "data.batch_size=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of 5 columns that depend on one another, a fifth of the cells missing."""
    path = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 5))
    x[:, 1], x[:, 3] = 3 * x[:, 0] + 100, x[:, 2] - x[:, 0]
    holes = rng.random(x.shape) < 0.2
    with (path / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("abcde")
        writer.writerows(
            [["" if hole else f"{v:.6f}" for v, hole in zip(*row, strict=True)] for row in zip(x, holes, strict=True)]
        )
    return path


@pytest.fixture(scope="module")
def built(folder):
    return mmssl.build(
        "tabular/remasker", ["data=table", f"data.root={folder}/table.csv", "data.source.test_share=0", *SIZES]
    )


def batch(data, rows=range(16), epoch=0):
    return data.batch([(epoch, i) for i in rows])


def norm(x, weight, bias):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-8) * weight + bias


def block(x, state, name, heads=4):
    """A pre-norm transformer block on one sample (n, d)."""
    n, d = x.shape
    h = norm(x, state[f"{name}.norm1.weight"], state[f"{name}.norm1.bias"])
    qkv = h @ state[f"{name}.attn.qkv.weight"].T + state[f"{name}.attn.qkv.bias"]
    q, k, v = (part.reshape(n, heads, d // heads).transpose(0, 1) for part in qkv.split(d, -1))
    a = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(d // heads), -1) @ v
    x = x + a.transpose(0, 1).reshape(n, d) @ state[f"{name}.attn.proj.weight"].T + state[f"{name}.attn.proj.bias"]
    h = norm(x, state[f"{name}.norm2.weight"], state[f"{name}.norm2.bias"])
    h = h @ state[f"{name}.mlp.fc1.weight"].T + state[f"{name}.mlp.fc1.bias"]
    h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    return x + h @ state[f"{name}.mlp.fc2.weight"].T + state[f"{name}.mlp.fc2.bias"]


def table_of(n, d):
    pos = torch.arange(n, dtype=torch.float64).unsqueeze(1) / 10000 ** (torch.arange(d // 2).double() * 2 / d)
    return torch.cat([pos.sin(), pos.cos()], 1)


def reference(state, values, kept, d=16, blocks=2, decoder=1):
    """What ReMasker answers for one row, (n,): values (n,), `kept` the places that the encoder sees."""
    enc, dec, n = "networks.main.encoder", "objective.cells.predictor", len(values)
    place = table_of(n, d)
    x = values.unsqueeze(1) @ state["networks.main.embed.proj.weight"].T + state["networks.main.embed.proj.bias"]
    x = torch.cat([state[f"{enc}.prefix"][0], (x + place)[kept]])
    for i in range(blocks):
        x = block(x, state, f"{enc}.blocks.{i}")
    x = norm(x, state[f"{enc}.norm.weight"], state[f"{enc}.norm.bias"])
    x = x @ state[f"{dec}.embed.weight"].T + state[f"{dec}.embed.bias"]
    full = state[f"{dec}.mask_token"][0].repeat(n, 1)
    full[kept] = x[1:]
    x = torch.cat([x[:1], full + place])
    for i in range(decoder):
        x = block(x, state, f"{dec}.blocks.{i}")
    x = norm(x, state[f"{dec}.norm.weight"], state[f"{dec}.norm.bias"])
    x = x @ state[f"{dec}.head.weight"].T + state[f"{dec}.head.bias"]
    return (torch.tanh(x) / 2 + 0.5)[1:, 0]


def doubled(module):
    return {name: value.detach().double() for name, value in module.state_dict().items()}


@torch.no_grad()
def test_loss_is_that_of_remasker(built):
    module, data = built
    given = batch(data)
    step = module.begin(given)
    mask, tokens = step["x"].mask, step["x"].tokens
    assert (tokens.given.sum(1) < 2).any() or mask.visible_count == 2
    hidden, seen, hidden_sum, seen_sum = 0, 0, 0.0, 0.0
    state = doubled(module)
    for row in range(16):
        values = tokens.raw[row, :, 0].double()
        kept = torch.nonzero(mask.visible[row])[:, 0]
        error = (reference(state, values, kept) - values) ** 2
        asked = ~mask.visible[row] & tokens.given[row]
        hidden, hidden_sum = hidden + int(asked.sum()), hidden_sum + float(error[asked].sum())
        seen, seen_sum = seen + len(kept), seen_sum + float(error[kept].sum())
    expected = hidden_sum / hidden + seen_sum / seen
    module.eval()
    assert float(module.training_step(given)) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_answers_lie_strictly_between_0_and_1(built):
    module, data = built
    for _, prediction in module.objective["cells"].predict(module.begin(batch(data))):
        assert float(prediction.min()) > 0 and float(prediction.max()) < 1


def altered(given, value):
    """The same batch with another placeholder in the missing cells."""
    cells = given["x"].data
    values = torch.where(cells.given, cells.values, value)
    return given | {"x": View(Cells(values, cells.given), "tabular")}


def test_placeholders_of_missing_cells_are_never_read(built):
    module, data = built
    given = batch(data)
    assert not given["x"].data.given.all()
    losses, gradients = [], []
    for value in (0.0, 0.7, -30.0):
        module.zero_grad()
        loss = module.training_step(altered(given, value))
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
    assert math.isfinite(losses[0]) and losses == [losses[0]] * 3
    for other in gradients[1:]:
        assert all(torch.equal(value, other[name]) for name, value in gradients[0].items())


@torch.no_grad()
def test_observed_cells_are_read(built):
    module, data = built
    given = batch(data)
    cells = given["x"].data
    values = torch.where(cells.given, cells.values + 0.1, cells.values)
    other = given | {"x": View(Cells(values, cells.given), "tabular")}
    assert float(module.training_step(given)) != float(module.training_step(other))


def test_features_of_a_row_are_those_of_its_observed_cells(built):
    """Evaluation: missing cells are not attended to, whatever stands in them."""
    module, data = built
    given = batch(data)
    module.eval()
    with torch.no_grad():
        whole = module(given["x"])
        other = module(altered(given, 0.9)["x"])
        pooled = whole.pool()
        torch.testing.assert_close(pooled, other.pool(), rtol=0, atol=0)
        network = module.networks["main"]
        for row in range(16):
            tokens = network.tokenizer(View(given["x"].data.values[row : row + 1], ""))
            kept = torch.nonzero(given["x"].data.given[row])[None, :, 0]
            tokens = tokens.but(raw=given["x"].data.values[row][None, :, None], given=None).take(kept)
            alone = network.encoder(network.embed(tokens)).pool()
            torch.testing.assert_close(pooled[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_rows_with_nothing_observed_cost_no_number(built):
    module, data = built
    given = batch(data)
    cells = given["x"].data
    flags = cells.given.clone()
    flags[0] = False
    empty = given | {"x": View(Cells(cells.values, flags), "tabular")}
    module.zero_grad()
    loss = module.training_step(empty)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    assert torch.isfinite(module(empty["x"]).pool()).all()


def test_optimizer_is_that_of_the_authors(built):
    module, _ = built
    optimizer = module.optim.build(module, 64)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["betas"] == (0.9, 0.95)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == sum(
        p.numel() for p in module.parameters()
    )

    def rate(epoch):  # the authors' rule, at a fraction of an epoch
        if epoch < 40:
            return 1e-3 * epoch / 40
        return 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * (epoch - 40) / 560))

    for epoch in (0, 7.5, 39.9, 40.1, 333.3, 600):
        module.optim.set(optimizer, epoch / 600)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(rate(epoch), rel=1e-3, abs=1e-9) and group["weight_decay"] == 0.01


def test_imputation_is_that_of_remasker(built):
    """One row at a time in the authors' code; here rows of unequal numbers of missing cells together."""
    module, data = built
    table, adapter = data.splits["train"].table, data.adapter
    from mmssl.modalities.tabular.imputation import predict

    found = predict(adapter, module, table)
    values, given = adapter.encoded(table)
    state = doubled(module)
    rows = np.flatnonzero(~given.all(1))
    assert len(set((~given[rows]).sum(1).tolist())) > 1
    for row in rows:
        kept = torch.from_numpy(np.flatnonzero(given[row]))
        answer = reference(state, torch.from_numpy(values[row]).double(), kept).numpy()
        for j in range(5):
            if given[row, j]:
                assert math.isnan(found[row, j])
            else:
                column = adapter.encoding.fitted[j]
                expected = answer[j] * (column["max"] - column["min"] + 1e-8) + column["min"]
                assert found[row, j] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert module.looks["x"].masker.__class__.__name__ == "RandomGiven", "the run's own masker is put back"
