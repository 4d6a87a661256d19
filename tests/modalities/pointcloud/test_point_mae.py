"""The recipe: sizes of the paper, and its loss against the official computation written out with official names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import compose
from mmssl.modalities.pointcloud.formats import point_mae
from mmssl.types import View

torch.set_num_threads(1)  # everything is small: threads would only wait for one another

FACTS = {"channels": 3, "points": [1024, 1024], "meshes": 0, "samples": 8}
SMALL = [
    "data=clouds", "data.root=none", "data.size=96", "data.batch_size=3", "tokenizer.groups=12", "tokenizer.size=8",
    "tokenizer.hidden=16", "encoder.dim=24", "encoder.depth=3", "encoder.heads=3", "objective.points.predictor.depth=2",
    "objective.points.predictor.heads=3",
]  # fmt: skip


def made(*overrides):
    tree = compose("pointcloud/point_mae", list(overrides))
    check(tree)
    return build.module(tree, FACTS)


def batch(b, n, dtype=torch.float32):
    points = torch.randn(b, n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {
        "x": View(points.to(dtype), "pointcloud"),
        "id": torch.arange(b),
        "epoch": torch.zeros(b, dtype=torch.int64),
    }


def count(part):
    return sum(p.numel() for p in part.parameters() if p.requires_grad)


def test_parameter_counts_and_masks_are_the_papers():
    module = made("data=clouds", "data.root=none")
    main, predictor = module.networks["main"], module.objective["points"].predictor
    assert count(main.embed) == 494_464
    assert count(main.encoder.position) == count(predictor.position) == 50_048
    assert {count(block) for block in (*main.encoder.blocks, *predictor.blocks)} == {1_773_312}
    assert count(main) == 21_825_024
    assert count(predictor) == 7_181_408
    assert count(module) == 29_006_432
    look = module.begin(batch(3, 128))["x"]
    assert look.mask.hidden.sum(1).tolist() == [38] * 3 and look.mask.targets.sum((1, 2)).tolist() == [38] * 3
    rates = [block.drop_path1.drop_prob for block in main.encoder.blocks[1:]]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(1, 12)])
    assert [b.drop_path1.drop_prob for b in predictor.blocks[1:]] == pytest.approx([0.1 * i / 3 for i in range(1, 4)])
    assert {n.eps for n in module.modules() if isinstance(n, nn.LayerNorm)} == {1e-5}


def test_rates_and_decay_are_the_papers():
    module = made("data=clouds", "data.root=none")
    optimizer = module.optim.build(module, 128)
    assert module.optim.set(optimizer, 0.0) == pytest.approx(1e-6, rel=1e-6)
    assert module.optim.set(optimizer, 10 / 300) == pytest.approx(1e-3, rel=1e-4)
    assert module.optim.set(optimizer, 1.0) == pytest.approx(1e-6, rel=1e-6)
    free = {p for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    for name, parameter in module.named_parameters():
        assert (parameter in free) == (parameter.dim() == 1 or "token" in name), name


class Layer(nn.Module):
    """A pre-norm block in official names."""

    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x, heads):
        b, n, d = x.shape
        q, k, v = self.attn.qkv(self.norm1(x)).reshape(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        weight = torch.softmax(q @ k.transpose(-1, -2) / (d // heads) ** 0.5, -1)
        x = x + self.attn.proj((weight @ v).transpose(1, 2).reshape(b, n, d))
        return x + self.mlp.fc2(torch.nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


def stack(dim, depth):
    part = nn.Module()
    part.blocks = nn.ModuleList(Layer(dim) for _ in range(depth))
    return part


class Official(nn.Module):
    """Point-MAE's parameters under their official names, and its step: all groups embedded, then masked."""

    def __init__(self, dim, hidden, size, depths, heads):
        super().__init__()
        self.heads, wide = heads, 4 * hidden
        enc = self.MAE_encoder = nn.Module()
        enc.encoder = nn.Module()
        enc.encoder.first_conv = nn.Sequential(
            nn.Conv1d(3, hidden, 1), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Conv1d(hidden, 2 * hidden, 1)
        )
        enc.encoder.second_conv = nn.Sequential(
            nn.Conv1d(wide, wide, 1), nn.BatchNorm1d(wide), nn.ReLU(), nn.Conv1d(wide, dim, 1)
        )
        enc.pos_embed, self.decoder_pos_embed = (
            nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim)) for _ in range(2)
        )
        enc.blocks, enc.norm = stack(dim, depths[0]), nn.LayerNorm(dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim))
        self.MAE_decoder = stack(dim, depths[1])
        self.MAE_decoder.norm = nn.LayerNorm(dim)
        self.increase_dim = nn.Sequential(nn.Conv1d(dim, 3 * size, 1))

    def forward(self, groups, centres, hidden):
        (b, g, s, _), enc = groups.shape, self.MAE_encoder
        x = enc.encoder.first_conv(groups.reshape(b * g, s, 3).transpose(1, 2))
        x = torch.cat([x.max(2, keepdim=True).values.expand(-1, -1, s), x], 1)
        tokens = enc.encoder.second_conv(x).max(2).values.reshape(b, g, -1)
        x, pos = (
            tokens[~hidden].reshape(b, -1, tokens.shape[2]),
            enc.pos_embed(centres[~hidden]).reshape(b, -1, tokens.shape[2]),
        )
        for block in enc.blocks.blocks:
            x = block(x + pos, self.heads)
        x = enc.norm(x)
        asked = int(hidden[0].sum())
        pos = torch.cat([self.decoder_pos_embed(centres[m]).reshape(b, -1, x.shape[2]) for m in (~hidden, hidden)], 1)
        x = torch.cat([x, self.mask_token.expand(b, asked, -1)], 1)
        for block in self.MAE_decoder.blocks:
            x = block(x + pos, self.heads)
        made = self.increase_dim(self.MAE_decoder.norm(x[:, -asked:]).transpose(1, 2)).transpose(1, 2)
        made, true = made.reshape(-1, s, 1, 3), groups[hidden].reshape(-1, 1, s, 3)
        distance = ((made - true) ** 2).sum(-1)
        return distance.min(2).values.mean() + distance.min(1).values.mean()


