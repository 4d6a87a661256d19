"""The layout of CAPI's checkpoints: official names in, ours out. Called as (content, module)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmssl.nn.network import Network
from mmssl.nn.rope import RopeBlock
from mmssl.parts.encoders.rope import RopeEncoder
from mmssl.parts.formats import patch_matrix, rename, strictly
from mmssl.parts.formats_views import depth, need, tensors, whole
from mmssl.parts.rope_predictor import RopeCross, UnitLinear
from mmssl.registry import register


def _blocks(part: str, to: str) -> list[tuple[str, str]]:
    """Names of one of the two transformers, without the frequencies."""
    base = rf"backbone\.{part}\.blocks\.(\d+)\.residual"
    return [
        (rf"{base}([12])\.norm\.weight", rf"{to}blocks.\1.norm\2.weight"),
        (rf"{base}1\.fn\.([qkv])_proj\.weight", rf"{to}blocks.\1.\2.weight"),
        (rf"{base}1\.fn\.proj\.weight", rf"{to}blocks.\1.proj.weight"),
        (rf"{base}2\.fn\.(fc[12])\.weight", rf"{to}blocks.\1.\2.weight"),
    ]


_ENCODER = [
    (r"backbone\.patch_embed\.(weight|bias)", r"embed.proj.\1"),
    (r"backbone\.registers", "encoder.registers"),
    *_blocks("encoder", "encoder."),
]
_DECODER = [(r"backbone\.mask_token", "mask_token"), *_blocks("decoder", "")]
_HEAD = [(r"head\.last_layer\.weight_g", "head.length"), (r"head\.last_layer\.weight_v", "head.direction")]
_FREQS = r"backbone\.(?:en|de)coder\.blocks\.\d+\.residual1\.fn\.rope\.freqs"


@register("format/official/capi")
def capi(content: Mapping[str, Any], module: Any) -> dict[str, Tensor]:
    """The released files of facebookresearch/capi, and `student*_checkpoint.pth` of its training.

    They hold one branch: the encoder fills the student's, of which a teacher starts as a copy; decoder and logits fill
    `predictor/rope_cross`. The file's attention turns channels `across` the axes, so that encoder and predictor have to
    say `pairs: across`. Left out: `rope.freqs`, which are fixed. They are compared, to the precision of bfloat16, in
    which the released code may write them; the run's are exact. The clusters of the teacher are in no such file and
    start anew.
    """
    state = tensors(content)
    if any(name.startswith(("student.", "student_ema.", "teacher.")) for name in state):
        raise ValueError(
            "init_from: official/capi: this is one rank's shard of a training; give eval/*/student_ema_checkpoint.pth "
            "of it, or a released file."
        )
    strictly(state, [*_ENCODER, *_DECODER, *_HEAD], (_FREQS,))
    network: Any = module.get_submodule("networks.main")
    assert isinstance(network, Network)
    if not isinstance(network.encoder, RopeEncoder):
        raise ValueError("init_from: official/capi fills encoder/rope; choose it, with pairs: across.")
    encoder, kernel = rename(state, _ENCODER), state.get("backbone.patch_embed.weight")
    if kernel is None or network.spec.cell != tuple(kernel.shape[2:]):
        side = "no" if kernel is None else f"a side of {kernel.shape[-1]} pixels"
        raise ValueError(
            f"init_from: official/capi: the file's patches have {side}, those of the run are {network.spec.cell}; set "
            "tokenizer.patch to the same, 14 for the released files."
        )
    encoder["embed.proj.weight"] = patch_matrix(kernel)
    blocks = {name.removeprefix("encoder."): value for name, value in encoder.items()}
    registers = state["backbone.registers"].shape[1] if "backbone.registers" in state else 0
    remedy = f"The file was made with encoder.dim={len(kernel)} depth={depth(blocks)} registers={registers}; set it so."
    own = {name: value for name, value in network.state_dict().items() if not name.startswith("tokenizer.")}
    placed = whole(encoder, own, "networks.main", "capi", remedy)
    _turned(state, "encoder", network.encoder.blocks, "encoder")
    decoder = rename(state, _DECODER)
    for name, term in module.objective.items():
        part, base = getattr(term, "predictor", None), f"objective.{name}.predictor"
        if isinstance(part, RopeCross) and len(decoder) > 1:
            given = decoder | (rename(state, _HEAD) if isinstance(part.head, UnitLinear) else {})
            need(given, "capi", "mask_token")
            given["mask_token"] = given["mask_token"][None]
            remedy = (
                f"Set {base}.dim={given['mask_token'].shape[-1]} depth={depth(given)} and the count of clusters so."
            )
            spare = "head." if not any(said.startswith("head.") for said in given) else "nothing"
            asked = {said: value for said, value in part.state_dict().items() if not said.startswith(spare)}
            placed |= whole(given, asked, base, "capi", remedy)
            _turned(state, "decoder", part.blocks, base)
    return placed


def _turned(state: Mapping[str, Tensor], part: str, blocks: Any, where: str) -> None:
    """Refuses a run that turns queries and keys otherwise than the file.

    Raises:
        ValueError: for other pairs, another number of heads or other speeds, with the settings that fit.
    """
    for i, block in enumerate(blocks):
        assert isinstance(block, RopeBlock)
        freqs = state.get(f"backbone.{part}.blocks.{i}.residual1.fn.rope.freqs")
        if freqs is None:
            raise ValueError(f"init_from: official/capi: the file lacks the frequencies of block {i} of its {part}.")
        heads = block.q.weight.shape[0] // freqs.shape[1]
        if not block.rope.across or heads != block.heads:
            raise ValueError(
                f"init_from: official/capi: set {where}.pairs=across {where}.heads={heads}, as the file's."
            )
        speed = block.rope.speed.to(freqs.device)
        ours = torch.block_diag(speed.repeat(2)[None], speed.repeat(2)[None])
        if not torch.allclose(freqs.float(), ours, rtol=2**-8, atol=0):
            raise ValueError(
                f"init_from: official/capi: block {i} of the file's {part} turns at speeds of its own (rope.freqs), "
                "which encoder/rope does not have."
            )
