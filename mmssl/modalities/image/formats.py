"""The layout of MultiMAE's checkpoints: official names in, ours out. Called as (content, module)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmssl.modalities.image.stacked import StreamEmbed
from mmssl.nn.network import Network
from mmssl.parts.encoders.vit import ViT
from mmssl.parts.formats import patch_matrix, rename, strictly
from mmssl.parts.formats_views import depth, need, tensors, whole
from mmssl.parts.formats_vit import Layout, compare
from mmssl.parts.stream_parts import StreamDecoder
from mmssl.registry import register

_LAYOUT = Layout("multimae", {768: 12, 1024: 16}, "position/sincos_parts")
_DECODER_HEADS = {256: 8}
_ENCODER = [(r"encoder\.(\d+\..+)", r"encoder.blocks.\1"), (r"global_tokens", "encoder.prefix")]
_INPUT = [(r"proj\.(weight|bias)", r"proj.\1")]
_OUTPUT = [
    (r"proj_context\.(.+)", r"embed.\1"),
    (r"mask_token", "mask_token"),
    (r"(context_norm|query_norm)\.(.+)", r"\1.\2"),
    (r"out_norm\.(.+)", r"norm.\1"),
    (r"decoder\.(q|kv)\.(.+)", r"cross.\1.\2"),
    (r"decoder\.proj\.(.+)", r"cross.out_proj.\1"),
    (r"(mlp\..+)", r"\1"),
    (r"decoder_transformer\.(.+)", r"blocks.\1"),
    (r"out_proj\.(.+)", r"head.\1"),
]
_TURNED = ("embed.weight", "embed.bias", "context_norm.", "query_norm.")


@register("format/official/multimae")
def multimae(content: Mapping[str, Any], module: Any) -> dict[str, Tensor]:
    """The checkpoints of EPFL-VILAB/MultiMAE with cross-attention, into a run of `tokenizer/stacked`.

    `rgb` is the run's first stream. `depth` is the first further stream of one channel, where there is one; other
    streams start anew, so that `init_share` has to allow it. `norm_rgb` fills the decoder of standardised pixels. The
    global token becomes the class token. Fixed positions put rows before columns: the run's encoder needs
    `position/sincos_parts`, and `final_norm: false`. The decoders' positions cannot be chosen, so their channels are
    put in our order up to the cross-attention, which changes no answer. Heads' pixels (channel, row, column) become
    ours. Left out: `pos_emb`, fixed tables, which are compared; `semseg`, whose classes are embedded at a quarter of
    the resolution, which no stream of ours is; and decoders that the run has no term for.
    """
    state = tensors(content)
    rules = [*_ENCODER, *((rf"input_adapters\.(?:rgb|depth)\.{rule}", "") for rule, _ in _INPUT)]
    rules += [(rf"output_adapters\.(?:rgb|depth|norm_rgb)\.{rule}", "") for rule, _ in _OUTPUT]
    spare = r"(in|out)put_adapters\.(semseg\..+|\w+\.(pos_emb|task_embeddings\.\w+))"
    strictly(state, rules, (spare,))
    network: Any = module.get_submodule("networks.main")
    assert isinstance(network, Network)
    if not isinstance(network.encoder, ViT) or not isinstance(network.embed, StreamEmbed):
        raise ValueError("init_from: official/multimae fills encoder/vit behind tokenizer/stacked; choose the two.")
    kernel = state.get("input_adapters.rgb.proj.weight")
    if kernel is None or network.spec.cell != tuple(kernel.shape[2:]):
        side = "no image's patches" if kernel is None else f"patches with a side of {kernel.shape[-1]} pixels"
        raise ValueError(
            f"init_from: official/multimae: the file has {side}, those of the run are {network.spec.cell}; set "
            "tokenizer.patch to the file's."
        )
    need(state, "multimae", "global_tokens", "input_adapters.rgb.pos_emb")
    cells, streams = kernel.shape[-1] ** 2, {"rgb": 0}
    single = [i for i, width in enumerate(network.embed.widths) if i and width == cells]
    streams |= {"depth": single[0]} if single else {}
    placed = _encoder(state, network, streams)
    for name, term in module.objective.items():
        part, base = getattr(term, "predictor", None), f"objective.{name}.predictor"
        if not isinstance(part, StreamDecoder):
            continue
        of = next((said for said, i in streams.items() if i == part.stream), "")
        adapter = ("norm_" if getattr(term.target, "normalize", False) else "") + of
        given = _under(state, f"output_adapters.{adapter}.") if of else {}
        if given:
            placed |= _decoder(given, part, base, streams, cells)
    return placed


def _under(state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a key, without it."""
    return {name.removeprefix(key): value for name, value in state.items() if name.startswith(key)}


