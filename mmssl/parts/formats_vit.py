"""Official vision transformers into our networks: names, positions, tokens in front, and what must not pass in silence.

The encoder is filled whole or not at all: a file made with another depth, other tokens in front, with or without
layer-scale, another patch size or number of heads is refused. A learned table of positions is resized to the run's
grid; the class token's own position becomes part of the token. Fixed tables are compared with what the run computes.
Only the embedding of patches may start anew, in a run with more channels, if its `init_share` allows it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmssl.nn.network import Network
from mmssl.nn.patches import coordinates
from mmssl.nn.positions import Learned
from mmssl.parts.encoders.timm import TimmViT
from mmssl.parts.encoders.vit import ViT
from mmssl.parts.formats import patch_matrix, rename, unwrap
from mmssl.types import Tokens

IGNORED = {
    r"(head|fc)\.(weight|bias)": "a classifier",
    r"head\.last_norm2?\..+": "a norm behind the prototypes, which our heads do not have",
    r"mask_token|masked_embed": "the run replaces no tokens",
    r"head\.last_layer2\..+|ibot_head\..+": "the run has one head for class and patch tokens",
}
"""Patterns of official names that may stay unused, and why. Of the rest of an encoder nothing does."""

State = Mapping[str, Tensor]


class Layout(NamedTuple):
    """What differs between the five: who evaluates what, and what the sizes do not tell."""

    name: str
    heads: Mapping[int, int]  # attention heads of the official models, by width
    position: str = "position/learned"
    student: str = "student"
    teacher: str = "teacher"
    evaluated: str = "teacher"


_NETWORK = [
    (r"patch_embed\.proj\.(weight|bias)", r"embed.proj.\1"),
    (r"blocks\.(\d+)\.gamma_([12])", r"encoder.blocks.\1.ls\2.gamma"),
    (r"blocks\.(\d+)\.mlp\.w12\.(.+)", r"encoder.blocks.\1.mlp.fc1.\2"),
    (r"blocks\.(\d+)\.mlp\.w3\.(.+)", r"encoder.blocks.\1.mlp.fc2.\2"),
    (r"blocks\.(.+)", r"encoder.blocks.\1"),
    (r"norm\.(.+)", r"encoder.norm.\1"),
]
_FRONT = r"cls_token|register_tokens|pos_embed|mask_token|masked_embed"
_HEAD = r"((?:dino_|ibot_)?head)\.(.+)"


def _plain(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names without what wrappers put in front; blocks counted without their chunks (`blocks.0.3` is `blocks.3`)."""
    found = {}
    for name, value in state.items():
        name = re.sub(r"^(module\.)+|_fsdp_wrapped_module\.|_orig_mod\.", "", name)
        found[re.sub(r"\bblocks\.\d+\.(?=\d+\.)", "blocks.", name)] = value
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def branch(content: Mapping[str, Any], key: str) -> dict[str, Tensor] | None:
    """One network of a training checkpoint, under its own key or with it in front of the names; None for absent."""
    if isinstance(content.get(key), Mapping):
        return _plain(content[key])
    found = {n: value for n, value in _plain(unwrap(content)).items() if n.startswith(f"{key}.")}
    return {name.removeprefix(f"{key}."): value for name, value in found.items()} or None


def branches(content: Mapping[str, Any], module: nn.Module, layout: Layout) -> list[tuple[dict[str, Tensor], bool]]:
    """The networks to fill from: (tensors, whether they are the teacher's), the student's first."""
    student, teacher = branch(content, layout.student), branch(content, layout.teacher)
    if student is None and teacher is None:
        student = _plain(unwrap(content))
    if student is not None and teacher is not None and "main" in _twins(module):
        return [(student, False), (teacher, True)]
    first, second = (teacher, student) if layout.evaluated == "teacher" else (student, teacher)
    chosen = second if first is None else first
    assert chosen is not None
    return [(chosen, False)]


def _twins(module: nn.Module) -> Any:
    return getattr(getattr(module, "teacher", None), "twins", {})


