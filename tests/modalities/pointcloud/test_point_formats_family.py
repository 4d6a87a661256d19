"""Point-CMAE's checkpoints: Point-MAE's layout with two decoders, and both losses from them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmssl.config import build
from mmssl.config.check import check
from mmssl.config.compose import compose
from mmssl.modalities.pointcloud.formats import point_cmae
from mmssl.run.checkpoints import fill
from tests.modalities.pointcloud.test_point_mae import FACTS, SMALL, Official, batch, stack

torch.set_num_threads(1)  # everything is small: threads would only wait for one another

BOTH = [*SMALL, "objective.again.predictor.depth=2", "objective.again.predictor.heads=3"]
DIM, SIZE, HEADS = 24, 8, 3
PREFIX = "networks.main.encoder.prefix"


def made(*overrides):
    tree = compose("pointcloud/point_cmae", [*BOTH, *overrides])
    check(tree)
    return build.module(tree, FACTS)


class Both(nn.Module):
    """Point-CMAE's parameters under their official names, and either pass of its step."""

    def __init__(self, depth=3):
        super().__init__()
        one = Official(DIM, 16, SIZE, (depth, 2), HEADS)
        enc = self.MAE_encoder = one.MAE_encoder
        for number in "12":
            setattr(enc, f"cls_token{number}", nn.Parameter(torch.randn(1, 1, DIM)))
            setattr(enc, f"cls_pos{number}", nn.Parameter(torch.randn(1, 1, DIM)))
            setattr(self, f"mask_token{number}", nn.Parameter(torch.randn(1, 1, DIM)))
            position = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, DIM))
            setattr(self, f"decoder_pos_embed{number}", position)
        enc.proj_cls = nn.Sequential(nn.Linear(DIM, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256))
        self.MAE_decoder, self.MAE_decoder_ = one.MAE_decoder, stack(DIM, 2)
        self.MAE_decoder_.norm = nn.LayerNorm(DIM)
        self.increase_dim, self.increase_dim_ = one.increase_dim, nn.Sequential(nn.Conv1d(DIM, 3 * SIZE, 1))

    def forward(self, groups, centres, hidden, number, token):
        """The loss of the first or the second pass, with this class token in front and no position of it."""
        (b, g, s, _), enc, mark = groups.shape, self.MAE_encoder, "_" * (number - 1)
        x = enc.encoder.first_conv(groups.reshape(b * g, s, 3).transpose(1, 2))
        x = torch.cat([x.max(2, keepdim=True).values.expand(-1, -1, s), x], 1)
        tokens = enc.encoder.second_conv(x).max(2).values.reshape(b, g, -1)
        x = torch.cat([token.expand(b, 1, -1), tokens[~hidden].reshape(b, -1, DIM)], 1)
        pos = enc.pos_embed(centres[~hidden]).reshape(b, -1, DIM)
        pos = torch.cat([torch.zeros(b, 1, DIM, dtype=pos.dtype), pos], 1)
        for block in enc.blocks.blocks:
            x = block(x + pos, HEADS)
        x, asked = enc.norm(x)[:, 1:], int(hidden[0].sum())
        embed, decoder = getattr(self, f"decoder_pos_embed{number}"), getattr(self, f"MAE_decoder{mark}")
        pos = torch.cat([embed(centres[m]).reshape(b, -1, DIM) for m in (~hidden, hidden)], 1)
        x = torch.cat([x, getattr(self, f"mask_token{number}").expand(b, asked, -1)], 1)
        for block in decoder.blocks:
            x = block(x + pos, HEADS)
        head = getattr(self, f"increase_dim{mark}")
        answer = head(decoder.norm(x[:, -asked:]).transpose(1, 2)).transpose(1, 2).reshape(-1, s, 1, 3)
        distance = ((answer - groups[hidden].reshape(-1, 1, s, 3)) ** 2).sum(-1)
        return distance.min(2).values.mean() + distance.min(1).values.mean()


def official(depth=3):
    """A reference with random weights and statistics, in double precision."""
    torch.manual_seed(0)
    reference = Both(depth).double()
    for value in reference.parameters():
        if value.dim() == 1:  # norms and biases too, so that none may be forgotten
            value.data += 0.1 * torch.randn_like(value)
    for part in reference.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    return reference.eval()


@pytest.mark.parametrize("wrap", ["", "module."])
def test_an_official_file_fills_all_but_the_class_token(wrap):
    reference, module = official(), made()
    state = {wrap + name: value for name, value in reference.state_dict().items()}
    found = point_cmae({"base_model": state, "epoch": 300}, module)
    assert set(found) == set(module.state_dict()) - {PREFIX}
    assert {n: v.shape for n, v in found.items()} == {n: module.state_dict()[n].shape for n in found}
    assert f"not in the file: {PREFIX}" in fill(module, found, 0.9, "FILE")
    # without a class token nothing is missing
    bare = made("encoder.class_token=false")
    assert set(point_cmae(state, bare)) == set(bare.state_dict())


def test_both_losses_are_those_of_the_authors_decoders():
    reference, module = official(), made().double().eval()
    module.load_state_dict(point_cmae(reference.state_dict(), module), strict=False)
    token = module.networks["main"].encoder.prefix
    step = module.begin(batch(3, 96, torch.float64))
    assert not torch.equal(step["x"].mask.hidden, step["y"].mask.hidden)
    made_of = []
    with torch.no_grad():
        for number, term, name in ((1, "points", "x"), (2, "again", "y")):
            total, weight = module.objective[term](step)
            look = step[name]
            groups = look.tokens.raw.reshape(3, 12, SIZE, 3)
            wanted = reference(groups, look.tokens.pos, look.mask.hidden, number, token)
            torch.testing.assert_close(total / weight, wanted, rtol=1e-10, atol=0)
            made_of.append(wanted.item())
    assert made_of[0] != made_of[1]


def test_other_depths_and_further_parts_are_refused():
    deeper, module = official(4).state_dict(), made()
    with pytest.raises(ValueError, match=r"encoder is another one: networks\.main\.encoder\.blocks\.3\."):
        point_cmae({"base_model": deeper}, module)
    state = official().state_dict() | {"MAE_encoder.proj_dec.weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"the file holds MAE_encoder\.proj_dec\.weight, which"):
        point_cmae({"base_model": state}, module)