def _encoder(state: Mapping[str, Tensor], network: Any, streams: Mapping[str, int]) -> dict[str, Tensor]:
    """Embeddings of the streams that file and run both have, and the encoder."""
    found, encoder = rename(state, _ENCODER), network.encoder
    for said, i in streams.items():
        own = rename(_under(state, f"input_adapters.{said}."), _INPUT)
        if own:
            need(state, "multimae", f"input_adapters.{said}.proj.weight", f"input_adapters.{said}.proj.bias")
            own["proj.weight"] = patch_matrix(own["proj.weight"])
            found |= {f"embed.parts.{i}.{name}": value for name, value in own.items()}
    used = tuple(f"embed.parts.{i}." for i in streams.values())
    used = tuple(name for name in used if any(said.startswith(name) for said in found))
    own = {name: value for name, value in network.state_dict().items() if name.startswith(("encoder.", *used))}
    tokens, blocks = found["encoder.prefix"], _under(found, "encoder.")
    heads = _LAYOUT.heads.get(tokens.shape[-1], encoder.blocks[0].attn.num_heads)
    remedy = (
        f"The file was made with encoder.dim={tokens.shape[-1]} depth={depth(blocks)} heads={heads} class_token=true "
        f"registers={tokens.shape[1] - 1} final_norm=false and data.channels=3; set the run so."
    )
    if heads != encoder.blocks[0].attn.num_heads:
        raise ValueError(f"init_from: official/multimae: the run has other attention heads. {remedy}")
    placed = whole(found, own, "networks.main", "multimae", remedy)
    compare(_table(state["input_adapters.rgb.pos_emb"]), encoder.position, "encoder", _LAYOUT)
    return placed


def _table(positions: Tensor) -> Tensor:
    """Positions (1, d, h, w) as a table (n, d)."""
    return positions.flatten(2)[0].T


def _decoder(
    given: dict[str, Tensor], part: StreamDecoder, base: str, streams: Mapping[str, int], cells: int
) -> dict[str, Tensor]:
    """One decoder of the file as one of ours."""
    asked = [f"decoder.{name}.{end}" for name in ("q", "kv") for end in ("weight", "bias")]
    need(given, "multimae", "mask_token", "pos_emb", *asked, "out_proj.weight", "out_proj.bias")
    found, half, heads = rename(given, _OUTPUT), part.mask_token.shape[-1] // 2, part.cross.num_heads
    wide = given["mask_token"].shape[-1]
    remedy = (
        f"The file was made with {base}.dim={wide} depth={depth(found)} heads={_DECODER_HEADS.get(wide, heads)} and "
        "its pixels; set the run so."
    )
    if wide != 2 * half or heads != _DECODER_HEADS.get(wide, heads):
        raise ValueError(f"init_from: official/multimae: the run's decoder {base} has other sizes. {remedy}")
    found["cross.in_proj_weight"] = torch.cat([found.pop(f"cross.{name}.weight") for name in ("q", "kv")]).roll(half, 1)
    found["cross.in_proj_bias"] = torch.cat([found.pop(f"cross.{name}.bias") for name in ("q", "kv")])
    for name in [name for name in found if name.startswith(_TURNED)]:
        found[name] = found[name].roll(half, 0)
    found["mask_token"] = found["mask_token"].roll(half, -1)
    rows = part.of_stream.detach().clone()
    for said, i in streams.items():
        if f"task_embeddings.{said}" in given:
            rows[i] = given[f"task_embeddings.{said}"].flatten().roll(half)
    found["of_stream"] = rows
    count = len(found["head.bias"])
    order = torch.arange(count).reshape(count // cells, cells).T.flatten()
    found |= {name: found[name][order] for name in ("head.weight", "head.bias")}
    compare(_table(given["pos_emb"]).roll(half, 1), part.position, base, _LAYOUT)
    return whole(found, part, base, "multimae", remedy)
