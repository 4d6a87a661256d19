"""Checkpoints of BEATs and Bird-MAE: every tensor finds its place, and features are those of plain tensor code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchaudio.models.wav2vec2.wavlm_attention import WavLMSelfAttention

import mmssl
from mmssl.modalities.audio.formats import bird_mae
from mmssl.modalities.audio.formats_speech import beats
from mmssl.run.checkpoints import fill
from mmssl.types import View

torch.set_num_threads(1)  # everything is small: threads would only wait for one another

DEPTH, DIM, HEADS, STEM, PATCH, BUCKETS, LONGEST = 2, 32, 4, 24, 8, 32, 40
BEATS = [
    "data=sample", f"encoder.dim={DIM}", f"encoder.depth={DEPTH}", f"encoder.heads={HEADS}", f"tokenizer.stem={STEM}",
    f"tokenizer.patch={PATCH}", "tokenizer.frames=96", f"+encoder.buckets={BUCKETS}", f"+encoder.longest={LONGEST}",
]  # fmt: skip
CFG = {
    "deep_norm": True, "layer_norm_first": False, "relative_position_embedding": True, "gru_rel_pos": True,
    "activation_fn": "gelu", "max_distance": LONGEST, "num_buckets": BUCKETS,
}  # fmt: skip


def drawn(shapes):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name, dim):
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def beats_state(depth=DEPTH):
    """Names and shapes of the released models, in miniature; the table of distances is shared, and named by every layer."""
    shapes = {"patch_embedding.weight": (STEM, 1, PATCH, PATCH)} | norm("layer_norm", STEM)
    shapes |= linear("post_extract_proj", DIM, STEM) | norm("encoder.layer_norm", DIM)
    shapes |= {
        "encoder.pos_conv.0.bias": (DIM,), "encoder.pos_conv.0.weight_g": (1, 1, 128),
        "encoder.pos_conv.0.weight_v": (DIM, DIM // 16, 128),
    }  # fmt: skip
    for i in range(depth):
        layer = f"encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{part}", DIM, DIM)
        shapes |= linear(f"{layer}.self_attn.grep_linear", 8, DIM // HEADS)
        shapes |= {f"{layer}.self_attn.grep_a": (1, HEADS, 1, 1)}
        shapes |= linear(f"{layer}.fc1", 4 * DIM, DIM) | linear(f"{layer}.fc2", DIM, 4 * DIM)
        shapes |= norm(f"{layer}.self_attn_layer_norm", DIM) | norm(f"{layer}.final_layer_norm", DIM)
    state = drawn(shapes)
    table = drawn({"table": (BUCKETS, HEADS)})["table"] * 5
    return state | {f"encoder.layers.{i}.self_attn.relative_attention_bias.weight": table for i in range(depth)}


def mapped(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def normed(state, name, x, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def beats_features(state, picture):
    """Features of pictures (b, 1, frames, bins)."""
    x = F.conv2d(picture, state["patch_embedding.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = mapped(state, "post_extract_proj", normed(state, "layer_norm", x))
    b, n, _ = x.shape
    v, g = state["encoder.pos_conv.0.weight_v"], state["encoder.pos_conv.0.weight_g"]
    weight = v * g / v.square().sum((0, 1), keepdim=True).sqrt()
    heard = F.conv1d(x.mT, weight, state["encoder.pos_conv.0.bias"], padding=64, groups=16)[..., :-1]
    x = normed(state, "encoder.layer_norm", x + F.gelu(heard).mT)
    place = torch.arange(n)
    theirs = WavLMSelfAttention(8, 2, num_buckets=BUCKETS, max_distance=LONGEST)
    table = state["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    bias = table[theirs._relative_positions_bucket(place[None] - place[:, None])].permute(2, 0, 1)
    alpha = (2 * DEPTH) ** 0.25
    for i in range(DEPTH):
        layer = f"encoder.layers.{i}"
        q, k, v = (mapped(state, f"{layer}.self_attn.{p}_proj", x).view(b, n, HEADS, -1).transpose(1, 2) for p in "qkv")
        gates = torch.sigmoid(mapped(state, f"{layer}.self_attn.grep_linear", q).view(b, HEADS, n, 2, 4).sum(-1))
        gate = gates[..., :1] * (gates[..., 1:] * state[f"{layer}.self_attn.grep_a"] - 1) + 2
        read = torch.softmax(q @ k.mT / (DIM // HEADS) ** 0.5 + gate * bias, -1) @ v
        read = mapped(state, f"{layer}.self_attn.out_proj", read.transpose(1, 2).flatten(2))
        x = normed(state, f"{layer}.self_attn_layer_norm", alpha * x + read)
        read = mapped(state, f"{layer}.fc2", F.gelu(mapped(state, f"{layer}.fc1", x)))
        x = normed(state, f"{layer}.final_layer_norm", alpha * x + read)
    return x


def pictured(network, wave):
    """The picture that a recording's patches make up, (b, 1, frames, bins), and its tokens."""
    tokens = network.tokenizer(View(wave, "audio"))
    steps, rows = network.spec.grid
    cells = tokens.raw.reshape(len(wave), steps, rows, PATCH, PATCH).transpose(2, 3)
    return cells.reshape(len(wave), 1, steps * PATCH, rows * PATCH), tokens


