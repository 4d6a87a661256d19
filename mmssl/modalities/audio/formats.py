"""Layouts of other people's audio checkpoints: official names in, ours out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmssl.parts.formats import patches, rename
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
