"""SparK: networks that do not see hidden cells, its decoder layer by layer, and LAMB."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

from mmssl.config.compose import ConfigError
from mmssl.draws import Draws
from mmssl.nn.patches import cut
from mmssl.nn.sparse import Active, SparseBatchNorm
from mmssl.parts.encoders.sparse import Sparse
from mmssl.parts.lamb import lamb
from mmssl.parts.maskers import Random
from mmssl.types import Tokens, TokenSpec
from tests.small import PIXELS, batch, images, module, tokens

SPEC = TokenSpec(3072, 2, (2, 2), (32, 32), 3)
STAGES = tuple(f"stage.{i}" for i in range(4))
FLAGS = torch.tensor([[True, False, False, True], [False, True, True, False], [True, True, False, False]])


def encoder(name):
    torch.manual_seed(0)
    return Sparse(SPEC, name=name)


def sample(image, valid=None):
    index = torch.arange(4).expand(len(image), 4)
    return Tokens(cut(image, (32, 32)), torch.zeros(len(image), 4, 2), index, grid=(2, 2), valid=valid)


def spark(name="test_resnet", **said):
    return module(
        tokenizer={"_target_": "tokenizer/image", "size": 64, "patch": 32},
        encoder={"_target_": "encoder/sparse", "name": name},
        masker={"_target_": "masker/random", "ratio": 0.5},
        objective={"pixels": PIXELS | {"predictor": {"_target_": "predictor/unet", "dim": 32} | said}},
    )


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_with_nothing_hidden_it_is_the_network(name):
    net, image = encoder(name), images(3, 64)
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0, global_pool="")
    found, whole = net(sample(image), STAGES), net(sample(image, torch.ones(3, 4, dtype=torch.bool)), STAGES)
    maps = plain.forward_intermediates(image, indices=4, intermediates_only=True)
    for key, expected in zip(STAGES, maps, strict=True):
        torch.testing.assert_close(found.taps[key], expected.flatten(2).mT, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(whole.taps[key], found.taps[key], atol=1e-4, rtol=1e-4)
        assert expected.shape[1] == net.tap_names[key]
    torch.testing.assert_close(found.x, found.taps["stage.3"])


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_hidden_cells_are_not_seen(name):
    net, image = encoder(name), images(3, 64)
    for p in net.parameters():  # biases that would show
        p.data.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    other, twin = image.clone(), copy.deepcopy(net)
    hidden = ~FLAGS.reshape(3, 1, 2, 2).repeat_interleave(32, 2).repeat_interleave(32, 3)
    other[hidden.expand_as(other)] += 5.0
    found, again = net(sample(image, FLAGS), STAGES), twin(sample(other, FLAGS), STAGES)
    for i, key in enumerate(STAGES):
        side = 2 * 2 ** (3 - i)
        gone = ~FLAGS.reshape(3, 2, 2).repeat_interleave(side // 2, 1).repeat_interleave(side // 2, 2).flatten(1)
        assert not found.taps[key][gone].any() and found.taps[key][~gone].abs().sum(-1).min() > 0
        torch.testing.assert_close(found.taps[key], again.taps[key], atol=1e-6, rtol=1e-6)
    for (key, mine), (_, others) in zip(net.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(mine, others, msg=key)
    assert torch.equal(found.valid, FLAGS) and found.pool().shape == (3, net.dim)


def test_batch_norm_over_active_places():
    part, plain, active = SparseBatchNorm(5), torch.nn.BatchNorm1d(5), Active()
    part.active = active
    for one in (part, plain):
        torch.nn.init.uniform_(one.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
        torch.nn.init.uniform_(one.bias, generator=torch.Generator().manual_seed(2))
    flags = FLAGS.reshape(3, 1, 2, 2)
    wide = flags.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, 0]
    x = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(3))
    for _ in range(2):
        active.say(flags)
        expected = torch.zeros(3, 4, 4, 5)
        expected[wide] = plain(x.permute(0, 2, 3, 1)[wide])
        torch.testing.assert_close(part(x), expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(part.running_var, plain.running_var)
        torch.testing.assert_close(part.running_mean, plain.running_mean)
        part.eval(), plain.eval()
    assert (
        Random(ratio=0.6, floor="hidden")(tokens(1, 49), Draws.of(0, 0, torch.arange(1)), 0.0, None).visible_count == 20
    )


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_decoder_is_that_of_spark(norm):
    net = spark(norm=norm)
    part, look = net.objective["pixels"].predictor, net.begin(batch64())["x"]
    query, seen = net.objective["pixels"].query(look, "hidden")
    flags, x = look.mask.visible.reshape(4, 1, 2, 2), 0.0
    for i in range(5):
        if i < 4:
            side = 2 << i
            wide = flags.repeat_interleave(side // 2, 2).repeat_interleave(side // 2, 3)
            tap = seen.taps[f"stage.{3 - i}"].mT.reshape(4, -1, side, side)
            rows = tap.permute(0, 2, 3, 1)[wide[:, 0]]
            rows = (
                F.layer_norm(rows, rows.shape[-1:], eps=1e-6)
                if norm == "layer"
                else F.batch_norm(rows, None, None, training=True)
            )
            filled = part.fill[i][0, :, 0, 0].expand(4, side, side, -1).clone()
            filled[wide[:, 0]] = rows
            join = part.join[i]
            x = x + F.conv2d(filled.permute(0, 3, 1, 2), join.weight, join.bias, padding=join.weight.shape[2] // 2)
        block = part.blocks[i]
        x = F.conv_transpose2d(x, block.up.weight, block.up.bias, 2, 1)
        x = F.batch_norm(F.conv2d(x, block.conv[0].weight, None, padding=1), None, None, training=True)
        x = F.batch_norm(F.conv2d(F.relu6(x), block.conv[3].weight, None, padding=1), None, None, training=True)
    expected = cut(F.conv2d(x, part.head.weight, part.head.bias), (32, 32))
    expected = expected.gather(1, query.index[..., None].expand(-1, -1, 3072))
    torch.testing.assert_close(part(seen, query), expected, atol=1e-4, rtol=1e-3)
    net.training_step(batch64()).backward()
    assert all(p.grad is not None for p in net.parameters())


def batch64():
    given = batch()
    given["x"] = type(given["x"])(images(4, 64), "image")
    return given


def test_lamb_step_by_step():
    layer = torch.nn.Linear(3, 2)
    optimizer = lamb(lr=0.1, betas=(0.9, 0.95), weight_decay=0.5).build(layer, 8)
    w, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in (("w", w), ("b", b))}
    for t in (1, 2, 3):
        for p in layer.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t))
        for name, p, grad, decay in (("w", w, layer.weight.grad, 0.5), ("b", b, layer.bias.grad, 0.0)):
            m, v = moments[name]
            m.mul_(0.9).add_(0.1 * grad)
            v.mul_(0.95).add_(0.05 * grad**2)
            u = m / (1 - 0.9**t) / ((v / (1 - 0.95**t)).sqrt() + 1e-6) + decay * p
            p -= 0.1 * (p.norm() / u.norm() if decay else 1.0) * u
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), w, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.bias.detach(), b, atol=1e-5, rtol=1e-5)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"set tokenizer\.patch=32"):
        Sparse(TokenSpec(768, 2, (4, 4), (16, 16), 3), name="test_resnet")
    with pytest.raises(ValueError, match="not known to look at active places"):
        Sparse(SPEC, name="test_efficientnet")
    with pytest.raises(ConfigError, match="see encoder/sparse"):
        module(objective={"pixels": PIXELS | {"predictor": {"_target_": "predictor/unet", "dim": 32}}})
    with pytest.raises(ConfigError, match="'batch' or 'layer'"):
        spark(norm="group")