def test_beats_fills_the_encoder():
    module, state = mmssl.build("audio/openbeats", BEATS)[0].eval(), beats_state()
    found = beats({"cfg": CFG, "model": state}, module)
    own = {n: p.shape for n, p in module.named_parameters() if n.startswith("networks.")}
    assert {n: v.shape for n, v in found.items()} == own
    assert set(beats(state, module)) == set(own)
    tuned = {"predictor.weight": torch.zeros(527, DIM), "predictor.bias": torch.zeros(527)}
    assert set(beats({"cfg": CFG, "model": state | tuned, "label_dict": {0: "/m/0"}}, module)) == set(own)
    assert "not in the file: objective.codes" in fill(module, found, 1.0, "FILE")
    network = module.networks["main"]
    with torch.no_grad():
        picture, tokens = pictured(network, torch.randn(2, 16000, generator=torch.Generator().manual_seed(1)) * 0.1)
        wanted = beats_features(state, picture)
        made = network.encode(tokens.but(valid=None)).x
    assert wanted.std() > 0.1
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)


def test_other_models_of_beats_are_refused():
    module = mmssl.build("audio/openbeats", BEATS)[0]
    with pytest.raises(ValueError, match=r"encoder is another one: networks\.main\.encoder\.blocks\.2\."):
        beats({"cfg": CFG, "model": beats_state(DEPTH + 1)}, module)
    with pytest.raises(ValueError, match=r"distances up to 800 \(got encoder\.longest=40\); set encoder\.longest=800"):
        beats({"cfg": CFG | {"max_distance": 800}, "model": beats_state()}, module)
    for key, value in (("deep_norm", False), ("gru_rel_pos", False), ("activation_fn", "glu")):
        with pytest.raises(ValueError, match=f"has {key}={value!r}"):
            beats({"cfg": CFG | {key: value}, "model": beats_state()}, module)
    for name in ("quantize.embedding.weight", "patch_embedding.bias"):
        with pytest.raises(ValueError, match=f"the file holds {name}, which"):
            beats({"cfg": CFG, "model": beats_state() | {name: torch.zeros(STEM)}}, module)


TRANSPOSED = [
    "encoder.position._target_=position/sincos_transposed",
    "objective.patches.predictor.position={_target_: position/sincos_transposed}",
]
BIRDS = [
    "data=sample", f"encoder.dim={DIM}", f"encoder.depth={DEPTH}", f"encoder.heads={HEADS}", f"tokenizer.patch={PATCH}",
    "tokenizer.frames=96", "objective.patches.predictor.dim=16", "objective.patches.predictor.depth=2",
    "objective.patches.predictor.heads=2",
]  # fmt: skip


