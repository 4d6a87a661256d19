"""Work that is left out changes no number: losses and gradients of each short cut against the plain path."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from mmssl.modalities.pointcloud.pointnet import MiniPointNet
from mmssl.nn.blocks import AskedBlock
from mmssl.parts.predictors import Transformer
from mmssl.parts.windowed import Window
from mmssl.types import Tokens, TokenSpec
from tests.small import batch, module, tokens

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def blocks(**said):
    """A block of ours, and timm's own with the same weights."""
    torch.manual_seed(0)
    ours = AskedBlock(16, 4, init_values=0.3, **said).double()
    plain = Block(16, 4, init_values=0.3, **said).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def learned(answer, *parts):
    """The loss of some answers, and the gradients of modules and tensors, by name."""
    torch.manual_seed(1)
    loss = (answer * torch.randn_like(answer)).sum() + answer.square().sum()
    loss.backward()
    found = {"loss": loss.detach()}
    for k, part in enumerate(parts):
        named = part.named_parameters() if isinstance(part, nn.Module) else [("", part)]
        found |= {f"{k} {name}": p.grad for name, p in named if p.grad is not None}
    return found


def same(one, other):
    assert one.keys() == other.keys() and len(one) > 2
    for name, value in one.items():
        assert torch.allclose(value, other[name], **CLOSE), name


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_block_answers_at_the_last_tokens_alone(bias, masked):
    ours, plain = blocks(qkv_bias=bias)
    x = torch.randn(3, 9, 16, dtype=torch.float64)
    mask = None
    if masked:
        mask = torch.ones(3, 1, 1, 9, dtype=torch.bool)
        mask[1, ..., 5:] = False
        mask[2, ..., 0] = False
    first, second = (x.clone().requires_grad_() for _ in range(2))
    same(
        learned(ours(first, attn_mask=mask, asked=4), ours, first),
        learned(plain(second, attn_mask=mask)[:, 5:], plain, second),
    )


def test_a_block_that_is_asked_for_all_is_timms():
    ours, plain = blocks(qkv_bias=True)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    assert torch.equal(ours(x), plain(x)) and torch.equal(ours(x, asked=5), plain(x))


def test_drop_path_drops_the_same_samples():
    ours, plain = blocks(drop_path=0.5)
    x = torch.randn(16, 5, 16, dtype=torch.float64)
    torch.manual_seed(3)
    some = ours(x, asked=2)
    torch.manual_seed(3)
    assert torch.allclose(some, plain(x)[:, 3:], **CLOSE)


def sequence(grid=(4, 4), visible=(1, 2, 7, 12), hidden=(0, 3, 9, 15, 5)):
    """What an encoder saw of two samples, and what is asked for; in double precision."""
    torch.manual_seed(0)
    whole = tokens(2, 16, grid=grid)
    seen, query = (whole.take(torch.tensor([list(places)] * 2)) for places in (visible, hidden))
    x, prefix = torch.randn(2, len(visible), 8).double(), torch.randn(2, 1, 8).double()
    return seen.but(x=x.requires_grad_(), prefix=prefix), query


class Dense(Block):
    """timm's block, which answers everywhere; what was asked for is then the end of its answer."""

    def forward(self, x, attn_mask=None, asked=None):
        x = super().forward(x, attn_mask=attn_mask)
        return x if asked is None else x[:, -asked:]


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("prefix", ["seen", "none", "own"])
def test_the_decoder_answers_as_the_dense_one(prefix, every):
    spec, said = TokenSpec(5, 2, (4, 4)), {"dim": 16, "depth": 2, "heads": 4, "prefix": prefix, "position_every": every}
    ours = Transformer(spec, 8, 6, (), **said).double()
    plain = copy.deepcopy(ours)
    for block in plain.blocks:
        block.__class__ = Dense
    found = []
    for part in (ours, plain):
        seen, query = sequence()
        found.append(learned(part(seen, query), part, seen.x))
    same(*found)
    seen, query = sequence()
    there, here = ours.both(seen, query, seen)
    dense = plain.both(seen, query, seen)
    assert torch.allclose(there, dense[0], **CLOSE) and torch.allclose(here, dense[1], **CLOSE)
    assert torch.allclose(there, ours(seen, query), **CLOSE)


def test_windows_answer_as_the_dense_decoder():
    spec = TokenSpec(5, 2, (8, 4))
    ours = Window(spec, 8, 6, (), dim=16, depth=2, heads=4, window=[4, 4], shift=[2, 0], dropout=0.0).double()
    found = []
    for dense in (False, True):
        torch.manual_seed(0)
        whole = tokens(2, 32, grid=(8, 4))
        seen = whole.take(torch.tensor([[1, 4, 9, 30], [0, 2, 3, 17]]))
        query = whole.take(torch.tensor([[5, 8, 31], [7, 1, 16]]))
        seen = seen.but(x=torch.randn(2, 4, 8).double().requires_grad_())
        part = copy.deepcopy(ours)
        if dense:
            x = part._whole(seen)
            for block in part.blocks:
                x = block(x)
            answer = part.head(part.norm(x)).gather(1, query.index.unsqueeze(-1).expand(-1, -1, 6))
        else:
            answer = part(seen, query)
        found.append(learned(answer, part, seen.x))
    same(*found)


@pytest.mark.parametrize("row", [None, torch.tensor([0, 0, 1, 2])])
def test_groups_that_are_dropped_count_for_statistics_alone(row):
    torch.manual_seed(0)
    ours = MiniPointNet(4, 12, hidden=6).double()
    raw, pos = torch.randn(3, 5, 12, dtype=torch.float64), torch.zeros(3, 5, 3)
    whole = Tokens(raw=raw, pos=pos, index=torch.arange(5).expand(3, -1), count=5)
    rows = 3 if row is None else len(row)
    index = torch.stack([torch.randperm(5)[:2] for _ in range(rows)])
    found = []
    for dense in (False, True):
        part = copy.deepcopy(ours)
        kept = part(whole).take(index, row) if dense else part(whole, whole.take(index, row), row)
        assert torch.equal(kept.index, index)
        statistics = {name: value for name, value in part.named_buffers()}
        found.append(learned(kept.x, part) | statistics)
    same(*found)


def test_no_gradient_outlives_its_step():
    """Else they would lie beside all activations of the next forward pass."""
    from lightning import Trainer

    part, left = module(), []
    part.steps = 2

    class Watch:
        def training_step(self, *given):
            left.append([name for name, p in part.named_parameters() if p.grad is not None])
            return type(part).training_step(part, *given)

    part.training_step = Watch().training_step
    loader = torch.utils.data.DataLoader([batch()] * 2, batch_size=None)
    quiet = {
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
    }
    before = [p.detach().clone() for p in part.parameters()]
    Trainer(max_steps=2, accelerator="cpu", **quiet).fit(part, loader)
    assert left == [[], []]
    assert any(not torch.equal(old, new) for old, new in zip(before, part.parameters(), strict=True))
