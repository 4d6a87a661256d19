"""Groups, their embedding, their positions and their masks against plain references."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmssl.draws import Draws
from mmssl.modalities.pointcloud.maskers import Neighbours
from mmssl.modalities.pointcloud.pointnet import MiniPointNet
from mmssl.modalities.pointcloud.positions import CoordinateMLP
from mmssl.modalities.pointcloud.tokenizer import PointTokenizer
from mmssl.types import Tokens, TokenSpec, View

torch.set_num_threads(1)  # everything is small: threads would only wait for one another


def cloud(b, n, seed=0):
    return torch.randn(b, n, 3, generator=torch.Generator().manual_seed(seed))


def cut(points, **sizes):
    return PointTokenizer({}, **sizes)(View(points, "pointcloud"))


def draws(b, seed=0):
    return Draws.of(seed, 0, torch.arange(b))


def count(part):
    return sum(p.numel() for p in part.parameters() if p.requires_grad)


def test_groups_are_the_neighbours_of_points_far_apart():
    points = cloud(2, 50)
    tokens = cut(points, groups=5, size=4)
    for one, raw, pos in zip(points, tokens.raw, tokens.pos, strict=True):
        centres, left = [one[0]], one
        for _ in range(4):
            distance = torch.stack([(left - c).norm(dim=1) for c in centres]).min(0).values
            centres.append(left[distance.argmax()])
        torch.testing.assert_close(pos, torch.stack(centres), rtol=0, atol=0)
        for centre, group in zip(centres, raw.reshape(5, 4, 3), strict=True):
            near = sorted((one - centre).tolist(), key=lambda p: sum(c * c for c in p))[:4]
            torch.testing.assert_close(group, torch.tensor(near), rtol=0, atol=0)
            assert group[0].tolist() == [0, 0, 0]  # the centre is its own nearest point


def test_sizes_are_those_of_the_spec():
    tokenizer = PointTokenizer({}, groups=8, size=6)
    tokens = tokenizer(View(cloud(3, 64), "pointcloud"))
    assert tokenizer.spec == TokenSpec(18, 3, channels=3, count=8) and tokenizer.spec.length == tokens.length == 8
    assert tokens.raw.shape == (3, 8, 18) and tokens.pos.shape == (3, 8, 3) and tokens.valid is None
    assert tokens.index.tolist() == [list(range(8))] * 3


def test_a_shift_of_the_cloud_moves_positions_only():
    points = (cloud(2, 60) * 256).round() / 256  # exact sums
    shift = torch.tensor([2.0, -1.0, 0.5])
    torch.manual_seed(0)
    embedding = PointTokenizer({}, groups=6, size=8).embedding(16).eval()
    here, there = (embedding(cut(p, groups=6, size=8)) for p in (points, points + shift))
    assert torch.equal(here.raw, there.raw) and torch.equal(here.x, there.x)
    assert torch.equal(here.pos + shift, there.pos)


def test_small_clouds_are_refused_with_the_keys():
    for sizes in ({"groups": 40, "size": 4}, {"groups": 4, "size": 40}):
        with pytest.raises(ValueError, match=r"clouds of 32 points .* tokenizer.groups=\d+ .* data.size"):
            cut(cloud(1, 32), **sizes)
    with pytest.raises(ValueError, match=r"at least 1"):
        PointTokenizer({}, groups=0)


def test_restored_clouds_are_the_groups_in_place():
    points = cloud(2, 30)
    tokenizer = PointTokenizer({}, groups=30, size=3)
    tokens = tokenizer(View(points, "pointcloud"))
    shown = torch.zeros(2, 30, dtype=torch.bool)
    shown[0, :7] = True
    first, second = tokenizer.restore(tokens, shown)
    assert first.points.shape == (90, 3) and int(first.seen.sum()) == 21 and not second.seen.any()
    torch.testing.assert_close(first.points[first.seen][::3], tokens.pos[0, :7])
    distance = (tokenizer.restore(tokens)[1].points[:, None] - points[1]).norm(dim=-1)
    assert float(distance.min(1).values.max()) < 1e-5  # every restored point is one of the cloud


def convolutional(embedding, raw, size):
    """The same embedding written with 1x1 convolutions over (groups, channels, points), global features first."""
    first = nn.Sequential(nn.Conv1d(3, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1))
    second = nn.Sequential(nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, 24, 1))
    for net, parts in ((first, embedding.first), (second, embedding.second)):
        for theirs, ours in zip((net[0], net[1], net[3]), parts, strict=True):
            state = {name: value[..., None] if value.dim() == 2 else value for name, value in ours.state_dict().items()}
            theirs.load_state_dict(state)
    x = first(raw.reshape(-1, size, 3).transpose(1, 2))
    x = torch.cat([x.max(2, keepdim=True).values.expand_as(x), x], 1)
    return second(x).max(2).values.reshape(*raw.shape[:2], -1)


@pytest.mark.parametrize("training", [True, False])
def test_the_embedding_is_a_small_pointnet(training):
    torch.manual_seed(0)
    embedding = MiniPointNet(4, 24).train(training)
    tokens = cut(cloud(3, 40), groups=5, size=4)
    reference = convolutional(embedding, tokens.raw, 4) if training else None
    made = embedding(tokens).x
    if not training:
        for module in embedding.modules():  # statistics that tell the two modes apart
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.fill_(0.1)
                module.running_var.fill_(2.0)
        made = embedding(tokens).x
        x = embedding.first[2](torch.relu((embedding.first[0](tokens.raw.reshape(-1, 3)) - 0.1) / (2 + 1e-5) ** 0.5))
        x = x.reshape(15, 4, -1)
        x = torch.cat([x.amax(1, keepdim=True).expand_as(x), x], -1)
        x = embedding.second[2](torch.relu((embedding.second[0](x) - 0.1) / (2 + 1e-5) ** 0.5))
        reference = x.amax(1).reshape(3, 5, -1)
    torch.testing.assert_close(made, reference, rtol=1e-4, atol=1e-5)


def test_the_order_of_points_within_a_group_does_not_matter():
    embedding = MiniPointNet(6, 8).eval()
    tokens = cut(cloud(2, 40), groups=4, size=6)
    turned = tokens.raw.reshape(2, 4, 6, 3).flip(2).flatten(2)
    torch.testing.assert_close(embedding(tokens).x, embedding(tokens.but(raw=turned)).x)


def test_parameter_counts_of_the_paper():
    assert count(MiniPointNet(32, 384)) == 494_464
    assert count(CoordinateMLP(TokenSpec(96, 3), 384)) == 50_048


def test_positions_are_a_function_of_coordinates():
    torch.manual_seed(0)
    mlp = CoordinateMLP(TokenSpec(12, 3), 10, hidden=7)
    pos = cloud(2, 5)
    first, _, second = mlp.layers
    inner = pos @ first.weight.T + first.bias
    gelu = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    tokens = Tokens(raw=pos, pos=pos, index=torch.arange(5).expand(2, 5))
    torch.testing.assert_close(mlp(tokens), gelu @ second.weight.T + second.bias)


def test_neighbours_hide_the_groups_around_one():
    tokens = cut(cloud(6, 100), groups=20, size=3)
    mask = Neighbours(ratio=0.6)(tokens, draws(6), 0.0, None)
    assert mask.hidden.sum(1).tolist() == [12] * 6 and (mask.visible_count, mask.target_count) == (8, 12)
    assert torch.equal(mask.targets[:, 0], mask.hidden) and torch.equal(mask.visible, ~mask.hidden)
    centres = []
    for hidden, pos in zip(mask.hidden, tokens.pos, strict=True):
        order = torch.cdist(pos, pos).argsort(1)[:, :12]
        fits = [i for i in range(20) if set(order[i].tolist()) == set(hidden.nonzero().flatten().tolist())]
        assert fits  # the hidden ones are the 12 nearest of one of them
        centres.append(fits[0])
    assert len(set(centres)) > 1
    again = Neighbours(ratio=0.6)(tokens, draws(6, seed=1), 0.0, None)
    assert not torch.equal(again.hidden, mask.hidden)


def test_neighbours_hide_exactly_38_of_64():
    tokens = cut(cloud(2, 64), groups=64, size=1)
    assert Neighbours()(tokens, draws(2), 0.0, None).hidden.sum(1).tolist() == [38, 38]


def test_neighbours_of_groups_that_coincide_and_of_padding():
    tokens = cut(torch.zeros(2, 16, 3), groups=8, size=2)
    assert Neighbours(ratio=0.5)(tokens, draws(2), 0.0, None).hidden.sum(1).tolist() == [4, 4]
    padded = tokens.but(valid=torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"masker/random"):
        Neighbours()(padded, draws(2), 0.0, None)
    with pytest.raises(ValueError, match=r"did you mean 0.6"):
        Neighbours(ratio=60)
