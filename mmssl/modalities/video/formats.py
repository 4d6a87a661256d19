"""Layouts of the authors' checkpoints of videos: official names in, ours out. Called as (content, module)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.parts.formats import encoder_fits, joined_biases, rename, unwrap
from mmssl.registry import register

_KEYS = ("model", "model_state", "state_dict", "module")
_EMBED, _ENCODER, _PIXELS = "networks.main.embed", "networks.main.encoder", "objective.pixels.predictor"
_GUIDE = "guides.x"


def tubelet_matrix(weight: Tensor) -> Tensor:
    """A tubelet convolution (d, c, t, p, p) as our matrix (d, t * p * p * c), channel fastest."""
    return weight.permute(0, 2, 3, 4, 1).flatten(1)


@register("format/official/videomae")
def videomae(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The checkpoints of MCG-NJU/VideoMAE, pre-trained (encoder and decoder) or fine-tuned (encoder only).

    OpenGVLab/VideoMAEv2 and wgcban/adamae have the same layout; of the latter the network that draws tokens fills
    guide/policy. Their keys have no bias: ours is zero, which changes nothing. Nor has their map into the decoder.
    What classifies is left out, as is the norm behind the mean of a fine-tuned model (fc_norm): it is no part of ours.

    Raises:
        ValueError: for blocks that the encoder lacks, or of another kind (layer scale, cosine attention).
    """
    state = rename(
        unwrap(content, _KEYS),
        [
            (r"(?:encoder\.)?patch_embed\.proj\.(.+)", rf"{_EMBED}.proj.\1"),
            (r"(?:encoder\.)?blocks\.(.+)", rf"{_ENCODER}.blocks.\1"),
            (r"(?:encoder\.)?norm\.(.+)", rf"{_ENCODER}.norm.\1"),
            (r"encoder_to_decoder\.weight", rf"{_PIXELS}.embed.weight"),
            (r"mask_token", rf"{_PIXELS}.mask_token"),
            (r"decoder\.blocks\.(.+)", rf"{_PIXELS}.blocks.\1"),
            (r"decoder\.norm\.(.+)", rf"{_PIXELS}.norm.\1"),
            (r"decoder\.head\.(.+)", rf"{_PIXELS}.head.\1"),
            (r"encoder\.pos_embed_probs", f"{_GUIDE}.position"),
            (r"encoder\.get_token_probs\.0\.(.+)", rf"{_GUIDE}.blocks.0.\1"),
            (r"encoder\.get_token_probs\.1\.(.+)", rf"{_GUIDE}.head.\1"),
        ],
    )
    if f"{_GUIDE}.position" in state:
        state[f"{_GUIDE}.position"] = state[f"{_GUIDE}.position"].flatten(0, 1)
    state = joined_biases(state)
    if f"{_PIXELS}.embed.weight" in state:
        weight = state[f"{_PIXELS}.embed.weight"]
        state[f"{_PIXELS}.embed.bias"] = weight.new_zeros(len(weight))
    # an embedding of other channels may begin anew, if init_share lets it
    encoder_fits({name: value for name, value in state.items() if name.startswith(_ENCODER)}, module)
    return _with_matrix(state)


@register("format/official/mae_st")
def mae_st(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The checkpoints of facebookresearch/mae_st with separate positions, with or without decoder.

    Their class tokens have a position: the sum of both is our class token.
    """
    plain = dict(unwrap(content, _KEYS))
    for token, place in (("cls_token", "pos_embed_class"), ("decoder_cls_token", "decoder_pos_embed_class")):
        if token in plain and place in plain:
            plain[token] = plain[token] + plain.pop(place)
    for name in [name for name in plain if name.startswith(("pos_embed_", "decoder_pos_embed_"))]:
        plain[name] = plain[name].flatten(0, 1)
    tables = {"spatial": "space", "temporal": "time"}
    state = rename(
        plain,
        [
            (r"patch_embed\.proj\.(.+)", rf"{_EMBED}.proj.\1"),
            (r"cls_token", rf"{_ENCODER}.prefix"),
            *((rf"pos_embed_{theirs}", f"{_ENCODER}.position.{ours}") for theirs, ours in tables.items()),
            (r"blocks\.(.+)", rf"{_ENCODER}.blocks.\1"),
            (r"norm\.(.+)", rf"{_ENCODER}.norm.\1"),
            (r"decoder_embed\.(.+)", rf"{_PIXELS}.embed.\1"),
            (r"mask_token", rf"{_PIXELS}.mask_token"),
            (r"decoder_cls_token", rf"{_PIXELS}.own"),
            *((rf"decoder_pos_embed_{theirs}", f"{_PIXELS}.position.{ours}") for theirs, ours in tables.items()),
            (r"decoder_blocks\.(.+)", rf"{_PIXELS}.blocks.\1"),
            (r"decoder_norm\.(.+)", rf"{_PIXELS}.norm.\1"),
            (r"decoder_pred\.(.+)", rf"{_PIXELS}.head.\1"),
        ],
    )
    for name in [name for name in state if ".attn.q." in name]:
        parts = [state.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        state[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return _with_matrix(state)


def _with_matrix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    key = f"{_EMBED}.proj.weight"
    if key in state and state[key].dim() == 5:
        state[key] = tubelet_matrix(state[key])
    return state
