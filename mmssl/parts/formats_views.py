"""Official checkpoints of networks that complete a view with another one, CroCo and CropMAE, and of SparK.

Called as (content, module). Encoder and decoder are each filled whole, or the file is refused by the names of what
differs. Fixed sine-cosine tables are not loaded, as ours are computed: where the file holds them, they are compared
with what the run computes. A name that a layout does not know is refused, so that nothing is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.nn.network import Network
from mmssl.parts.cross_view import ORDERS, CrossView
from mmssl.parts.encoders.sparse import Sparse
from mmssl.parts.formats import rename, strictly, unwrap
from mmssl.parts.formats_vit import Layout, State, compare, transformer
from mmssl.parts.unet_predictor import UNet
from mmssl.registry import register

Rules = list[tuple[str, str]]
_WIDTHS = {384: 6, 768: 12, 1024: 16}  # attention heads of the authors' encoders


def tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint without wrappers' names, and without what else stands among them."""
    state = unwrap(content)
    return {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}


def need(state: State, name: str, *names: str) -> None:
    """Refuses a file that lacks tensors, by their names."""
    missing = [said for said in names if said not in state]
    if missing:
        raise ValueError(f"init_from: official/{name}: the file lacks {', '.join(missing[:3])}; give a whole one.")


def whole(found: State, part: nn.Module | State, base: str, name: str, remedy: str) -> dict[str, Tensor]:
    """The tensors of a part, or of those of its tensors that are meant, with its own name in front.

    Raises:
        ValueError: when they are not just those of the part, or of other shapes.
    """
    state = part.state_dict() if isinstance(part, nn.Module) else part
    own = {said: value.shape for said, value in state.items()}
    apart = [f"{base}.{said}" for said in sorted(set(own) ^ set(found))]
    apart += [
        f"{base}.{said} {tuple(value.shape)} for {tuple(own[said])}"
        for said, value in found.items() if said in own and own[said] != value.shape
    ]  # fmt: skip
    if apart:
        raise ValueError(
            f"init_from: official/{name}: {', '.join(apart[:3])}{' ...' * (len(apart) > 3)} differ between the file "
            f"and the run. {remedy}"
        )
    return {f"{base}.{said}": value for said, value in found.items()}


def depth(found: State) -> int:
    """Number of blocks."""
    return 1 + max((int(name.split(".")[1]) for name in found if name.startswith("blocks.")), default=-1)


# ---- a view that is completed with the help of another


def _cross_view(
    found: State, module: Any, layout: Layout, table: Tensor, said: tuple[str, str, bool]
) -> dict[str, Tensor]:
    """Decoders of `predictor/cross_view`, from tensors by its names; nothing where the file or the run has none.

    Args:
        found: tensors.
        module: the run's.
        layout: names, and attention heads by the decoder's width.
        table: the file's positions (n, dim).
        said: what the recipe has to say: `first`, `norm` and `memory_position`.
    """
    placed: dict[str, Tensor] = {}
    for name, term in module.objective.items():
        part, base = getattr(term, "predictor", None), f"objective.{name}.predictor"
        if not isinstance(part, CrossView) or not found:
            continue
        block: Any = part.blocks[0]
        width, (first, norm, memory) = len(found["embed.weight"]), said
        heads = layout.heads.get(width, block.own.num_heads)
        remedy = (
            f"The file was made with {base}.dim={width} depth={depth(found)} heads={heads} "
            f"mlp_ratio={found['blocks.0.mlp.fc1.weight'].shape[0] / width:g} first={first} norm={norm} "
            f"memory_position={str(memory).lower()}; set the run so."
        )
        used = (block.order, block.post, part.memory_position, block.own.num_heads)
        if used != (ORDERS[first], norm == "post", memory, heads):
            raise ValueError(f"init_from: official/{layout.name}: the run's decoder computes something else. {remedy}")
        placed |= whole(found, part, base, layout.name, remedy)
        compare(table, part.position, base, layout)
    return placed


