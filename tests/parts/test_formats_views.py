"""Official files of CroCo, CropMAE, SparK, CAPI and MultiMAE fill the recipes' modules, which then compute what the
official forward passes do, written out plainly here."""

from __future__ import annotations

import argparse
import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F

import mmssl
from mmssl.run.checkpoints import init_from
from mmssl.types import View

DIM, HEADS, WIDE, WIDE_HEADS, PATCH = 48, 3, 32, 4, 4


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def build(recipe, *overrides):
    part = mmssl.build(recipe, ["data=sample", "data.channels=3", *overrides])[0]
    return part.eval()


def load(part, content, name, tmp_path, share=1.0):
    torch.save(content, tmp_path / "official.pth")
    return init_from(part, f"official/{name}:{tmp_path / 'official.pth'}", share)


def filled(part, content, name):
    """Names of our tensors that the file fills, of the right shapes."""
    from mmssl.registry import entry

    found, own = entry(f"format/official/{name}", "init_from").load()(content, part), part.state_dict()
    assert all(own[said].shape == value.shape for said, value in found.items())
    return set(found)


def parameters(part):
    return {name for name, _ in part.named_parameters()}


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def attend(q, k, v, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    found = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return found.transpose(1, 2).flatten(2)


def block(state, name, x, heads):
    """timm's block, which CroCo, CropMAE and MultiMAE have too."""
    q, k, v = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x)).chunk(3, -1)
    x = x + linear(state, f"{name}.attn.proj", attend(q, k, v, heads))
    hidden = F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x)))
    return x + linear(state, f"{name}.mlp.fc2", hidden)


