"""Official checkpoints of point recipes: their names in, ours out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmssl.parts.formats import rename
from mmssl.registry import register

_EMBED, _ENCODER, _DECODER = "networks.main.embed", "networks.main.encoder", "objective.points.predictor"
_POINT_MAE = [
    *(
        (rf"MAE_encoder\.encoder\.{theirs}_conv\.{at}\.(.+)", rf"{_EMBED}.{theirs}.{place}.\1")
        for theirs in ("first", "second")
        for place, at in enumerate((0, 1, 3))
    ),
    (r"MAE_encoder\.pos_embed\.(.+)", rf"{_ENCODER}.position.layers.\1"),
    (r"MAE_encoder\.blocks\.blocks\.(.+)", rf"{_ENCODER}.blocks.\1"),
    (r"MAE_encoder\.norm\.(.+)", rf"{_ENCODER}.norm.\1"),
    (r"mask_token", rf"{_DECODER}.mask_token"),
    (r"decoder_pos_embed\.(.+)", rf"{_DECODER}.position.layers.\1"),
    (r"MAE_decoder\.blocks\.(.+)", rf"{_DECODER}.blocks.\1"),
    (r"MAE_decoder\.norm\.(.+)", rf"{_DECODER}.norm.\1"),
    (r"increase_dim\.0\.(.+)", rf"{_DECODER}.head.\1"),
]


@register("format/official/point_mae")
def point_mae(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The pre-training checkpoints of Pang-Yatian/Point-MAE, bare or under `base_model`; convolutions as matrices."""
    held = content.get("base_model", content)
    state = rename({name.removeprefix("module."): value for name, value in held.items()}, _POINT_MAE)
    return {name: value.squeeze(-1) if value.dim() == 3 and "mask_token" not in name else value
            for name, value in state.items()}  # fmt: skip
