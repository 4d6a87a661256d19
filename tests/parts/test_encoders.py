"""Encoders against timm's own models with the same weights, and on any subset of tokens."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mmssl.config import build
from mmssl.config.compose import ConfigError
from mmssl.parts.encoders.beit import BEiT
from mmssl.parts.encoders.vit import ViT, tap_names
from mmssl.parts.formats import patch_matrix
from mmssl.parts.positions import learned
from mmssl.types import TokenSpec, View
from tests.small import FACTS, batch, images, module, tokens, tree

SPEC = TokenSpec(192, 2, (4, 4), (8, 8), 3)


def embedded(dim, b=2, **more):
    torch.manual_seed(0)
    return tokens(b, 16, grid=(4, 4), x=torch.randn(b, 16, dim), **more)


def network(encoder, size=32, patch=8, facts=FACTS):
    torch.manual_seed(0)
    return build.network(
        {"tokenizer": {"_target_": "tokenizer/image", "size": size, "patch": patch}, "encoder": encoder}, facts
    )


def normalised(image, facts=FACTS):
    mean, std = (torch.tensor(facts[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return (image - mean) / std


def test_vit_equals_timms():
    ours = network({"_target_": "encoder/vit", "dim": 24, "depth": 3, "heads": 3}).eval()
    theirs = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=0, global_pool="",
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()  # fmt: skip
    state = {name: value for name, value in ours.encoder.state_dict().items() if name.startswith(("blocks", "norm"))}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) == {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }
    with torch.no_grad():
        theirs.cls_token.copy_(ours.encoder.prefix)
        theirs.pos_embed[:, 0].zero_()
        theirs.pos_embed[:, 1:].copy_(ours.encoder.position.table)
        theirs.patch_embed.proj.weight.copy_(ours.embed.proj.weight.reshape(24, 8, 8, 3).permute(0, 3, 1, 2))
        theirs.patch_embed.proj.bias.copy_(ours.embed.proj.bias)
        assert torch.equal(patch_matrix(theirs.patch_embed.proj.weight), ours.embed.proj.weight)
        found, expected = ours(images(2)), theirs(normalised(images(2)))
    torch.testing.assert_close(torch.cat([found.prefix, found.x], 1), expected, rtol=1e-4, atol=1e-5)


def test_vit_runs_on_any_subset_in_any_order():
    encoder = ViT(SPEC, dim=24, depth=2, heads=3).eval()
    whole = embedded(24)
    some = torch.tensor([[3, 7, 1, 12], [0, 5, 9, 2]])
    first = encoder(whole.take(some))
    order = torch.tensor([2, 0, 3, 1])
    second = encoder(whole.take(some[:, order]))
    torch.testing.assert_close(first.x[:, order], second.x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.prefix, second.prefix, rtol=1e-4, atol=1e-5)
    assert not torch.isclose(first.x, encoder(whole).x.gather(1, some.unsqueeze(-1).expand(-1, -1, 24))).all()


def test_vit_keeps_off_padding():
    encoder = ViT(SPEC, dim=24, depth=2, heads=3).eval()
    whole = embedded(24)
    count = torch.tensor([16, 5])
    padded = encoder(whole.but(valid=torch.arange(16) < count.unsqueeze(1)))
    short = encoder(whole.take(torch.arange(5).expand(2, 5)))
    torch.testing.assert_close(padded.x[1, :5], short.x[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded.prefix[1], short.prefix[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded.x[0], encoder(whole).x[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded.pool()[1], short.x[1].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("class_token", "registers"), [(True, 0), (True, 4), (False, 2), (False, 0)])
def test_vit_prefix(class_token, registers):
    encoder = ViT(SPEC, dim=24, depth=1, heads=3, class_token=class_token, registers=registers)
    found = encoder(embedded(24))
    count = class_token + registers
    assert found.x.shape == (2, 16, 24)
    assert (found.prefix is None) == (count == 0)
    if count:
        assert found.prefix.shape == (2, count, 24)
        torch.testing.assert_close(found.pool("cls"), found.prefix[:, 0])


def test_vit_taps_are_the_layers():
    encoder = ViT(SPEC, dim=24, depth=3, heads=3).eval()
    assert tap_names(3) == ("embed", "block.0", "block.1", "block.2")
    assert encoder.tap_names == (*tap_names(3), "ffn.0", "ffn.1", "ffn.2", "qkv.0", "qkv.1", "qkv.2")
    whole = embedded(24)
    found = encoder(whole, ("embed", "block.0", "block.2"))
    x = torch.cat([encoder.prefix.expand(2, -1, -1), whole.x + encoder.position.table], 1)
    assert torch.equal(found.taps["embed"], x)
    for i, block in enumerate(encoder.blocks):
        x = block(x)
        if i != 1:
            torch.testing.assert_close(found.taps[f"block.{i}"], x)
    assert "block.1" not in found.taps
    torch.testing.assert_close(torch.cat([found.prefix, found.x], 1), encoder.norm(found.taps["block.2"]))
    bare = ViT(SPEC, dim=24, depth=1, heads=3, final_norm=False)(whole, ("block.0",))
    assert torch.equal(torch.cat([bare.prefix, bare.x], 1), bare.taps["block.0"])


@pytest.mark.parametrize("scale", [None, 0.3])
def test_vit_gives_what_its_attention_reads_and_what_its_mlps_add(scale):
    torch.manual_seed(0)
    encoder = ViT(SPEC, dim=24, depth=2, heads=3, layer_scale=scale).eval()
    assert encoder.tap_names == ("embed", "block.0", "block.1", "ffn.0", "ffn.1", "qkv.0", "qkv.1")
    valid = torch.arange(16) < torch.tensor([16, 9]).unsqueeze(1)
    whole, mask = embedded(24).but(valid=valid), torch.nn.functional.pad(valid, (1, 0), value=True)[:, None, None]
    found = encoder(whole, encoder.tap_names)
    x = found.taps["embed"]
    for i, block in enumerate(encoder.blocks):
        torch.testing.assert_close(found.taps[f"qkv.{i}"], block.attn.qkv(block.norm1(x)))
        middle = x + block.ls1(block.attn(block.norm1(x), attn_mask=mask))
        added = block.mlp(block.norm2(middle))
        torch.testing.assert_close(found.taps[f"ffn.{i}"], added)
        x = middle + added * (1.0 if scale is None else scale)
        torch.testing.assert_close(found.taps[f"block.{i}"], x)
    torch.testing.assert_close(found.x, encoder(whole).x)


@pytest.mark.parametrize("make", [ViT, BEiT])
def test_drop_path_rises_linearly(make):
    encoder = make(SPEC, dim=24, depth=5, heads=3, drop_path=0.2)
    rates = [getattr(getattr(b, "drop_path1", None), "drop_prob", 0.0) or 0.0 for b in encoder.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_vit_options():
    scaled = ViT(SPEC, dim=24, depth=1, heads=3, layer_scale=0.3, mlp_ratio=2.0)
    assert torch.equal(scaled.blocks[0].ls1.gamma, torch.full((24,), 0.3))
    assert scaled.blocks[0].mlp.fc1.out_features == 48
    assert scaled.norm.eps == scaled.blocks[0].norm1.eps == 1e-6
    table = ViT(SPEC, dim=24, depth=1, heads=3, position=learned).position.table
    assert table.shape == (16, 24) and table.requires_grad


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"heads": 5}, r"encoder\.heads=5 does not divide encoder\.dim=24"),
        ({"init": "zeros"}, r"encoder\.init has to be 'xavier', 'trunc_normal' or 'beit' \(got 'zeros'\)"),
    ],
)
def test_vit_refuses(said, message):
    with pytest.raises(ValueError, match=message):
        ViT(SPEC, **({"dim": 24, "depth": 1, "heads": 3} | said))


def test_beit_equals_timms():
    torch.manual_seed(0)
    ours = BEiT(SPEC, dim=24, depth=3, heads=3, layer_scale=0.1).eval()
    theirs = Beit(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=0, global_pool="", init_values=0.1,
        use_abs_pos_emb=False, use_shared_rel_pos_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()  # fmt: skip
    with torch.no_grad():
        ours.bias.relative_position_bias_table.normal_()
        for block in ours.blocks:
            block.attn.q_bias.normal_(), block.attn.v_bias.normal_()
    state = {name: value for name, value in ours.state_dict().items() if not name.startswith(("prefix", "bias"))}
    state |= {f"rel_pos_bias.{name}": value for name, value in ours.bias.state_dict().items()}
    state["cls_token"] = ours.prefix
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    whole = embedded(24)
    theirs.patch_embed = nn.Identity()
    with torch.no_grad():
        found, expected = ours(whole), theirs.forward_features(whole.x)
    torch.testing.assert_close(torch.cat([found.prefix, found.x], 1), expected, rtol=1e-4, atol=1e-5)


def test_beit_bias_is_relative_and_shared():
    """The logits' bias of two patches depends on their offset alone; class rows have values of their own."""
    encoder = BEiT(SPEC, dim=24, depth=2, heads=3)
    table = encoder.bias.relative_position_bias_table
    assert table.shape == (7 * 7 + 3, 3) and not table.any()
    with torch.no_grad():
        table.copy_(torch.arange(52.0).unsqueeze(1).expand(52, 3))
    bias = encoder.bias().detach().reshape(3, 17, 17)[0]
    for q in range(16):
        for k in range(16):
            dy, dx = q // 4 - k // 4, q % 4 - k % 4
            assert float(bias[q + 1, k + 1]) == (dy + 3) * 7 + dx + 3
    assert set(bias[0, 1:].tolist()) == {49.0} and set(bias[1:, 0].tolist()) == {50.0} and float(bias[0, 0]) == 51.0
    assert sum("bias_table" in name for name, _ in encoder.named_parameters()) == 1