def mae_table(side, dim):
    """MAE's sine-cosine table (n, dim), which CroCo has too: columns before rows."""
    wave = 10000.0 ** (-torch.arange(dim // 4).double() / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(side).double(), torch.arange(side).double(), indexing="ij")
    parts = [torch.cat([(x.reshape(-1, 1) * wave).sin(), (x.reshape(-1, 1) * wave).cos()], 1) for x in (columns, rows)]
    return torch.cat(parts, 1).float()


def dense(state, name, out, into, scale=0.2):
    state |= {f"{name}.weight": torch.randn(out, into) * scale, f"{name}.bias": torch.randn(out) * 0.1}


def scaled(state, name, dim):
    state |= {f"{name}.weight": 1 + 0.1 * torch.randn(dim), f"{name}.bias": torch.randn(dim) * 0.1}


def plain_block(state, name, dim, ratio=4):
    for part in ("norm1", "norm2"):
        scaled(state, f"{name}.{part}", dim)
    for part, out, into in (
        ("attn.qkv", 3 * dim, dim), ("attn.proj", dim, dim), ("mlp.fc1", ratio * dim, dim), ("mlp.fc2", dim, ratio * dim),
    ):  # fmt: skip
        dense(state, f"{name}.{part}", out, into)


def patch_embed(state, name, channels=3, dim=DIM, patch=PATCH):
    state |= {f"{name}.weight": torch.randn(dim, channels, patch, patch) * 0.1, f"{name}.bias": torch.randn(dim) * 0.1}


def view(size, count=2, channels=3):
    return View(torch.rand(count, channels, size, size), "image")


def image(network, given, patch=PATCH):
    """What the network's tokenizer cuts up, as one picture (b, c, h, w): normalised as the run's data are."""
    raw = network.tokenizer(given).raw
    side = math.isqrt(raw.shape[1])
    return raw.reshape(len(raw), side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def side_of(part):
    return part.networks["main"].spec.grid[0]


SMALL = [
    f"encoder.dim={DIM}", "encoder.depth=2", f"encoder.heads={HEADS}", f"objective.pixels.predictor.dim={WIDE}",
    "objective.pixels.predictor.depth=2", f"objective.pixels.predictor.heads={WIDE_HEADS}",
]  # fmt: skip


# ---- CroCo


def croco_run(*overrides):
    return build("image/croco", *SMALL, *overrides)


def croco_file(side, depth=2, decoder_depth=2, positions=True):
    state = {"enc_pos_embed": mae_table(side, DIM), "dec_pos_embed": mae_table(side, WIDE)} if positions else {}
    state["mask_token"] = torch.randn(1, 1, WIDE)
    patch_embed(state, "patch_embed.proj")
    for i in range(depth):
        plain_block(state, f"enc_blocks.{i}", DIM)
    scaled(state, "enc_norm", DIM)
    dense(state, "decoder_embed", WIDE, DIM)
    for i in range(decoder_depth):
        plain_block(state, f"dec_blocks.{i}", WIDE)
        for part in ("projq", "projk", "projv", "proj"):
            dense(state, f"dec_blocks.{i}.cross_attn.{part}", WIDE, WIDE)
        for part in ("norm3", "norm_y"):
            scaled(state, f"dec_blocks.{i}.{part}", WIDE)
    scaled(state, "dec_norm", WIDE)
    dense(state, "prediction_head", 3 * PATCH**2, WIDE)
    said = {"enc_num_heads": HEADS, "dec_num_heads": WIDE_HEADS, "pos_embed": "cosine"}
    return {"model": state, "croco_kwargs": said, "args": argparse.Namespace(epochs=400), "epoch": 3}


def croco_encode(s, picture, shown=None):
    x = F.conv2d(picture, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], PATCH).flatten(2).mT
    x = x + s["enc_pos_embed"]
    x = x if shown is None else x[:, shown]
    for i in range(2):
        x = block(s, f"enc_blocks.{i}", x, HEADS)
    return norm(s, "enc_norm", x)


def croco_decode(s, seen, other, shown, count):
    x = s["mask_token"].repeat(len(seen), count, 1)
    x[:, shown] = linear(s, "decoder_embed", seen)
    x, memory = x + s["dec_pos_embed"], linear(s, "decoder_embed", other) + s["dec_pos_embed"]
    for name in ("dec_blocks.0", "dec_blocks.1"):
        q, k, v = linear(s, f"{name}.attn.qkv", norm(s, f"{name}.norm1", x)).chunk(3, -1)
        x = x + linear(s, f"{name}.attn.proj", attend(q, k, v, WIDE_HEADS))
        query, read = norm(s, f"{name}.norm2", x), norm(s, f"{name}.norm_y", memory)
        made = [
            linear(s, f"{name}.cross_attn.proj{part}", g) for part, g in zip("qkv", (query, read, read), strict=True)
        ]
        x = x + linear(s, f"{name}.cross_attn.proj", attend(*made, WIDE_HEADS))
        x = x + linear(s, f"{name}.mlp.fc2", F.gelu(linear(s, f"{name}.mlp.fc1", norm(s, f"{name}.norm3", x))))
    return linear(s, "prediction_head", norm(s, "dec_norm", x))


def seen_and_asked(network, given, shown):
    """Encoded visible tokens, the places that are hidden, and the embedded sequence's length."""
    tokens = network.embed(network.tokenizer(given))
    n = tokens.index.shape[1]
    hidden = torch.tensor([i for i in range(n) if i not in shown])
    rows = torch.tensor(shown).expand(len(tokens.index), -1)
    return network.encoder(tokens.take(rows)), tokens.take(hidden.expand(len(rows), -1)), hidden, n


def test_croco_fills_everything_and_computes_the_same(tmp_path):
    part = croco_run()
    content = croco_file(side_of(part))
    assert filled(part, content, "croco") == parameters(part)
    assert "100.0% of" in load(part, content, "croco", tmp_path)
    network, s = part.networks["main"], content["model"]
    first, second = view(32), view(32)
    with torch.no_grad():
        close(network(first).x, croco_encode(s, image(network, first)))
        shown = [0, 5, 9, 20]
        seen, asked, hidden, n = seen_and_asked(network, first, shown)
        close(seen.x, croco_encode(s, image(network, first), shown))
        other = croco_encode(s, image(network, second))
        expected = croco_decode(s, seen.x, other, shown, n)[:, hidden]
        close(part.objective["pixels"].predictor(seen, asked, network(second)), expected)


def test_croco_without_decoder_fills_the_encoder(tmp_path):
    part = croco_run()
    encoder = re.compile(r"(enc_|patch_embed).*")
    content = {n: value for n, value in croco_file(side_of(part))["model"].items() if encoder.fullmatch(n)}
    assert filled(part, content, "croco") == {name for name in parameters(part) if name.startswith("networks.")}
    assert "not in the file: objective.pixels.predictor.mask_token" in load(part, content, "croco", tmp_path)


@pytest.mark.parametrize(
    ("given", "overrides", "said"),
    [
        ({"depth": 3}, [], "encoder.depth=3"),
        ({"decoder_depth": 1}, [], "objective.pixels.predictor.dim=32 depth=1 heads=4 mlp_ratio=4 first=own norm=pre"),
        ({"decoder_depth": 3}, [], "objective.pixels.predictor.blocks.2.cross.in_proj_bias"),
        ({"positions": False}, [], "give CroCo.pth"),
        ({}, ["encoder.class_token=true"], "encoder.class_token=false"),
        ({}, ["encoder.heads=4"], "encoder.heads=3 (got 4)"),
        ({}, ["objective.pixels.predictor.heads=8"], "the run's decoder computes something else"),
        ({}, ["objective.pixels.predictor.first=both"], "the run's decoder computes something else"),
        ({}, ["objective.pixels.predictor.dim=64"], "objective.pixels.predictor.mask_token (1, 1, 32) for (1, 1, 64)"),
        (
            {},
            ["encoder.position={_target_: position/sincos_parts}"],
            "Set encoder.position={_target_: position/sincos}",
        ),
    ],
)
def test_other_networks_than_crocos_are_refused(given, overrides, said, tmp_path):
    part = croco_run(*overrides)
    content = croco_file(side_of(part), **given)
    with pytest.raises(ValueError, match=re.escape(said)):
        load(part, content, "croco", tmp_path)


def test_names_that_a_layout_does_not_know_are_refused(tmp_path):
    content = croco_file(8)
    content["model"]["head.dpt.scratch.weight"] = torch.zeros(3)
    for name, part in (("croco", croco_run()), ("cropmae", cropmae_run()), ("spark", spark_run("resnet18"))):
        with pytest.raises(ValueError, match=r"the file holds .*, which the format has no place for"):
            load(part, content, name, tmp_path)
    with pytest.raises(ValueError, match="the file holds no tensors"):
        load(croco_run(), {"epoch": 3}, "croco", tmp_path)


# ---- CropMAE


def cropmae_run(*overrides):
    return build("image/cropmae", *SMALL, "objective.pixels.predictor.mlp_ratio=2.0", *overrides)


def cropmae_file(side, depth=2, decoder_depth=2):
    state = {"cls_token": torch.randn(1, 1, DIM), "mask_token": torch.randn(1, 1, WIDE)}
    for name, dim in (("pos_embed", DIM), ("decoder_pos_embed", WIDE)):
        state[name] = F.pad(mae_table(side, dim), (0, 0, 1, 0))[None]
    patch_embed(state, "patch_embed.proj")
    for i in range(depth):
        plain_block(state, f"blocks.{i}", DIM)
    dense(state, "decoder_embed", WIDE, DIM)
    for i in range(decoder_depth):
        name = f"decoder_blocks.{i}"
        for part in ("self_attn", "multihead_attn"):
            whole = {}
            dense(whole, "in_proj", 3 * WIDE, WIDE)
            state |= {f"{name}.{part}.in_proj_{end.split('.')[1]}": value for end, value in whole.items()}
            dense(state, f"{name}.{part}.out_proj", WIDE, WIDE)
        dense(state, f"{name}.linear1", 2 * WIDE, WIDE)
        dense(state, f"{name}.linear2", WIDE, 2 * WIDE)
        for part in ("norm1", "norm2", "norm3"):
            scaled(state, f"{name}.{part}", WIDE)
    for part, dim in (("norm", DIM), ("decoder_norm", WIDE)):
        scaled(state, part, dim)
    dense(state, "decoder_pred", 3 * PATCH**2, WIDE)
    return {"model": state, "epoch": 3, "args": argparse.Namespace(mask_ratio=0.985)}


def cropmae_encode(s, picture, shown=None):
    x = F.conv2d(picture, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], PATCH).flatten(2).mT
    x = x + s["pos_embed"][:, 1:]
    x = torch.cat(
        [(s["cls_token"] + s["pos_embed"][:, :1]).expand(len(x), -1, -1), x if shown is None else x[:, shown]], 1
    )
    for i in range(2):
        x = block(s, f"blocks.{i}", x, HEADS)
    return norm(s, "norm", x)


def cropmae_decode(s, seen, other, shown, count):
    memory, known = linear(s, "decoder_embed", other), linear(s, "decoder_embed", seen)
    x = s["mask_token"].repeat(len(seen), count, 1)
    x[:, shown] = known[:, 1:]
    x = torch.cat([known[:, :1], x], 1) + s["decoder_pos_embed"]

    def heads(name, x, read):
        weights, biases = (s[f"{name}.in_proj_{end}"].chunk(3) for end in ("weight", "bias"))
        q, k, v = (F.linear(g, w, b) for g, w, b in zip((x, read, read), weights, biases, strict=True))
        return linear(s, f"{name}.out_proj", attend(q, k, v, WIDE_HEADS))

    for name in ("decoder_blocks.0", "decoder_blocks.1"):
        x = norm(s, f"{name}.norm2", x + heads(f"{name}.multihead_attn", x, memory))
        x = norm(s, f"{name}.norm3", x + linear(s, f"{name}.linear2", F.gelu(linear(s, f"{name}.linear1", x))))
        x = norm(s, f"{name}.norm1", x + heads(f"{name}.self_attn", x, x))
    return linear(s, "decoder_pred", norm(s, "decoder_norm", x))[:, 1:]


def test_cropmae_fills_everything_and_computes_the_same(tmp_path):
    part = cropmae_run()
    content = cropmae_file(side_of(part))
    assert filled(part, content, "cropmae") == parameters(part)
    assert "100.0% of" in load(part, content, "cropmae", tmp_path)
    network, s = part.networks["main"], content["model"]
    small, large = view(32), view(32)
    with torch.no_grad():
        shown = [3, 17]
        seen, asked, hidden, n = seen_and_asked(network, small, shown)
        mine, other = torch.cat([seen.prefix, seen.x], 1), cropmae_encode(s, image(network, large))
        close(mine, cropmae_encode(s, image(network, small), shown))
        memory = network(large)
        close(torch.cat([memory.prefix, memory.x], 1), other)
        expected = cropmae_decode(s, mine, other, shown, n)[:, hidden]
        close(part.objective["pixels"].predictor(seen, asked, memory), expected)


@pytest.mark.parametrize(
    ("given", "overrides", "said"),
    [
        ({"depth": 1}, [], "encoder.depth=1"),
        ({"decoder_depth": 3}, [], "depth=3 heads=4 mlp_ratio=2 first=cross norm=post memory_position=false"),
        ({}, ["objective.pixels.predictor.norm=pre"], "the run's decoder computes something else"),
        ({}, ["objective.pixels.predictor.memory_position=true"], "the run's decoder computes something else"),
    ],
)
def test_other_networks_than_cropmaes_are_refused(given, overrides, said, tmp_path):
    part = cropmae_run(*overrides)
    content = cropmae_file(side_of(part), **given)
    with pytest.raises(ValueError, match=re.escape(said)):
        load(part, content, "cropmae", tmp_path)


# ---- SparK


def spark_run(name, *overrides):
    recipe = "image/spark_convnext" if "convnext" in name else "image/spark"
    return build(recipe, f"encoder.name={name}", f"objective.pixels.predictor.dim={WIDE}", *overrides)


def normed(state, name, dim, running):
    scaled(state, name, dim)
    if running:
        state |= {f"{name}.running_mean": torch.randn(dim) * 0.1, f"{name}.running_var": 0.5 + torch.rand(dim)}
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def randomised(state):
    """Random values of the same names and shapes, such that nothing explodes on its way."""
    found = {}
    for name, value in state.items():
        if not value.is_floating_point():
            found[name] = value + 7
        elif name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
            found[name] = 0.5 + torch.rand_like(value)
        else:
            fan = value[0].numel() if value.dim() > 1 else 100
            found[name] = torch.randn_like(value) / math.sqrt(fan)
    return found


def convnext_names(depths, dims):
    """Names and shapes of the ConvNeXt that the released code has of its own."""
    state, into = {}, 3
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        conv, size = (0, 4) if i == 0 else (1, 2)
        state[f"downsample_layers.{i}.{conv}.weight"] = torch.empty(dim, into, size, size)
        state[f"downsample_layers.{i}.{conv}.bias"] = torch.empty(dim)
        for end in ("weight", "bias"):
            state[f"downsample_layers.{i}.{1 - conv}.{end}"] = torch.empty(dim if i == 0 else into)
        for j in range(depth):
            name = f"stages.{i}.{j}"
            state |= {f"{name}.gamma": torch.empty(dim), f"{name}.dwconv.weight": torch.empty(dim, 1, 7, 7)}
            state |= {
                f"{name}.{p}": torch.empty(dim) for p in ("dwconv.bias", "norm.weight", "norm.bias", "pwconv2.bias")
            }
            state |= {f"{name}.pwconv1.weight": torch.empty(4 * dim, dim), f"{name}.pwconv1.bias": torch.empty(4 * dim)}
            state[f"{name}.pwconv2.weight"] = torch.empty(dim, 4 * dim)
        into = dim
    return state


DEPTHS = (3, 3, 9, 3)
CNNS = {
    "resnet18": (64, 128, 256, 512),
    "convnext_tiny": (96, 192, 384, 768),
}


def spark_file(name, width=WIDE):
    dims, running = CNNS[name][::-1], name.startswith("resnet")
    if running:
        cnn = timm.create_model(name, num_classes=0, global_pool="").state_dict()
    else:
        cnn = convnext_names(DEPTHS, CNNS[name])
    state = {f"sparse_encoder.sp_cnn.{n}": value for n, value in randomised(cnn).items()}
    for i in range(5):
        into = width >> i
        base = f"dense_decoder.dec.{i}"
        state |= {f"{base}.up_sample.weight": torch.randn(into, into, 4, 4) / 8 / math.sqrt(into)}
        state |= {f"{base}.up_sample.bias": torch.randn(into) * 0.1}
        for j, out in ((0, into), (3, into // 2)):
            state[f"{base}.conv.{j}.weight"] = torch.randn(out, into, 3, 3) / 3 / math.sqrt(into)
            normed(state, f"{base}.conv.{j + 1}", out, True)
    state |= {"dense_decoder.proj.weight": torch.randn(3, width >> 5, 1, 1), "dense_decoder.proj.bias": torch.randn(3)}
    for i, dim in enumerate(dims):
        normed(state, f"densify_norms.{i}", dim, running)
        if i or dim != width:
            size = 3 if i else 1
            state[f"densify_projs.{i}.weight"] = torch.randn(width >> i, dim, size, size) / size / math.sqrt(dim)
            state[f"densify_projs.{i}.bias"] = torch.randn(width >> i) * 0.1
        state[f"mask_tokens.{i}"] = torch.randn(1, dim, 1, 1)
    state |= {n: torch.empty(1, 3, 1, 1) for n in ("imn_m", "imn_s")} | {"norm_black": torch.zeros(1, 3, 64, 64)}
    said = {"mask_ratio": 0.6, "sbn": True, "hierarchy": 4}
    return {"args": "{}", "arch": name, "module": state | {"config": said}, "is_pretrain": True}


def at(active, x):
    """Active places of a map."""
    scale = x.shape[-1] // active.shape[-1]
    return active.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def batch_norm(s, name, x):
    return F.batch_norm(x, *(s[f"{name}.{end}"] for end in ("running_mean", "running_var", "weight", "bias")))


def layer_norm2d(s, name, x):
    return norm(s, name, x.movedim(1, -1)).movedim(-1, 1)


def resnet18(s, x, active):
    def conv(name, x, stride=1):
        w = s[f"{name}.weight"]
        x = F.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2)
        return x * at(active, x)

    def bn(name, x):
        x = batch_norm(s, name, x)
        return x * at(active, x)

    x = F.max_pool2d(F.relu(bn("bn1", conv("conv1", x, 2))), 3, 2, 1)
    x, maps = x * at(active, x), []
    for i in range(1, 5):
        for j in range(2):
            name, stride = f"layer{i}.{j}", 2 if i > 1 and j == 0 else 1
            y = F.relu(bn(f"{name}.bn1", conv(f"{name}.conv1", x, stride)))
            y = bn(f"{name}.bn2", conv(f"{name}.conv2", y))
            if f"{name}.downsample.0.weight" in s:
                x = bn(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
            x = F.relu(x + y)
        maps.append(x)
    return maps


def convnext(s, x, active):
    def conv(name, x, **how):
        x = F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], **how)
        return x * at(active, x)

    def ln(name, x):
        x = layer_norm2d(s, name, x)
        return x * at(active, x)

    maps = []
    for i, depth in enumerate(DEPTHS):
        name = f"downsample_layers.{i}"
        x = (
            ln(f"{name}.1", conv(f"{name}.0", x, stride=4))
            if i == 0
            else conv(f"{name}.1", ln(f"{name}.0", x), stride=2)
        )
        for j in range(depth):
            name = f"stages.{i}.{j}"
            y = ln(f"{name}.norm", conv(f"{name}.dwconv", x, padding=3, groups=x.shape[1])).movedim(1, -1)
            y = linear(s, f"{name}.pwconv2", F.gelu(linear(s, f"{name}.pwconv1", y)))
            x = x + (s[f"{name}.gamma"] * y).movedim(-1, 1) * at(active, x)
        maps.append(x)
    return maps


def spark_decode(s, maps, active):
    x = torch.zeros(())
    for i in range(5):
        if i < 4:
            y = maps[3 - i]
            running = f"densify_norms.{i}.running_mean" in s
            y = (batch_norm if running else layer_norm2d)(s, f"densify_norms.{i}", y)
            y = torch.where(at(active, y), y, s[f"mask_tokens.{i}"])
            if f"densify_projs.{i}.weight" in s:
                w = s[f"densify_projs.{i}.weight"]
                y = F.conv2d(y, w, s[f"densify_projs.{i}.bias"], padding=w.shape[-1] // 2)
            x = x + y
        name = f"dense_decoder.dec.{i}"
        x = F.conv_transpose2d(x, s[f"{name}.up_sample.weight"], s[f"{name}.up_sample.bias"], stride=2, padding=1)
        x = F.relu6(batch_norm(s, f"{name}.conv.1", F.conv2d(x, s[f"{name}.conv.0.weight"], padding=1)))
        x = batch_norm(s, f"{name}.conv.4", F.conv2d(x, s[f"{name}.conv.3.weight"], padding=1))
    return F.conv2d(x, s["dense_decoder.proj.weight"], s["dense_decoder.proj.bias"])


@pytest.mark.parametrize(("name", "width"), [("resnet18", WIDE), ("resnet18", 512), ("convnext_tiny", 64)])
def test_spark_fills_everything_and_computes_the_same(name, width, tmp_path):
    part, content = spark_run(name, f"objective.pixels.predictor.dim={width}"), spark_file(name, width)
    everything = {n for n in part.state_dict() if "tokenizer" not in n}  # running statistics, too
    assert filled(part, content, "spark") == everything
    assert "100.0% of" in load(part, content, "spark", tmp_path)
    network, s = part.networks["main"], content["module"]
    s = {n.removeprefix("sparse_encoder.sp_cnn."): value for n, value in s.items() if n != "config"}
    given = view(64)
    active = torch.tensor([[[True, False], [True, True]], [[False, True], [False, False]]])[:, None]
    tokens = network.tokenizer(given)
    picture = image(network, given, 32) * at(active, torch.empty(1, 1, 64, 64))
    with torch.no_grad():
        maps = (resnet18 if name == "resnet18" else convnext)(s, picture, active)
        taps = tuple(network.encoder.tap_names)
        seen = network.encoder(tokens.but(valid=active.flatten(1)), taps)
        for tap, expected in zip(taps, maps, strict=True):
            close(seen.taps[tap], expected.flatten(2).mT)
        answer = part.objective["pixels"].predictor(seen, tokens)
        expected = spark_decode(s, maps, active).reshape(2, 3, 2, 32, 2, 32).permute(0, 2, 4, 3, 5, 1).reshape(2, 4, -1)
        close(answer, expected)


@pytest.mark.parametrize("name", CNNS)
def test_an_encoder_of_spark_alone(name, tmp_path):
    part, full = spark_run(name), spark_file(name)["module"]
    content = {n.removeprefix("sparse_encoder.sp_cnn."): value for n, value in full.items() if "sp_cnn" in n}
    own = {n for n in part.state_dict() if n.startswith("networks.main.encoder.")}
    assert filled(part, content, "spark") == own
    assert "not in the file: objective.pixels.predictor" in load(part, content, "spark", tmp_path)


def test_other_networks_than_sparks_are_refused(tmp_path):
    for part, content, said in (
        (spark_run("test_resnet"), spark_file("resnet18"), "Set encoder.name to the file's network"),
        (spark_run("resnet18"), spark_file("resnet18", 64), "Set objective.pixels.predictor.dim=64 norm=batch"),
        (
            spark_run("resnet18", "objective.pixels.predictor.norm=layer"), spark_file("resnet18"), "norm=batch",
        ),
        (croco_run(), spark_file("resnet18"), "fills encoder/sparse"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(said)):
            load(part, content, "spark", tmp_path)


# ---- CAPI


def capi_run(*overrides, pairs="across"):
    small = ["encoder.registers=8", "encoder.heads=3", "heads.clusters.count=20"]
    sizes = [s.replace("pixels", "latent") for s in SMALL if "encoder.heads" not in s]
    turned = [f"encoder.pairs={pairs}", f"objective.latent.predictor.pairs={pairs}"]
    return build("image/capi", f"tokenizer.patch={PATCH}", *sizes, *small, *turned, *overrides)


def capi_freqs(dim):
    """Frequencies as the released code makes them: rows in the first half of a head, columns in the second."""
    one = 7.0 * (7.0 / 7e-4) ** torch.linspace(0, -1, dim // 4)
    both, zero = torch.cat([one, one]), torch.zeros(dim // 2)
    return torch.stack([torch.cat([both, zero]), torch.cat([zero, both])]) * 2 * torch.pi


def capi_file(depth=2, decoder_depth=2, registers=8):
    state = {"mask_token": torch.randn(1, WIDE), "registers": torch.randn(1, registers, DIM)}
    patch_embed(state, "patch_embed")
    for part, blocks, dim, context, heads in (
        ("encoder", depth, DIM, DIM, HEADS), ("decoder", decoder_depth, WIDE, DIM, WIDE_HEADS),
    ):  # fmt: skip
        for i in range(blocks):
            name = f"{part}.blocks.{i}.residual"
            for end in (f"{name}1.norm.weight", f"{name}2.norm.weight"):
                state[end] = 1 + 0.1 * torch.randn(dim)
            state[f"{name}1.fn.rope.freqs"] = capi_freqs(dim // heads)
            for end, out, into in (
                ("1.fn.q_proj", dim, dim), ("1.fn.k_proj", dim, context), ("1.fn.v_proj", dim, context),
                ("1.fn.proj", dim, dim), ("2.fn.fc1", 4 * dim, dim), ("2.fn.fc2", dim, 4 * dim),
            ):  # fmt: skip
                state[f"{name}{end}.weight"] = torch.randn(out, into) * 0.2
    state = {f"backbone.{name}": value for name, value in state.items()}
    return state | {"head.last_layer.weight_g": torch.rand(20, 1), "head.last_layer.weight_v": torch.randn(20, WIDE)}


def capi_block(s, name, x, places, heads, context=None, context_places=None):
    def turn(x, places):
        angle = (places @ s[f"{name}1.fn.rope.freqs"])[:, None]
        first, second = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()

    def map_of(end, x):
        return F.linear(x, s[f"{name}{end}.weight"])

    own = F.rms_norm(x, x.shape[-1:], s[f"{name}1.norm.weight"], 1e-5)
    read, at = (own, places) if context is None else (context, context_places)
    q, k, v = (
        map_of(f"1.fn.{part}_proj", given).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part, given in zip("qkv", (own, read, read), strict=True)
    )
    q, k = turn(q, places), turn(k, at)
    found = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    x = x + map_of("1.fn.proj", found.transpose(1, 2).flatten(2))
    own = F.rms_norm(x, x.shape[-1:], s[f"{name}2.norm.weight"], 1e-5)
    return x + map_of("2.fn.fc2", F.gelu(map_of("2.fn.fc1", own)))


def capi_reference(s, picture, shown, asked):
    """Encoder outputs, registers first, and logits at the places asked for."""
    x = F.conv2d(picture, s["patch_embed.weight"], s["patch_embed.bias"], PATCH)
    line = torch.linspace(0, 1, x.shape[-1])
    every, x = torch.cartesian_prod(line, line), x.flatten(2).mT[:, shown]
    c = torch.arange(2) / 2
    corner = [(c, 0 * c), (0 * c + 1, c), (1 - c, 0 * c + 1), (0 * c, 1 - c)]
    ring = torch.cat([torch.stack(side, 1) for side in corner])
    low, high = every[shown].amin(0), every[shown].amax(0)
    places = torch.cat([low + ring * (high - low), every[shown]]).expand(len(x), -1, -1)
    x = torch.cat([s["registers"].expand(len(x), -1, -1), x], 1)
    for i in range(2):
        x = capi_block(s, f"encoder.blocks.{i}.residual", x, places, HEADS)
    x = F.rms_norm(x, (DIM,), None, 1e-5)
    y, to = s["mask_token"].expand(len(x), len(asked), -1), every[asked].expand(len(x), -1, -1)
    for i in range(2):
        y = capi_block(s, f"decoder.blocks.{i}.residual", y, to, WIDE_HEADS, x, places)
    v = s["head.last_layer.weight_v"]
    weight = v / v.norm(dim=1, keepdim=True) * s["head.last_layer.weight_g"]
    return x, F.linear(F.normalize(F.rms_norm(y, (WIDE,), None, 1e-5), dim=-1), weight)


def test_capi_fills_all_but_the_clusters_and_computes_the_same(tmp_path):
    part, content = capi_run(), capi_file()
    own = {name for name in parameters(part) if name.startswith(("networks.", "objective."))}
    assert filled(part, content, "capi") == own
    assert parameters(part) - own == {"heads.clusters.centres.weight", "heads.clusters.centres.bias"} | {
        name for name in parameters(part) if name.startswith("teacher.")
    }
    assert "not in the file: heads.clusters" in load(part, content, "capi", tmp_path)
    s = {name.removeprefix("backbone."): value for name, value in content.items()}
    given, shown, asked = view(32), torch.tensor([1, 10, 11, 34, 43]), torch.tensor([0, 5, 63])
    with torch.no_grad():
        for network in (part.networks["main"], part.teacher.twins["main"]):  # the teacher starts as a copy
            tokens = network.embed(network.tokenizer(given))
            seen = network.encoder(tokens.take(shown.expand(2, -1)))
            encoded, logits = capi_reference(s, image(network, given), shown, asked)
            close(torch.cat([seen.prefix, seen.x], 1), encoded)
        close(part.objective["latent"].predictor(seen, tokens.take(asked.expand(2, -1))), logits)


def test_capi_without_head_or_decoder(tmp_path):
    part = capi_run()
    content = {n: value for n, value in capi_file().items() if not n.startswith("head.")}
    missing = {name for name in parameters(part) if ".predictor.head." in name}
    assert parameters(part) - filled(part, content, "capi") >= missing
    content = {n: value for n, value in content.items() if "decoder" not in n and "mask_token" not in n}
    assert filled(part, content, "capi") == {name for name in parameters(part) if name.startswith("networks.")}


def slower(content):
    name = "backbone.encoder.blocks.1.residual1.fn.rope.freqs"
    return content | {name: content[name] * 0.9}


@pytest.mark.parametrize(
    ("content", "make", "said"),
    [
        (lambda: capi_file(depth=3), capi_run, "encoder.dim=48 depth=3 registers=8"),
        (lambda: capi_file(decoder_depth=1), capi_run, "Set objective.latent.predictor.dim=32 depth=1"),
        (lambda: capi_file(registers=4), capi_run, "registers=4"),
        (capi_file, lambda: capi_run(pairs="axis"), "set encoder.pairs=across encoder.heads=3"),
        (capi_file, lambda: capi_run("encoder.heads=4"), "encoder.heads=3"),
        (capi_file, lambda: capi_run("tokenizer.patch=8"), "a side of 4 pixels, those of the run are (8, 8)"),
        (lambda: slower(capi_file()), capi_run, "block 1 of the file's encoder turns at speeds of its own"),
        (lambda: {"model": {"student.backbone.registers": torch.zeros(1)}}, capi_run, "one rank's shard"),
        (capi_file, lambda: croco_run(), "fills encoder/rope"),
        (
            lambda: capi_file() | {"backbone.enc_norm.weight": torch.ones(DIM)},
            capi_run,
            "holds backbone.enc_norm.weight",
        ),
    ],
)
def test_other_networks_than_capis_are_refused(content, make, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        load(make(), content(), "capi", tmp_path)


def test_frequencies_of_capi_may_be_rounded(tmp_path):
    content = {name: value.bfloat16() for name, value in capi_file().items()}
    part = capi_run()
    load(part, content, "capi", tmp_path)
    assert torch.equal(part.networks["main"].encoder.registers, content["backbone.registers"].float())


# ---- MultiMAE

STREAMS = "tokenizer.streams=[{channels: 1, mean: [0.5], std: [0.2]}, {channels: 2, mean: [0.5, 0.5], std: [0.1, 0.1]}]"


def multimae_run(*overrides, norm=False, position="position/sincos_parts"):
    """The recipe with a second stream of one channel, as depth is, and a third that no file has."""
    sizes = [
        f"encoder.dim={DIM}",
        "encoder.depth=2",
        f"encoder.heads={HEADS}",
        f"encoder.final_norm={str(norm).lower()}",
    ]
    for term in ("image", "normed", "gradients"):
        base = f"objective.{term}.predictor"
        sizes += [f"{base}.dim={WIDE}", f"{base}.depth=2", f"{base}.heads={WIDE_HEADS}"]
    place = f"encoder.position={{_target_: {position}}}"
    return build("multimodal/multimae", STREAMS, "~objective.palette", place, *sizes, *overrides)


def mocov3_table(side, dim):
    """MoCo v3's table as (1, dim, side, side), rows before columns."""
    first, second = mae_table(side, dim).chunk(2, 1)
    return torch.cat([second, first], 1).T.reshape(1, dim, side, side)


def multimae_file(side, depth=2, decoder_depth=2, count=1):
    state = {"global_tokens": torch.randn(1, count, DIM)}
    for name, channels in (("rgb", 3), ("depth", 1), ("semseg", 64)):
        base, patch = f"input_adapters.{name}", PATCH if channels < 64 else 1
        patch_embed(state, f"{base}.proj", channels, patch=patch)
        state[f"{base}.pos_emb"] = mocov3_table(side, DIM)
    state["input_adapters.semseg.class_emb.weight"] = torch.randn(133, 64)
    for i in range(depth):
        plain_block(state, f"encoder.{i}", DIM)
    for name, values in (("rgb", 3 * PATCH**2), ("depth", PATCH**2), ("semseg", 133), ("norm_rgb", 3 * PATCH**2)):
        base = f"output_adapters.{name}"
        state |= {f"{base}.task_embeddings.{task}": torch.randn(1, 1, WIDE) for task in ("rgb", "depth", "semseg")}
        state |= {f"{base}.mask_token": torch.randn(1, 1, WIDE), f"{base}.pos_emb": mocov3_table(side, WIDE)}
        for part, out, into in (
            ("decoder.q", WIDE, WIDE), ("decoder.kv", 2 * WIDE, WIDE), ("decoder.proj", WIDE, WIDE),
            ("mlp.fc1", 4 * WIDE, WIDE), ("mlp.fc2", WIDE, 4 * WIDE), ("out_proj", values, WIDE),
            ("proj_context", WIDE, DIM),
        ):  # fmt: skip
            dense(state, f"{base}.{part}", out, into)
        for part in ("context_norm", "query_norm", "out_norm"):
            scaled(state, f"{base}.{part}", WIDE)
        for i in range(decoder_depth):
            plain_block(state, f"{base}.decoder_transformer.{i}", WIDE)
    return {"model": state, "epoch": 1599, "args": argparse.Namespace(decoder_dim=256)}


def multimae_encode(s, pictures, shown):
    """Encoder outputs of visible tokens, the global token last; `shown` has their places in each stream."""
    x = []
    for name, picture in pictures.items():
        base = f"input_adapters.{name}"
        made = F.conv2d(picture, s[f"{base}.proj.weight"], s[f"{base}.proj.bias"], PATCH) + s[f"{base}.pos_emb"]
        x.append(made.flatten(2).mT[:, shown[name]])
    x = torch.cat([*x, s["global_tokens"].expand(len(x[0]), -1, -1)], 1)
    for i in range(2):
        x = block(s, f"encoder.{i}", x, HEADS)
    return x


def multimae_decode(s, adapter, task, x, shown):
    """Images (b, c, h, w) of one adapter."""
    base = f"output_adapters.{adapter}"
    s = {name.removeprefix(f"{base}."): value for name, value in s.items() if name.startswith(f"{base}.")}
    table = s["pos_emb"].flatten(2).mT
    x = linear(s, "proj_context", x)
    parts = dict(zip(shown, x[:, :-1].split([len(places) for places in shown.values()], 1), strict=True))
    known = {n: part + table[:, shown[n]] + s[f"task_embeddings.{n}"] for n, part in parts.items()}
    context = norm(s, "context_norm", torch.cat([*known.values(), x[:, -1:]], 1))
    y = s["mask_token"] + table.repeat(len(x), 1, 1) + s[f"task_embeddings.{task}"]
    y[:, shown[task]] = known[task]
    keys, values = linear(s, "decoder.kv", context).chunk(2, -1)
    y = linear(s, "decoder.proj", attend(linear(s, "decoder.q", norm(s, "query_norm", y)), keys, values, WIDE_HEADS))
    y = y + linear(s, "mlp.fc2", F.gelu(linear(s, "mlp.fc1", norm(s, "out_norm", y))))
    for i in range(2):
        y = block(s, f"decoder_transformer.{i}", y, WIDE_HEADS)
    y, side = linear(s, "out_proj", y), math.isqrt(y.shape[1])
    return y.reshape(len(y), side, side, -1, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def patches_of(picture):
    """Pixels by patch, in our order: row, column, channel."""
    b, c, h, w = picture.shape
    x = picture.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, PATCH * PATCH * c)


def test_multimae_fills_what_the_streams_have_in_common_and_computes_the_same(tmp_path):
    part = multimae_run(f"tokenizer.patch={PATCH}")
    network, n = part.networks["main"], 64
    content = multimae_file(8)
    strange = {"networks.main.embed.parts.2.proj.weight", "networks.main.embed.parts.2.proj.bias"}
    assert filled(part, content, "multimae") == parameters(part) - strange
    rows = {name: term.predictor.of_stream[2].clone() for name, term in part.objective.items()}
    load(part, content, "multimae", tmp_path, share=0.9)
    s, given = content["model"], view(32, channels=6)
    assert all(torch.equal(term.predictor.of_stream[2], rows[name]) for name, term in part.objective.items())
    tokens = network.embed(network.tokenizer(given))
    shown = {"rgb": torch.tensor([0, 9, 33]), "depth": torch.tensor([5, 50])}
    raw = network.tokenizer(given).raw
    pictures = {
        name: raw[:, first : first + n, : PATCH**2 * c].reshape(2, 8, 8, PATCH, PATCH, c).permute(0, 5, 1, 3, 2, 4)
        for name, first, c in (("rgb", 0, 3), ("depth", n, 1))
    }
    pictures = {name: x.flatten(4).flatten(2, 3) for name, x in pictures.items()}
    places = torch.cat([shown["rgb"], n + shown["depth"]])
    with torch.no_grad():
        seen = network.encoder(tokens.take(places.expand(2, -1)))
        expected = multimae_encode(s, pictures, shown)
        close(torch.cat([seen.x, seen.prefix], 1), expected)
        for name, adapter, task, first in (
            ("image", "rgb", "rgb", 0), ("normed", "norm_rgb", "rgb", 0), ("gradients", "depth", "depth", n),
        ):  # fmt: skip
            hidden = torch.tensor([i for i in range(n) if i not in shown[task]])
            answer = part.objective[name].predictor(seen, tokens.take((first + hidden).expand(2, -1)))
            close(answer, patches_of(multimae_decode(s, adapter, task, expected, shown))[:, hidden])


def test_multimae_without_decoders(tmp_path):
    part = multimae_run(f"tokenizer.patch={PATCH}")
    content = {n: value for n, value in multimae_file(8)["model"].items() if not n.startswith("output_adapters")}
    assert all(name.startswith("networks.") for name in filled(part, content, "multimae"))
    report = load(part, content, "multimae", tmp_path, share=0.9)
    assert "not in the file: networks.main.embed.parts.2.proj.weight" in report


@pytest.mark.parametrize(
    ("given", "overrides", "settings", "said"),
    [
        ({"depth": 3}, [], {}, "encoder.dim=48 depth=3 heads=3 class_token=true registers=0 final_norm=false"),
        ({"count": 2}, [], {}, "registers=1 final_norm=false"),
        ({"decoder_depth": 1}, [], {}, "objective.image.predictor.dim=32 depth=1 heads=4"),
        ({}, [], {"norm": True}, "networks.main.encoder.norm.bias"),
        ({}, [], {"position": "position/sincos"}, "Set encoder.position={_target_: position/sincos_parts}"),
        ({}, ["objective.normed.predictor.dim=64"], {}, "objective.normed.predictor has other sizes"),
        ({}, ["tokenizer.patch=8"], {}, "patches with a side of 4 pixels, those of the run are (8, 8)"),
    ],
)
def test_other_networks_than_multimaes_are_refused(given, overrides, settings, said, tmp_path):
    part = multimae_run(f"tokenizer.patch={PATCH}", *overrides, **settings)
    with pytest.raises(ValueError, match=re.escape(said)):
        load(part, multimae_file(8, **given), "multimae", tmp_path)
    with pytest.raises(ValueError, match="behind tokenizer/stacked"):
        load(croco_run(), multimae_file(8), "multimae", tmp_path)


# ---- all

WHOLE = {
    "croco": (croco_run, lambda: croco_file(8)["model"], "(?!)"),
    "cropmae": (cropmae_run, lambda: cropmae_file(8)["model"], "(?!)"),
    "spark": (lambda: spark_run("resnet18"), lambda: spark_file("resnet18")["module"], "imn_[ms]|norm_black|config"),
    "capi": (capi_run, capi_file, "(?!)"),
    "multimae": (
        lambda: multimae_run(f"tokenizer.patch={PATCH}"),
        lambda: multimae_file(8)["model"],
        r"(in|out)put_adapters\.semseg\..+|input_adapters\.depth\.pos_emb|.+\.task_embeddings\.\w+",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_lacks_any_one_tensor_is_refused(name):
    make, file, spare = WHOLE[name]
    part, content = make(), file()
    assert filled(part, content, name)
    for missing in content:
        rest = {said: value for said, value in content.items() if said != missing}
        if re.fullmatch(spare, missing):
            assert filled(part, rest, name)
        else:
            with pytest.raises(ValueError, match="init_from"):
                filled(part, rest, name)
