"""Official layouts: wrappers, partial files and the order of patch weights. Numbers are proved in test_official.py."""

from __future__ import annotations

import pytest
import timm
import torch

from mmssl.parts.formats import crossmae, mae, patch_matrix, rename, simmim, timm_vit
from tests.small import CROSS, PIXELS, VIT, module


def official_mae():
    """The names and shapes of a small official MAE, with random values."""
    torch.manual_seed(0)
    state = {
        "cls_token": torch.randn(1, 1, 32), "pos_embed": torch.randn(1, 17, 32), "mask_token": torch.randn(1, 1, 32),
        "decoder_pos_embed": torch.randn(1, 17, 32), "patch_embed.proj.weight": torch.randn(32, 3, 8, 8),
        "patch_embed.proj.bias": torch.randn(32), "norm.weight": torch.randn(32), "norm.bias": torch.randn(32),
        "decoder_embed.weight": torch.randn(32, 32), "decoder_embed.bias": torch.randn(32),
        "decoder_norm.weight": torch.randn(32), "decoder_norm.bias": torch.randn(32),
        "decoder_pred.weight": torch.randn(192, 32), "decoder_pred.bias": torch.randn(192),
    }  # fmt: skip
    part = module()
    for theirs, ours in (
        ("blocks", "networks.main.encoder.blocks"),
        ("decoder_blocks", "objective.pixels.predictor.blocks"),
    ):
        state |= {
            name.replace(ours, theirs): torch.randn_like(value)
            for name, value in part.state_dict().items() if name.startswith(ours)
        }  # fmt: skip
    return state


@pytest.mark.parametrize("wrap", [None, "model", "state_dict", "module"])
def test_mae_fills_every_parameter(wrap):
    official, part = official_mae(), module()
    state = mae(official if wrap is None else {wrap: official, "epoch": 3}, part)
    assert set(state) == {name for name, _ in part.named_parameters()}
    part.load_state_dict(state, strict=False)
    assert torch.equal(part.networks["main"].encoder.blocks[1].attn.qkv.weight, official["blocks.1.attn.qkv.weight"])
    assert torch.equal(part.objective["pixels"].predictor.head.weight, official["decoder_pred.weight"])
    assert torch.equal(part.objective["pixels"].predictor.mask_token, official["mask_token"])


def test_mae_without_decoder_fills_the_encoder():
    official = {name: value for name, value in official_mae().items() if "decoder" not in name and name != "mask_token"}
    state = mae(official, module())
    assert state and all(name.startswith("networks.main.") for name in state)


def test_patch_matrix_is_the_convolution():
    torch.manual_seed(0)
    official, part = official_mae(), module()
    part.load_state_dict(mae(official, part), strict=False)
    tokens = part.networks["main"].tokenizer(torch_view())
    image = (torch_view().data - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(
        3, 1, 1
    )
    expected = torch.nn.functional.conv2d(
        image, official["patch_embed.proj.weight"], official["patch_embed.proj.bias"], stride=8
    ).flatten(2).transpose(1, 2)  # fmt: skip
    torch.testing.assert_close(part.networks["main"].embed(tokens).x, expected, rtol=1e-4, atol=1e-3)
    weight = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert patch_matrix(weight)[0, (1 * 4 + 2) * 2 + 1] == weight[0, 1, 1, 2]


def torch_view():
    from tests.small import batch

    return batch(2)["x"]


def test_crossmae_splits_keys_and_values():
    part = module(encoder=VIT | {"final_norm": False}, objective={"pixels": PIXELS | {"predictor": CROSS}})
    torch.manual_seed(0)
    base = "decoder_blocks.0.cross_attn."
    official = {
        base + "q.weight": torch.randn(16, 16), base + "q.bias": torch.randn(16), base + "kv.weight": torch.randn(32, 32),
        base + "kv.bias": torch.randn(32), base + "proj.weight": torch.randn(16, 16), "wfm.linear.weight": torch.randn(2, 3),
        "dec_norms.1.bias": torch.randn(32),
    }  # fmt: skip
    state = crossmae({"model": official}, part)
    ours = "objective.pixels.predictor.blocks.0.attn."
    assert torch.equal(state[ours + "k_proj_weight"], official[base + "kv.weight"][:16])
    assert torch.equal(state[ours + "v_proj_weight"], official[base + "kv.weight"][16:])
    assert torch.equal(state[ours + "in_proj_bias"], torch.cat([official[base + "q.bias"], official[base + "kv.bias"]]))
    own = part.state_dict()
    assert all(own[name].shape == value.shape for name, value in state.items()) and len(state) == 7


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_simmim_with_and_without_prefix(prefix):
    part = module(
        encoder={"_target_": "encoder/beit", "dim": 32, "depth": 1, "heads": 4}, masker={"_target_": "masker/units"},
        corruptor={"_target_": "corruptor/token"}, objective={"pixels": PIXELS | {"predictor": {"_target_": "predictor/linear"}}},
    )  # fmt: skip
    official = {
        f"{prefix}mask_token": torch.randn(1, 1, 32), f"{prefix}cls_token": torch.randn(1, 1, 32),
        f"{prefix}rel_pos_bias.relative_position_bias_table": torch.randn(52, 4),
        "decoder.0.weight": torch.randn(192, 32, 1, 1), "decoder.0.bias": torch.arange(192.0),
    }  # fmt: skip
    state = simmim({"model": official}, part)
    own = part.state_dict()
    assert len(state) == 5 and all(own[name].shape == value.shape for name, value in state.items())
    # theirs counts channel, row, column; ours row, column, channel
    bias = state["objective.pixels.predictor.head.bias"]
    assert float(bias[(5 * 8 + 3) * 3 + 2]) == 2 * 64 + 5 * 8 + 3


def test_timm_vit_fills_the_encoder():
    part = module(encoder={"_target_": "encoder/vit", "dim": 192, "depth": 12, "heads": 3})
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10)
    state = timm_vit(theirs.state_dict(), part)
    assert set(state) == {name for name, _ in part.named_parameters() if name.startswith("networks.main.")}
    assert torch.equal(state["networks.main.encoder.prefix"], theirs.cls_token)


def test_rename_takes_the_first_rule_and_leaves_out_the_rest():
    state = {name: torch.tensor(i) for i, name in enumerate(["a.b", "a.c", "xa.b", "z"])}
    found = rename(state, [(r"a\.b", "first"), (r"a\.(.)", r"second.\1")])
    assert {name: int(value) for name, value in found.items()} == {"first": 0, "second.c": 1}