def test_beit_has_no_key_bias():
    block = BEiT(SPEC, dim=24, depth=1, heads=3).blocks[0]
    assert block.attn.qkv.bias is None
    assert {name for name, _ in block.attn.named_parameters()} == {
        "q_bias",
        "v_bias",
        "qkv.weight",
        "proj.weight",
        "proj.bias",
    }


def test_beit_needs_a_grid_of_two_axes():
    for grid in (None, (4,), (2, 4, 4)):
        with pytest.raises(ValueError, match="encoder/beit needs tokens on a two-dimensional grid"):
            BEiT(TokenSpec(1, 1, grid), dim=24, depth=1, heads=3)


def timm_network(name, **said):
    return network({"_target_": "encoder/timm", "name": name} | said).eval()


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_vit4", "vit_tiny_patch16_224"])
def test_timms_vision_transformers_give_timms_numbers(name):
    ours = timm_network(name)
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0, global_pool="", img_size=32, patch_size=8).eval()
    encoder = dict(ours.encoder.named_parameters())
    for key, value in theirs.named_parameters():  # the same weights, whatever the generator did
        if key in encoder:
            value.data.copy_(encoder[key].data)
    theirs.patch_embed.proj.weight.data.copy_(ours.embed.proj.weight.data.reshape(-1, 8, 8, 3).permute(0, 3, 1, 2))
    if theirs.patch_embed.proj.bias is not None:
        theirs.patch_embed.proj.bias.data.copy_(ours.embed.proj.bias.data)
    tokens_of = [t for t in (theirs.cls_token, theirs.reg_token) if t is not None]
    for token, ours_token in zip(tokens_of, ours.encoder.prefix_tokens, strict=True):
        token.data.copy_(ours_token.data)
    with torch.no_grad():
        found, expected = ours(images(2)), theirs.forward_features(normalised(images(2)))
    joined = found.x if found.prefix is None else torch.cat([found.prefix, found.x], 1)
    torch.testing.assert_close(joined, expected, rtol=1e-4, atol=1e-4)