_CROCO: Rules = [
    (r"enc_pos_embed", "pos_embed"),
    (r"patch_embed\.proj\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"enc_(blocks|norm)\.(.+)", r"\1.\2"),
]
_CROCO_DECODER: Rules = [
    (r"mask_token", "mask_token"),
    (r"decoder_embed\.(.+)", r"embed.\1"),
    (r"dec_blocks\.(\d+)\.attn\.qkv\.(.+)", r"blocks.\1.own.in_proj_\2"),
    (r"dec_blocks\.(\d+)\.attn\.proj\.(.+)", r"blocks.\1.own.out_proj.\2"),
    (r"dec_blocks\.(\d+)\.cross_attn\.proj([qkv])\.(.+)", r"blocks.\1.cross.\2.\3"),
    (r"dec_blocks\.(\d+)\.cross_attn\.proj\.(.+)", r"blocks.\1.cross.out_proj.\2"),
    (r"dec_blocks\.(\d+)\.norm1\.(.+)", r"blocks.\1.norms.own.\2"),
    (r"dec_blocks\.(\d+)\.norm2\.(.+)", r"blocks.\1.norms.cross.\2"),
    (r"dec_blocks\.(\d+)\.norm3\.(.+)", r"blocks.\1.norms.mlp.\2"),
    (r"dec_blocks\.(\d+)\.norm_y\.(.+)", r"blocks.\1.norm_memory.\2"),
    (r"dec_blocks\.(\d+)\.(mlp\..+)", r"blocks.\1.\2"),
    (r"dec_norm\.(.+)", r"norm.\1"),
    (r"prediction_head\.(.+)", r"head.\1"),
]


@register("format/official/croco")
def croco(content: Mapping[str, Any], module: Any) -> dict[str, Tensor]:
    """The checkpoints of naver/croco with cosine positions (CroCo.pth), with or without decoder, bare or under `model`.

    Left out: `enc_pos_embed` and `dec_pos_embed`, fixed tables, which are compared. The files of CroCo v2 turn queries
    and keys instead and are refused. Attention heads are those of `croco_kwargs`, else of the authors' models.
    """
    state, said = tensors(content), content.get("croco_kwargs") or {}
    found = strictly(state, [*_CROCO, *_CROCO_DECODER], ("dec_pos_embed",))
    if "pos_embed" not in found:
        raise ValueError(
            "init_from: official/croco: this file has no table of positions, as those of CroCo v2, whose attention "
            "turns queries and keys (pos_embed=RoPE100), which encoder/vit does not; give CroCo.pth."
        )
    encoder, decoder = rename(state, _CROCO), rename(state, _CROCO_DECODER)
    encoder["pos_embed"] = encoder["pos_embed"][None]
    heads = {encoder["pos_embed"].shape[-1]: said["enc_num_heads"]} if "enc_num_heads" in said else _WIDTHS
    placed = transformer(encoder, module, Layout("croco", heads, "position/sincos"), twin=False)
    for name in [name for name in decoder if ".cross.q." in name]:
        base, end = name.split("q.")
        need(decoder, "croco", *(f"{base}{part}.{end}" for part in "qkv"))
        parts = [decoder.pop(f"{base}{part}.{end}") for part in "qkv"]
        decoder[f"{base}in_proj_{end}"] = torch.cat(parts)
    if decoder:
        need(state, "croco", "dec_pos_embed", "decoder_embed.weight", "dec_blocks.0.mlp.fc1.weight")
        table = state["dec_pos_embed"]
        heads = {table.shape[-1]: said["dec_num_heads"]} if "dec_num_heads" in said else {512: 16, 768: 12}
        layout = Layout("croco", heads, "position/sincos")
        placed |= _cross_view(decoder, module, layout, table, ("own", "pre", True))
    return placed


_CROPMAE: Rules = [
    (r"(cls_token|pos_embed|patch_embed\.proj\.(?:weight|bias)|(?:blocks|norm)\..+)", r"\1"),
]
_CROPMAE_DECODER: Rules = [
    (r"mask_token", "mask_token"),
    (r"decoder_embed\.(.+)", r"embed.\1"),
    (r"decoder_blocks\.(\d+)\.self_attn\.(.+)", r"blocks.\1.own.\2"),
    (r"decoder_blocks\.(\d+)\.multihead_attn\.(.+)", r"blocks.\1.cross.\2"),
    (r"decoder_blocks\.(\d+)\.linear([12])\.(.+)", r"blocks.\1.mlp.fc\2.\3"),
    (r"decoder_blocks\.(\d+)\.norm1\.(.+)", r"blocks.\1.norms.own.\2"),
    (r"decoder_blocks\.(\d+)\.norm2\.(.+)", r"blocks.\1.norms.cross.\2"),
    (r"decoder_blocks\.(\d+)\.norm3\.(.+)", r"blocks.\1.norms.mlp.\2"),
    (r"decoder_norm\.(.+)", r"norm.\1"),
    (r"decoder_pred\.(.+)", r"head.\1"),
]


@register("format/official/cropmae")
def cropmae(content: Mapping[str, Any], module: Any) -> dict[str, Tensor]:
    """The checkpoints of alexandre-eymael/CropMAE, and of SiamMAE as trained there, with or without decoder.

    Left out: `pos_embed` and `decoder_pos_embed`, fixed tables with a row of zeros for the class token; both are
    compared.
    """
    state = tensors(content)
    strictly(state, [*_CROPMAE, *_CROPMAE_DECODER], ("decoder_pos_embed",))
    placed = transformer(rename(state, _CROPMAE), module, Layout("cropmae", _WIDTHS, "position/sincos"), twin=False)
    decoder = rename(state, _CROPMAE_DECODER)
    if decoder:
        need(state, "cropmae", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.linear1.weight")
        layout = Layout("cropmae", {256: 8, 512: 16, 1024: 16}, "position/sincos")
        table = state["decoder_pos_embed"][0, 1:]
        placed |= _cross_view(decoder, module, layout, table, ("cross", "post", False))
    return placed


# ---- convolutional networks that leave hidden cells out

_SPARK: Rules = [
    (r"downsample_layers\.0\.(.+)", r"stem.\1"),
    (r"downsample_layers\.(\d+)\.(.+)", r"stages.\1.downsample.\2"),
    (r"stages\.(\d+)\.(\d+)\.dwconv\.(.+)", r"stages.\1.blocks.\2.conv_dw.\3"),
    (r"stages\.(\d+)\.(\d+)\.pwconv([12])\.(.+)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
    (r"stages\.(\d+)\.(\d+)\.(gamma|norm\..+)", r"stages.\1.blocks.\2.\3"),
    (r"((?:conv1|bn1|layer\d+)\..+)", r"\1"),
]
_SPARK_DECODER: Rules = [
    (r"mask_tokens\.(\d+)", r"fill.\1"),
    (r"densify_norms\.(.+)", r"norms.\1"),
    (r"densify_projs\.(.+)", r"join.\1"),
    (r"dense_decoder\.dec\.(\d+)\.up_sample\.(.+)", r"blocks.\1.up.\2"),
    (r"dense_decoder\.dec\.(\d+)\.(conv\..+)", r"blocks.\1.\2"),
    (r"dense_decoder\.proj\.(.+)", r"head.\1"),
]
_CNN = "sparse_encoder.sp_cnn."


@register("format/official/spark")
def spark(content: Mapping[str, Any], module: Any) -> dict[str, Tensor]:
    """The checkpoints of keyu-tian/SparK: whole ones (`*_spark_style.pth`), and encoders alone (`*_timm_style.pth`).

    ResNets have timm's names; those of ConvNeXts are the authors' of that network and become timm's. Running means and
    variances come along. Left out: `imn_m`, `imn_s` and `norm_black`, which the released code does not use either, its
    `config`, and the classifier of a fine-tuned network.
    """
    network: Any = module.get_submodule("networks.main")
    assert isinstance(network, Network)
    if not isinstance(network.encoder, Sparse):
        raise ValueError("init_from: official/spark fills encoder/sparse; choose it, with name: the file's network.")
    plain = {name.removeprefix(_CNN): value for name, value in tensors(content).items()}
    strictly(plain, [*_SPARK, *_SPARK_DECODER], (r"imn_[ms]|norm_black|(fc|norm|head)\..+",))
    base, remedy = "networks.main.encoder.model", "Set encoder.name to the file's network, and data.channels=3."
    placed = whole(rename(plain, _SPARK), network.encoder.model, base, "spark", remedy)
    decoder = rename(plain, _SPARK_DECODER)
    for name, term in module.objective.items():
        part, base = getattr(term, "predictor", None), f"objective.{name}.predictor"
        if isinstance(part, UNet) and decoder:
            need(decoder, "spark", "blocks.0.up.weight")
            norm = "batch" if any("running_mean" in said for said in decoder if said.startswith("norms.")) else "layer"
            remedy = f"Set {base}.dim={len(decoder['blocks.0.up.weight'])} norm={norm}, and data.channels=3."
            placed |= whole(decoder, part, base, "spark", remedy)
    return placed
