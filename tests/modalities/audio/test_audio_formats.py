import numpy as np
import pytest
import torch

import mmssl
from mmssl.modalities.audio.formats import audio_mae
from mmssl.modalities.audio.positions import SinCosTransposed
from mmssl.types import TokenSpec
from tests.small import tokens

# Audio-MAE with one block of width 16 and two of its decoder, on 64 x 64 patches of 8.
SMALL = [
    "data=sample", "tokenizer.frames=64", "encoder.dim=16", "encoder.depth=1", "encoder.heads=4",
    "objective.patches.predictor.dim=16", "objective.patches.predictor.depth=2",
]  # fmt: skip


def official():
    """Names and shapes of the released checkpoints, in miniature."""
    shapes = {
        "cls_token": (1, 1, 16), "pos_embed": (1, 65, 16), "decoder_pos_embed": (1, 65, 16), "mask_token": (1, 1, 16),
        "patch_embed.proj.weight": (16, 1, 8, 8), "patch_embed.proj.bias": (16,), "norm.weight": (16,), "norm.bias": (16,),
        "decoder_embed.weight": (16, 16), "decoder_embed.bias": (16,), "decoder_norm.weight": (16,),
        "decoder_norm.bias": (16,), "decoder_pred.weight": (64, 16), "decoder_pred.bias": (64,),
    }  # fmt: skip
    for block in ("blocks.0", "decoder_blocks.0", "decoder_blocks.1"):
        for name, out, into in (("attn.qkv", 48, 16), ("attn.proj", 16, 16), ("mlp.fc1", 64, 16), ("mlp.fc2", 16, 64)):
            shapes |= {f"{block}.{name}.weight": (out, into), f"{block}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}.{name}.weight": (16,), f"{block}.{name}.bias": (16,)}
        if block.startswith("decoder"):
            shapes |= {f"{block}.attn.tau": (4,), f"{block}.attn.meta_mlp.fc1.weight": (384, 2)}
            shapes |= {f"{block}.attn.meta_mlp.fc1.bias": (384,), f"{block}.attn.meta_mlp.fc2.weight": (4, 384)}
            shapes |= {f"{block}.attn.meta_mlp.fc2.bias": (4,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("nested", [True, False])
def test_audio_mae_fills_the_recipe(nested):
    module, _ = mmssl.build("audio/audio_mae", SMALL)
    state = official()
    found = audio_mae({"model": state, "epoch": 3} if nested else state, module)
    own = dict(module.named_parameters())
    assert {name: value.shape for name, value in found.items()} == {name: p.shape for name, p in own.items()}
    module.load_state_dict(found, strict=False)
    predictor = module.objective["patches"].predictor
    assert torch.equal(predictor.blocks[1].attn.tau, state["decoder_blocks.1.attn.tau"])
    assert torch.equal(module.networks["main"].encoder.blocks[0].mlp.fc2.weight, state["blocks.0.mlp.fc2.weight"])
    # the patch matrix is the convolution
    picture = torch.randn(2, 1, 8, 8)
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    wanted = torch.nn.functional.conv2d(picture, weight, bias, stride=8)[:, :, 0, 0]
    torch.testing.assert_close(module.networks["main"].embed.proj(picture.flatten(1)), wanted, rtol=0, atol=1e-4)


def test_a_bare_encoder_fills_the_encoder():
    module, _ = mmssl.build("audio/audio_mae", SMALL)
    state = {name: value for name, value in official().items() if "decoder" not in name and name != "mask_token"}
    found = audio_mae({"model": state}, module)
    assert set(found) == {name for name, _ in module.named_parameters() if name.startswith("networks.main")}


@pytest.mark.parametrize("grid", [(64, 8), (6, 4)])
def test_transposed_positions_are_the_releases(grid):
    """The table for a grid of (rows=8, columns=64) in row-major order, columns first, sines before cosines; by numpy."""
    dim, (steps, rows) = 16, grid
    column, row = np.meshgrid(np.arange(steps), np.arange(rows))

    def features(place):
        angle = np.outer(place.reshape(-1), 1 / 10000 ** (np.arange(dim // 4) / (dim / 4)))
        return np.concatenate([np.sin(angle), np.cos(angle)], 1)

    wanted = np.concatenate([features(column), features(row)], 1)
    given = tokens(1, steps * rows, grid=grid)
    made = SinCosTransposed(TokenSpec(5, 2, grid), dim)
    np.testing.assert_allclose(made(given)[0], wanted, atol=1e-6)
    some = given.take(torch.tensor([[7, 3]]))
    np.testing.assert_allclose(made(some)[0], wanted[[7, 3]], atol=1e-6)
    assert made.state_dict() == {}


def test_transposed_positions_need_a_grid():
    with pytest.raises(ValueError, match="needs tokens on a grid with two axes"):
        SinCosTransposed(TokenSpec(5, 1), 16)


def test_the_option_is_one_key():
    said = "objective.patches.predictor.position={_target_: position/sincos_transposed}"
    module, _ = mmssl.build("audio/audio_mae", [*SMALL, "encoder.position._target_=position/sincos_transposed", said])
    assert isinstance(module.networks["main"].encoder.position, SinCosTransposed)
    assert isinstance(module.objective["patches"].predictor.position, SinCosTransposed)
