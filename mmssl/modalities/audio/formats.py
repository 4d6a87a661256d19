"""Layouts of other people's audio checkpoints: official names in, ours out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmssl.parts.formats import encoder_fits, patches, rename, strictly, unwrap
from mmssl.registry import register

_ENCODER = "networks.main.encoder"
_PREDICTOR = "objective.patches.predictor"
_RULES = [
    (r"patch_embed\.proj\.(weight|bias)", r"networks.main.embed.proj.\1"),
    (r"cls_token", rf"{_ENCODER}.prefix"),
    (r"blocks\.(.+)", rf"{_ENCODER}.blocks.\1"),
    (r"(?:fc_)?norm\.(.+)", rf"{_ENCODER}.norm.\1"),
    (r"decoder_embed\.(.+)", rf"{_PREDICTOR}.embed.\1"),
    (r"mask_token", rf"{_PREDICTOR}.mask_token"),
    (r"decoder_blocks\.(.+)", rf"{_PREDICTOR}.blocks.\1"),
    (r"decoder_norm\.(.+)", rf"{_PREDICTOR}.norm.\1"),
    (r"decoder_pred\.(.+)", rf"{_PREDICTOR}.head.\1"),
]


@register("format/official/audio_mae")
def audio_mae(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The checkpoints of facebookresearch/AudioMAE, with or without decoder, bare or under `model`.

    Its positions are not learned and not read: set `encoder.position._target_=position/sincos_transposed`, and the same
    for the predictor, which is what these weights were trained with.
    """
    state = content.get("model", content)
    return patches(rename(state, _RULES))


@register("format/official/bird_mae")
def bird_mae(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The pre-training checkpoints of DBD-research-group/Bird-MAE, with or without decoder, bare or under `state_dict`.

    Its positions are Audio-MAE's: fixed, not read, and of the grid turned round. Set
    `encoder.position._target_=position/sincos_transposed`, and the same for the predictor. Lightning keeps the run's
    settings beside the weights, which are no tensors and not read: save the `state_dict` of yours alone first.

    Raises:
        ValueError: for encoders of another depth, and for files with further parts.
    """
    state = {}
    for name, value in unwrap(content, ("state_dict", "model")).items():
        inner = name.removeprefix("encoder.").removeprefix("decoder.")
        state[f"decoder_{inner}" if name.startswith("decoder.blocks.") else inner] = value
    found = strictly(state, _RULES, (r"(decoder_)?pos_embed",))
    # an embedding of other patches may begin anew, if init_share lets it
    encoder_fits({name: value for name, value in found.items() if name.startswith(_ENCODER)}, module)
    return patches(found)