def official():
    """A reference with random weights and statistics, in double precision."""
    torch.manual_seed(0)
    reference = Official(24, 16, 8, (3, 2), 3).double()
    for value in reference.parameters():
        if value.dim() == 1:  # norms and biases too, so that none may be forgotten
            value.data += 0.1 * torch.randn_like(value)
    for part in reference.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    return reference


@pytest.mark.parametrize("wrap", ["", "module."])
def test_an_official_file_fills_everything(wrap):
    reference, module = official(), made(*SMALL)
    state = point_mae({"base_model": {wrap + name: value for name, value in reference.state_dict().items()}}, module)
    assert set(state) == {name for name in module.state_dict()}
    module.double().load_state_dict(state)


@pytest.mark.parametrize("training", [True, False])
def test_loss_and_gradient_are_the_official_ones(training):
    """Batch statistics over all groups, also the hidden ones, or running statistics of the file."""
    reference, module = (
        official(),
        made(*SMALL, "encoder.drop_path=0", "objective.points.predictor.drop_path=0").double(),
    )
    module.load_state_dict(point_mae(reference.state_dict(), module))
    module.train(training)
    reference.train(training)
    step = module.begin(batch(3, 96, torch.float64))
    total, weight = module.objective["points"](step)
    look = step["x"]
    assert weight.item() == 3 * 7  # int(0.6 * 12) of 12 groups are hidden
    expected = reference(look.tokens.raw.reshape(3, 12, 8, 3), look.tokens.pos, look.mask.hidden)
    torch.testing.assert_close(total / weight, expected, rtol=1e-12, atol=0)
    (total / weight).backward()
    expected.backward()
    theirs = {name: p.grad for name, p in reference.named_parameters()}
    translated = point_mae(theirs, module)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, translated[name], rtol=1e-8, atol=1e-12)


def test_the_decoder_begins_as_the_official_one():
    module = made(*SMALL)
    predictor = module.objective["points"].predictor
    position = predictor.position.layers[2]  # PyTorch's default: uniform within 1 / sqrt(width in)
    bound = position.in_features**-0.5
    assert (
        0.9 * bound < float(position.weight.detach().abs().max()) <= bound and float(position.bias.detach().std()) > 0
    )
    bound = (6 / (24 + 72)) ** 0.5  # Xavier
    assert 0.98 * bound < float(predictor.blocks[0].attn.qkv.weight.detach().abs().max()) <= bound
    paper = made("data=clouds", "data.root=none").objective["points"].predictor.head
    assert float(paper.weight.detach().std()) == pytest.approx((3 * paper.in_features) ** -0.5, rel=0.02)
    assert not paper.bias.detach().any()


def test_a_few_steps_lower_the_loss():
    module = made(*SMALL)
    module.steps, optimizer = 30, module.optim.build(module, 3)
    losses = []
    for step in range(30):
        module.optim.set(optimizer, step / 30)
        total, weight = module.objective["points"](module.begin(batch(3, 96)))
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
        losses.append((total / weight).item())
    assert losses[-1] < 0.7 * losses[0]