def sincos(dim, steps, rows):
    """The release's table: for a grid of `rows` rows and `steps` columns, columns first, a class token's zeros in front."""
    column, row = np.meshgrid(np.arange(steps), np.arange(rows))

    def features(place):
        angle = np.outer(place.reshape(-1), 1 / 10000 ** (np.arange(dim // 4) / (dim / 4)))
        return np.concatenate([np.sin(angle), np.cos(angle)], 1)

    table = np.concatenate([features(column), features(row)], 1)
    return torch.from_numpy(np.concatenate([np.zeros((1, dim)), table])).float()[None]


def birds_state(grid, depth=DEPTH):
    """Names and shapes of its Lightning module, in miniature."""
    shapes = {"encoder.cls_token": (1, 1, DIM), "encoder.patch_embed.proj.weight": (DIM, 1, PATCH, PATCH)}
    shapes |= {"encoder.patch_embed.proj.bias": (DIM,), "decoder.mask_token": (1, 1, 16)} | norm("encoder.norm", DIM)
    shapes |= linear("decoder.decoder_embed", 16, DIM) | norm("decoder.decoder_norm", 16)
    shapes |= linear("decoder.decoder_pred", PATCH**2, 16)
    for name, dim, count in (("encoder", DIM, depth), ("decoder", 16, 2)):
        for i in range(count):
            block = f"{name}.blocks.{i}"
            shapes |= norm(f"{block}.norm1", dim) | norm(f"{block}.norm2", dim)
            shapes |= linear(f"{block}.attn.qkv", 3 * dim, dim) | linear(f"{block}.attn.proj", dim, dim)
            shapes |= linear(f"{block}.mlp.fc1", 4 * dim, dim) | linear(f"{block}.mlp.fc2", dim, 4 * dim)
    tables = {"encoder.pos_embed": sincos(DIM, *grid), "decoder.decoder_pos_embed": sincos(16, *grid)}
    return drawn(shapes) | tables


def run(state, name, depth, heads, x):
    """Pre-norm blocks."""
    for i in range(depth):
        block = f"{name}.blocks.{i}"
        y = mapped(state, f"{block}.attn.qkv", normed(state, f"{block}.norm1", x, 1e-6))
        q, k, v = y.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
        x = x + mapped(state, f"{block}.attn.proj", y.transpose(1, 2).flatten(2))
        y = F.gelu(mapped(state, f"{block}.mlp.fc1", normed(state, f"{block}.norm2", x, 1e-6)))
        x = x + mapped(state, f"{block}.mlp.fc2", y)
    return x


def test_bird_mae_fills_everything():
    module = mmssl.build("audio/bird_mae", [*BIRDS, *TRANSPOSED])[0].eval()
    network = module.networks["main"]
    state = birds_state(network.spec.grid)
    found = bird_mae({"state_dict": state, "epoch": 150}, module)
    assert {n: v.shape for n, v in found.items()} == {n: p.shape for n, p in module.named_parameters()}
    assert set(bird_mae(state, module)) == set(found)
    fill(module, found, 1.0, "FILE")
    order = torch.randperm(network.spec.length, generator=torch.Generator().manual_seed(0))
    visible, asked = (part.sort().values for part in order.split([network.spec.length // 4, len(order) * 3 // 4]))
    with torch.no_grad():
        picture, tokens = pictured(network, torch.randn(2, 24000, generator=torch.Generator().manual_seed(1)) * 0.1)
        seen = network.encode(tokens.take(visible.expand(2, -1)))
        made = module.objective["patches"].predictor(seen, tokens.take(asked.expand(2, -1)))
        weight, bias = state["encoder.patch_embed.proj.weight"], state["encoder.patch_embed.proj.bias"]
        x = F.conv2d(picture, weight, bias, PATCH).flatten(2).transpose(1, 2) + state["encoder.pos_embed"][:, 1:]
        x = torch.cat([state["encoder.cls_token"].expand(2, -1, -1), x[:, visible]], 1)
        x = normed(state, "encoder.norm", run(state, "encoder", DEPTH, HEADS, x), 1e-6)
        y = state["decoder.mask_token"].repeat(2, 1 + len(order), 1)
        y[:, torch.cat([torch.zeros(1, dtype=torch.long), 1 + visible])] = mapped(state, "decoder.decoder_embed", x)
        y = run(state, "decoder", 2, 2, y + state["decoder.decoder_pos_embed"])
        y = mapped(state, "decoder.decoder_pred", normed(state, "decoder.decoder_norm", y, 1e-6))[:, 1:]
    torch.testing.assert_close(seen.prefix, x[:, :1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.x, x[:, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made, y[:, asked], atol=1e-5, rtol=1e-5)


def test_other_birds_are_refused_or_reported():
    module = mmssl.build("audio/bird_mae", BIRDS)[0]
    grid = module.networks["main"].spec.grid
    with pytest.raises(ValueError, match=r"encoder is another one: networks\.main\.encoder\.blocks\.2\."):
        bird_mae({"state_dict": birds_state(grid, DEPTH + 1)}, module)
    with pytest.raises(ValueError, match=r"the file holds head\.weight, which"):
        bird_mae({"state_dict": birds_state(grid) | {"head.weight": torch.zeros(3, DIM)}}, module)
    bare = {n: v for n, v in birds_state(grid).items() if n.startswith("encoder.")}
    found = bird_mae({"state_dict": bare}, module)
    assert set(found) == {n for n, _ in module.named_parameters() if n.startswith("networks.")}
    assert "not in the file: objective.patches.predictor" in fill(module, found, 0.9, "FILE")