def test_timms_stem_becomes_the_embedding():
    ours = timm_network("test_vit")
    weight, bias = ours.encoder.stem()
    assert torch.equal(ours.embed.proj.weight, weight) and torch.equal(ours.embed.proj.bias, bias)
    assert not any("patch_embed" in name for name in ours.state_dict())


def test_timms_vision_transformers_take_any_subset():
    encoder = timm_network("test_vit").encoder
    whole = embedded(encoder.dim)
    some = torch.tensor([[3, 7, 1], [0, 5, 9]])
    order = torch.tensor([2, 0, 1])
    first, second = encoder(whole.take(some)), encoder(whole.take(some[:, order]))
    torch.testing.assert_close(first.x[:, order], second.x, rtol=1e-4, atol=1e-5)
    assert encoder.accepts == "sequence" and set(encoder(whole, ("block.0",)).taps) == {"block.0"}


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_timms_convolutions_read_whole_images(name):
    ours = timm_network(name)
    assert ours.encoder.accepts == "grid"
    with torch.no_grad():
        found, expected = ours(images(2)), ours.encoder.model.forward_features(normalised(images(2)))
    torch.testing.assert_close(found.x.transpose(1, 2).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    assert found.x.shape[-1] == ours.dim and found.grid == tuple(expected.shape[-2:])
    torch.testing.assert_close(found.pool(), expected.flatten(2).mean(2), rtol=1e-4, atol=1e-5)


def test_hidden_cells_of_a_grid_are_zeroed():
    part = module(encoder={"_target_": "encoder/timm", "name": "test_resnet"}, objective={"pixels": tree()["objective"]["pixels"] | {"at": "all"}}).eval()  # fmt: skip
    given = batch()
    first = part.begin(given)["x"]
    hidden = nn.functional.interpolate(first.mask.hidden.reshape(4, 1, 4, 4).float(), scale_factor=8) > 0
    second = part.begin(given | {"x": View(torch.where(hidden, images(4, seed=9), given["x"].data), "image")})["x"]
    with torch.no_grad():
        torch.testing.assert_close(first.seen.x, second.seen.x, rtol=0, atol=0)
        zero = part.networks["main"].encoder.model.forward_features(normalised(given["x"].data) * ~hidden)
    torch.testing.assert_close(first.seen.x.detach().transpose(1, 2).reshape(zero.shape), zero, rtol=1e-4, atol=1e-5)


def test_timm_adapts_to_channels():
    facts = {"channels": 1, "mean": [0.5], "std": [0.2]}
    for name in ("test_vit", "test_resnet"):
        ours = network({"_target_": "encoder/timm", "name": name}, facts=facts)
        assert ours(torch.rand(2, 1, 32, 32)).x.shape[0] == 2


def test_unknown_timm_names_are_answered():
    with pytest.raises(
        ConfigError, match=r"timm has no model 'vit_tinny_patch16_224'; did you mean 'vit_tiny_patch16_224'"
    ):
        timm_network("vit_tinny_patch16_224")


def test_a_sequence_is_no_map():
    ours = timm_network("xcit_nano_12_p16_224")
    with pytest.raises(ValueError, match="gives a sequence, not a map"):
        ours(images(1))


def test_timms_vision_transformers_take_another_size():
    ours = timm_network("test_vit")
    larger = ours(images(1, size=64))
    assert larger.x.shape[1] == 64
