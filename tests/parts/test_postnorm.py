import pytest
import torch

from mmssl.nn.positions import sincos
from mmssl.parts.encoders.postnorm import PostNorm
from mmssl.parts.mlp_predictor import MLP
from mmssl.types import TokenSpec
from tests.small import tokens


def encoder(**said):
    torch.manual_seed(0)
    return PostNorm(TokenSpec(5, 1), **{"dim": 16, "depth": 2, "heads": 4} | said).eval()


def embedded(b, n, valid=None):
    given = tokens(b, n, valid=valid)
    return given.but(x=torch.randn(b, n, 16, generator=torch.Generator().manual_seed(n)), count=n)


def test_post_norm_layers_written_out():
    net, given = encoder(), embedded(2, 7)
    made = net(given, ("embed", "block.0"))
    x = torch.nn.functional.layer_norm(given.x + sincos(given.pos, 16), (16,), net.norm.weight, net.norm.bias, 1e-12)
    torch.testing.assert_close(made.taps["embed"], x)
    for i, block in enumerate(net.blocks):
        q, k, v = (x @ block.self_attn.in_proj_weight.T + block.self_attn.in_proj_bias).reshape(2, 7, 3, 4, 4).unbind(2)
        share = torch.einsum("bihd,bjhd->bhij", q, k).div(2).softmax(-1)
        read = torch.einsum("bhij,bjhd->bihd", share, v).flatten(2)
        x = block.norm1(x + block.self_attn.out_proj(read))
        x = block.norm2(x + block.linear2(torch.nn.functional.gelu(block.linear1(x))))
        if i == 0:
            torch.testing.assert_close(made.taps["block.0"], x, rtol=0, atol=1e-5)
    torch.testing.assert_close(made.x, x, rtol=0, atol=1e-5)
    assert net.tap_names == ("embed", "block.0", "block.1", "ffn.0", "ffn.1")
    assert net.dim == 16 and made.prefix is None


@pytest.mark.parametrize("class_token", [False, True])
def test_what_the_mlps_add_can_be_asked_for(class_token):
    """data2vec's targets: the output of a layer is the norm of its MLP's output and the MLP's input."""
    net, valid = encoder(class_token=class_token), torch.arange(7) < torch.tensor([7, 5]).unsqueeze(1)
    given, count = embedded(2, 7, valid), int(class_token)
    taps = ("embed", "ffn.0", "block.0", "ffn.1", "block.1")
    made, plain = net(given, taps), net(given)
    torch.testing.assert_close(made.x[valid], plain.x[valid], rtol=0, atol=1e-5)
    assert set(made.taps) == set(taps) and not plain.taps
    x = made.taps["embed"]
    kept = torch.nn.functional.pad(valid, (count, 0), value=True)
    for i, block in enumerate(net.blocks):
        read, _ = block.self_attn(x, x, x, key_padding_mask=~kept)
        y = block.norm1(x + read)
        mlp = torch.nn.functional.gelu(y @ block.linear1.weight.T + block.linear1.bias) @ block.linear2.weight.T
        mlp = mlp + block.linear2.bias
        torch.testing.assert_close(made.taps[f"ffn.{i}"][kept], mlp[kept], rtol=0, atol=1e-5)
        x = block.norm2(y + mlp)
        torch.testing.assert_close(made.taps[f"block.{i}"][kept], x[kept], rtol=0, atol=1e-5)
    torch.testing.assert_close(made.x[valid], x[:, count:][valid], rtol=0, atol=1e-5)


def test_a_class_token_stands_in_front_and_any_subset_will_do():
    net, given = encoder(class_token=True), embedded(2, 7)
    made = net(given, ("embed",))
    assert made.prefix.shape == (2, 1, 16) and made.x.shape == (2, 7, 16) and made.taps["embed"].shape == (2, 8, 16)
    torch.testing.assert_close(made.taps["embed"][:, :1], net.norm(net.prefix).expand(2, -1, -1))  # it has no position
    some = torch.tensor([[3, 0, 5], [6, 2, 1]])
    one, two = net(given.take(some)), net(given.take(some.flip(1)))
    torch.testing.assert_close(one.x, two.x.flip(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(one.prefix, two.prefix, rtol=0, atol=1e-5)
    assert not torch.isclose(one.prefix, made.prefix, atol=1e-4).all()


def test_attention_does_not_read_padding():
    valid = torch.arange(9) < torch.tensor([9, 5]).unsqueeze(1)
    net, given = encoder(), embedded(2, 9, valid)
    made = net(given).x
    changed = given.but(x=given.x.masked_fill(~valid.unsqueeze(2), 7.0))
    assert torch.equal(net(changed).x[valid], made[valid])
    alone = embedded(2, 9).take(torch.arange(5).expand(1, 5), torch.tensor([1]))
    torch.testing.assert_close(net(alone).x[0], made[1, :5], rtol=0, atol=1e-5)


def test_dropout_is_everywhere_and_only_in_training():
    net, given = encoder(dropout=0.5), embedded(1, 6)
    assert torch.equal(net(given).x, net(given).x)
    net.train()
    assert not torch.equal(net(given).x, net(given).x)
    rates = {part.p for part in net.modules() if isinstance(part, torch.nn.Dropout)}
    assert rates == {0.5} and net.blocks[0].self_attn.dropout == 0.5


def test_initial_weights():
    net = encoder(dim=64, depth=1)
    for weight in (net.blocks[0].self_attn.in_proj_weight, net.blocks[0].linear1.weight):
        assert abs(float(weight.detach().std()) - 0.02) < 0.001
    assert not net.blocks[0].linear1.bias.any()
    with pytest.raises(ValueError, match=r"encoder\.heads=5 does not divide encoder\.dim=16"):
        encoder(heads=5)


@pytest.mark.parametrize("dim", [None, 12])
def test_head_is_linear_gelu_norm_linear(dim):
    torch.manual_seed(1)
    head = MLP(TokenSpec(5, 1), 16, 5, (), dim=dim)
    seen = embedded(2, 7)
    query = seen.take(torch.tensor([[6, 0, 3], [2, 1, 5]]))
    x = seen.x.gather(1, query.index.unsqueeze(-1).expand(-1, -1, 16))
    x = torch.nn.functional.gelu(x @ head.hidden.weight.T + head.hidden.bias)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-12).sqrt()
    torch.testing.assert_close(head(seen, query), x @ head.head.weight.T + head.head.bias, rtol=0, atol=1e-5)
    assert head.hidden.out_features == (dim or 16)
