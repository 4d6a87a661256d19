"""Small runs, files in the official layouts of I-JEPA, DINO, iBOT, DINOv2 and MoCo v3 with random values, and the
official forward passes, written out plainly."""

from __future__ import annotations

import argparse
import math
import re
from typing import Any

import torch
import torch.nn.functional as F

from tests.small import FACTS, module

DIM, HEADS, SIDE, PATCH = 32, 4, 4, 8
VIT = {"_target_": "encoder/vit", "dim": DIM, "depth": 2, "heads": HEADS}
LEARNED = VIT | {"position": {"_target_": "position/learned"}}
TEACHER = {"_target_": "teacher/ema", "momentum": {"_target_": "schedule/constant", "value": 0.99}}
CENTER = {"_target_": "norm/center"}
SOFT = {"_target_": "loss/soft_ce", "temperature": 0.1}
PROTOTYPES = {"_target_": "head/prototypes", "dims": [24, 24, 16], "count": 10}
MATCH = {"_target_": "term/match", "head": "proj", "pool": "cls", "normalize": CENTER, "loss": SOFT}
PATCHES = {
    "_target_": "term/predict", "look": ["a", "b"], "head": "proj", "target": {"_target_": "target/teacher"},
    "normalize": CENTER, "loss": SOFT,
}  # fmt: skip
BLANK = {"masker": {"_target_": "masker/random"}, "corruptor": {"_target_": "corruptor/token"}}


def run(**changes):
    two = {"views": {"a": [], "b": []}, "teacher": TEACHER, "masker": None, "corruptor": None, "encoder": LEARNED}
    return module(**(two | changes))


def dino_run(**changes):
    return run(**({"heads": {"proj": PROTOTYPES}, "objective": {"samples": MATCH}} | changes))


def ibot_run(**changes):
    given = {"heads": {"proj": PROTOTYPES}, "objective": {"samples": MATCH, "patches": PATCHES}}
    return run(**(given | {"looks": {"a": BLANK, "b": BLANK}} | changes))


def two_heads():
    heads = {"proj": PROTOTYPES, "patches": PROTOTYPES | {"count": 12}}
    return {"heads": heads, "objective": {"samples": MATCH, "patches": PATCHES | {"head": "patches"}}}


def dinov2_run(**changes):
    return ibot_run(**(two_heads() | {"encoder": LEARNED | {"layer_scale": 1e-5}} | changes))


def mocov3_run(**changes):
    head = {"_target_": "head/mlp", "dims": [24, 24, 16], "bias": False, "last_norm": "plain"}
    match = {
        "_target_": "term/match", "head": "proj", "pool": "cls", "predictor": head | {"dims": [24, 16]},
        "loss": {"_target_": "loss/info_nce", "temperature": 0.2},
    }  # fmt: skip
    encoder = VIT | {"position": {"_target_": "position/sincos_parts"}}
    return run(**({"encoder": encoder, "heads": {"proj": head}, "objective": {"contrast": match}} | changes))


def ijepa_run(**changes):
    latent = {
        "_target_": "term/predict", "predictor": {"_target_": "predictor/transformer", "dim": 16, "depth": 1, "heads": 4},
        "target": {"_target_": "target/teacher"}, "normalize": {"_target_": "norm/layer"}, "loss": {"_target_": "loss/mse"},
    }  # fmt: skip
    given = {"views": {"x": []}, "masker": {"_target_": "masker/random"}, "corruptor": {"_target_": "corruptor/drop"}}
    return run(**(given | {"encoder": VIT | {"class_token": False}, "objective": {"latent": latent}} | changes))


def mae_run(**changes):
    """A run without teacher and heads."""
    return module(**({"encoder": LEARNED} | changes))


# ---- files in the official layouts, with random values


def linear(state, name, rows, columns, bias=True) -> Any:
    state[f"{name}.weight"] = torch.randn(rows, columns) * 0.2
    if bias:
        state[f"{name}.bias"] = torch.randn(rows) * 0.2


def norm(state, name, dim) -> Any:
    state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.2 * torch.randn(dim), 0.2 * torch.randn(dim)


def block(state, name, dim, scale=None, swiglu=None) -> Any:
    norm(state, f"{name}.norm1", dim)
    norm(state, f"{name}.norm2", dim)
    linear(state, f"{name}.attn.qkv", 3 * dim, dim)
    linear(state, f"{name}.attn.proj", dim, dim)
    wide = swiglu or 4 * dim
    linear(state, f"{name}.mlp.{'w12' if swiglu else 'fc1'}", 2 * wide if swiglu else wide, dim)
    linear(state, f"{name}.mlp.{'w3' if swiglu else 'fc2'}", dim, wide)
    for i in (1, 2) if scale is not None else ():
        state[f"{name}.{str(scale).format(i)}"] = torch.randn(dim)