def transformer(state: State, module: nn.Module, layout: Layout, twin: bool) -> dict[str, Tensor]:
    """Embedding and encoder, from tensors named as in the official transformer; tensors of heads are passed over.

    Raises:
        ValueError: for another architecture than the run's, with the settings that fit.
    """
    network: Any = module.get_submodule("networks.main")
    assert isinstance(network, Network)
    state = {name.removeprefix("backbone."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not re.fullmatch(_HEAD, name)}
    _recognise(state, network, layout)
    found = rename(state, _NETWORK) | _front(state, network, layout)
    found["embed.proj.weight"] = patch_matrix(found["embed.proj.weight"])
    _same(found, state, network)
    base = "teacher.twins.main" if twin else "networks.main"
    found = {f"{base}.{name}": value for name, value in found.items()}
    token = state.get("mask_token", state.get("masked_embed"))
    for name, corruptor in getattr(module, "corruptors", nn.ModuleDict()).items():
        if token is not None and not twin and hasattr(corruptor, "mask_token"):
            found[f"corruptors.{name}.mask_token"] = token.reshape(1, 1, -1)
    return found


def _recognise(state: State, network: Network, layout: Layout) -> None:
    """Refuses what is no plain vision transformer, and what sizes alone would let pass."""
    where, encoder = f"init_from: official/{layout.name}", network.encoder
    known = re.compile("|".join([_FRONT, *(pattern for pattern, _ in _NETWORK), *IGNORED]))
    strange = [name for name in state if not known.fullmatch(name)]
    kernel = state.get("patch_embed.proj.weight")
    side = 0 if kernel is None else kernel.shape[-1]
    if any("flat_param" in name for name in state):
        raise ValueError(f"{where}: this is one rank's shard of a training; give eval/*/teacher_checkpoint.pth of it.")
    if kernel is None or "pos_embed" not in state or strange:
        shown = ", ".join((strange or list(state))[:3]) or "no tensors"
        raise ValueError(f"{where} reads vision transformers, and this file holds {shown}; give the file of a ViT.")
    if not isinstance(encoder, (ViT, TimmViT)):
        raise ValueError(f"{where} fills encoder/vit or a vision transformer of encoder/timm; choose one of the two.")
    if network.spec.cell != tuple(kernel.shape[2:]):
        raise ValueError(
            f"{where}: the file's patches have a side of {side} pixels, those of the run are {network.spec.cell}; set "
            f"tokenizer.patch={side}."
        )
    if network.spec.channels == 1 != kernel.shape[1]:
        raise ValueError(
            f"{where}: the file reads {kernel.shape[1]} channels and the run has one, so patches would be embedded at "
            f"random; set data.channels={kernel.shape[1]}, which repeats it."
        )
    block: Any = encoder.blocks[0]
    count, used = layout.heads.get(kernel.shape[0]), block.attn.num_heads
    if count is not None and kernel.shape[0] == encoder.dim and count != used:
        raise ValueError(f"{where}: this width was trained with encoder.heads={count} (got {used}); set it so.")
    gate, given = state.get("blocks.0.mlp.w3.weight"), getattr(getattr(block.mlp, "fc2", None), "weight", None)
    if gate is not None and (given is None or given.shape != gate.shape):
        raise ValueError(
            f"{where}: the file's MLPs are SwiGLU, which this encoder does not have. Set encoder={{_target_: "
            "encoder/timm, name: vit_giant_patch14_dinov2}, or give the file of a smaller model, whose MLPs are plain."
        )


def resize(table: Tensor, grid: tuple[int, ...]) -> Tensor:
    """A table of a square grid (n, d) for another grid, bicubic as `position/learned` does it for other crops.

    Raises:
        ValueError: for a table of a grid that is not square.
    """
    side = math.isqrt(len(table))
    if side * side != len(table):
        raise ValueError(f"init_from: {len(table)} positions are no square grid, as those of the official models are")
    if (side, side) == grid:
        return table
    square = table.float().T.reshape(1, -1, side, side)
    return nn.functional.interpolate(square, grid, mode="bicubic", antialias=True).flatten(2)[0].T


def _front(state: State, network: Network, layout: Layout) -> dict[str, Tensor]:
    """Tokens in front and positions as the encoder names them."""
    encoder, grid = network.encoder, network.spec.grid
    assert grid is not None
    table = state["pos_embed"][0]  # the class token's row first, where there is one
    front = [state[name] for name in ("cls_token", "register_tokens") if name in state]
    own = table[:1] if "cls_token" in state else table[:0]
    table = table[len(own) :]
    if isinstance(encoder, TimmViT) and encoder.pos_embed is not None and not encoder.class_only:
        rest = own.new_zeros(sum(token.shape[1] for token in front) - len(own), own.shape[1])
        found = {"encoder.pos_embed": torch.cat([own, rest, resize(table, grid)])[None]}
    else:
        front[:1] = [token + own for token in front[:1]]
        if isinstance(encoder, TimmViT):
            found = {"encoder.pos_embed": resize(table, grid)[None]}
        elif isinstance(encoder.position, Learned):
            found = {"encoder.position.table": resize(table, grid)}
        else:
            found = {}
            compare(table, encoder.position, "encoder", layout)
    if isinstance(encoder, TimmViT):
        return found | {f"encoder.prefix_tokens.{i}": token for i, token in enumerate(front)}
    return found | ({"encoder.prefix": torch.cat(front, 1)} if front else {})


def compare(table: Tensor, position: nn.Module, where: str, layout: Layout) -> None:
    """Refuses a run whose positions, on the file's grid, are not the file's."""
    side = math.isqrt(len(table))
    index = torch.arange(side * side)[None]
    pos = coordinates((side, side))[None]
    ours = position(Tokens(raw=table.new_empty(1, side * side, 0), pos=pos, index=index, grid=(side, side)))[0]
    # the official tables were computed in single precision
    if ours.shape == table.shape and not torch.allclose(ours, table.to(ours), rtol=0, atol=1e-4):
        raise ValueError(
            f"init_from: official/{layout.name}: the file's positions differ from what {where}.position computes. Set "
            f"{where}.position={{_target_: {layout.position}}}, with which they are the same."
        )


def _same(found: State, state: State, network: Network) -> None:
    """Refuses a file whose encoder has other parts than the run's, of which a share would be filled in silence."""
    own = {name: parameter for name, parameter in network.named_parameters() if not name.startswith("tokenizer.")}
    apart = sorted(set(found) ^ set(own))
    front = [name for name in own if name.startswith("encoder.prefix") and name in found]
    apart += [name for name in front if found[name].shape[1] != own[name].shape[1]]
    if not apart:
        return
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    scaled = any(".ls1." in name for name in found)
    depth = 1 + max((int(name.split(".")[2]) for name in found if name.startswith("encoder.blocks.")), default=-1)
    settings = {
        "depth": depth, "class_token": "cls_token" in state, "registers": registers,
        "layer_scale": "1.0e-5" if scaled else "null", "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "final_norm": "norm.weight" in state,
    }  # fmt: skip
    said = " ".join(f"encoder.{key}={str(value).lower()}" for key, value in settings.items())
    raise ValueError(
        f"init_from: {', '.join(apart[:3])}{' ...' * (len(apart) > 3)} differ between the file and the run. The file "
        f"was made with what encoder/vit calls {said}; set the run so."
    )