def table(side, dim, first="column"):
    """The fixed positions as the papers' code lays them out: I-JEPA's columns first, MoCo v3's rows first."""
    rows = []
    for row in range(side):
        for column in range(side):
            values = []
            for place in (column, row) if first == "column" else (row, column):
                angles = [place / 10000 ** (k / (dim // 4)) for k in range(dim // 4)]
                values += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(values)
    return torch.tensor(rows)[None]


def backbone(
    dim=DIM, depth=2, side=SIDE, patch=PATCH, cls=True, registers=0, scale=None, token=None, swiglu=None, fixed=None,
    chunks=False,
):  # fmt: skip
    state = {
        "patch_embed.proj.weight": torch.randn(dim, 3, patch, patch) * 0.1,
        "patch_embed.proj.bias": torch.randn(dim),
    }
    state["pos_embed"] = torch.randn(1, side * side + cls, dim) if fixed is None else table(side, dim, fixed)
    if cls:
        state["cls_token"] = torch.randn(1, 1, dim)
        if fixed:
            state["pos_embed"] = torch.cat([torch.zeros(1, 1, dim), state["pos_embed"]], 1)
    if registers:
        state["register_tokens"] = torch.randn(1, registers, dim)
    if token:
        state[token] = torch.randn(1, dim)
    for i in range(depth):
        block(state, f"blocks.{'0.' if chunks else ''}{i}", dim, scale, swiglu)
    norm(state, "norm", dim)
    return state


def dino_head(prefix="head", count=10, gain=None, last2=None) -> Any:
    state = {}
    for place, (rows, columns) in zip((0, 2, 4), ((24, DIM), (24, 24), (16, 24)), strict=True):
        linear(state, f"{prefix}.mlp.{place}", rows, columns)
    for name, number in (("last_layer", count), ("last_layer2", last2)):
        if number:
            state[f"{prefix}.{name}.weight_v"] = torch.randn(number, 16)
            state[f"{prefix}.{name}.weight_g"] = torch.ones(number, 1) if gain is None else torch.rand(number, 1) + gain
    return state


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def training(**networks) -> Any:
    """What DINO's and iBOT's scripts save beside the networks."""
    rest = {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 100, "fp16_scaler": {"scale": 2.0}}
    return networks | rest | {"args": argparse.Namespace(arch="vit_small")}


def dino_file(gain: float | None = None) -> dict[str, Any]:
    student = under("module.backbone.", backbone()) | under("module.", dino_head(gain=gain))
    teacher = under("backbone.", backbone()) | dino_head(gain=gain)
    return training(student=student, teacher=teacher, dino_loss={"center": torch.randn(1, 10)})


def ibot_file(last2=12) -> Any:
    given: Any = {"scale": "gamma_{}"}
    student = under("module.backbone.", backbone(token="masked_embed", **given)) | under(
        "module.", dino_head(last2=last2)
    )
    teacher = under("backbone.", backbone(**given)) | dino_head(last2=last2)
    losses = {"center": torch.randn(1, 10), "center2": torch.randn(1, 1, last2)}
    return training(student=student, teacher=teacher, ibot_loss=losses)


def dinov2_file(**changes) -> Any:
    given: Any = {"scale": "ls{}.gamma", "token": "mask_token", "chunks": True} | changes
    heads = dino_head("dino_head") | dino_head("ibot_head", count=12)
    return {"teacher": under("backbone.", backbone(**given)) | heads}


def sequential(dims, width) -> Any:
    """MoCo v3's perceptrons: linear maps without bias, batch norms, the last one without weights."""
    state = {}
    for i, dim in enumerate(dims):
        linear(state, str(3 * i), dim, width, bias=False)
        if i < len(dims) - 1:
            norm(state, str(3 * i + 1), dim)
        state[f"{3 * i + 1}.running_mean"], state[f"{3 * i + 1}.running_var"] = torch.randn(dim), torch.rand(dim) + 0.5
        state[f"{3 * i + 1}.num_batches_tracked"] = torch.tensor(7 + i)
        width = dim
    return state


def mocov3_file(fixed="row") -> Any:
    state = under("module.predictor.", sequential((24, 16), 16))
    for name in ("base_encoder", "momentum_encoder"):
        state |= under(f"module.{name}.", backbone(fixed=fixed) | under("head.", sequential((24, 24, 16), DIM)))
    return {"epoch": 300, "arch": "vit_base", "state_dict": state, "optimizer": {"state": {}}, "scaler": {}}


def ijepa_file(side=SIDE) -> Any:
    predictor = {"mask_token": torch.randn(1, 1, 16), "predictor_pos_embed": table(side, 16)}
    linear(predictor, "predictor_embed", 16, DIM)
    block(predictor, "predictor_blocks.0", 16)
    norm(predictor, "predictor_norm", 16)
    linear(predictor, "predictor_proj", DIM, 16)
    given: Any = {"cls": False, "fixed": "column", "side": side}
    found = {name: under("module.", backbone(**given)) for name in ("encoder", "target_encoder")}
    rest = {
        "opt": {"state": {}},
        "scaler": None,
        "epoch": 300,
        "loss": 0.1,
        "batch_size": 2,
        "lr": 0.1,
        "world_size": 1,
    }
    return found | {"predictor": under("module.", predictor)} | rest


# ---- the official forward passes


def plain(state):
    found = {}
    for name, value in state.items():
        name = re.sub(r"^(module\.)?(backbone\.)?(base_encoder\.|momentum_encoder\.)?", "", name)
        found[re.sub(r"blocks\.0\.(\d\.)", r"blocks.\1", name)] = value
    return found


def run_blocks(s, x, name, heads):
    i = 0
    while f"{name}.{i}.norm1.weight" in s:
        b, n, d = x.shape
        base = f"{name}.{i}."
        y = F.layer_norm(x, (d,), s[base + "norm1.weight"], s[base + "norm1.bias"], 1e-6)
        qkv = F.linear(y, s[base + "attn.qkv.weight"], s[base + "attn.qkv.bias"])
        q, k, v = qkv.reshape(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) / math.sqrt(d // heads)).softmax(-1) @ v
        y = F.linear(y.transpose(1, 2).reshape(b, n, d), s[base + "attn.proj.weight"], s[base + "attn.proj.bias"])
        x = x + y * s.get(base + "ls1.gamma", s.get(base + "gamma_1", torch.ones(d)))
        y = F.layer_norm(x, (d,), s[base + "norm2.weight"], s[base + "norm2.bias"], 1e-6)
        if base + "mlp.w12.weight" in s:
            gate, value = F.linear(y, s[base + "mlp.w12.weight"], s[base + "mlp.w12.bias"]).chunk(2, -1)
            y = F.linear(F.silu(gate) * value, s[base + "mlp.w3.weight"], s[base + "mlp.w3.bias"])
        else:
            y = F.gelu(F.linear(y, s[base + "mlp.fc1.weight"], s[base + "mlp.fc1.bias"]))
            y = F.linear(y, s[base + "mlp.fc2.weight"], s[base + "mlp.fc2.bias"])
        x = x + y * s.get(base + "ls2.gamma", s.get(base + "gamma_2", torch.ones(d)))
        i += 1
    return x


def reference(state, data):
    """Normed tokens (b, class + registers + n, d) of images in [0, 1], as the official code computes them."""
    s = plain(state)
    mean, std = torch.tensor(FACTS["mean"]).view(3, 1, 1), torch.tensor(FACTS["std"]).view(3, 1, 1)
    x = F.conv2d((data - mean) / std, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    if "cls_token" in s:
        x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + s["pos_embed"]
    if "register_tokens" in s:
        x = torch.cat([x[:, :1], s["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], 1)
    x = run_blocks(s, x, "blocks", HEADS)
    return F.layer_norm(x, (DIM,), s["norm.weight"], s["norm.bias"], 1e-6)


def reference_head(state, x, prefix="head", last="last_layer"):
    s = plain(state)
    for i in (0, 2, 4):
        x = F.linear(x if i == 0 else F.gelu(x), s[f"{prefix}.mlp.{i}.weight"], s[f"{prefix}.mlp.{i}.bias"])
    v, g = s[f"{prefix}.{last}.weight_v"], s[f"{prefix}.{last}.weight_g"]
    return F.linear(F.normalize(x, dim=-1), g * v / v.norm(dim=1, keepdim=True))


def reference_perceptron(s, x, layers):
    for i in range(layers):
        x = F.linear(x, s[f"{3 * i}.weight"])
        base = f"{3 * i + 1}."
        x = F.batch_norm(
            x, s[base + "running_mean"], s[base + "running_var"], s.get(base + "weight"), s.get(base + "bias")
        )
        x = x.relu() if i < layers - 1 else x
    return x
