"""Official checkpoints of point recipes: their names in, ours out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmssl.parts.formats import encoder_fits, rename, strictly
from mmssl.registry import register

_EMBED, _ENCODER = "networks.main.embed", "networks.main.encoder"
_DECODER, _AGAIN = "objective.points.predictor", "objective.again.predictor"
_GROUPS = [
    *(
        (rf"MAE_encoder\.encoder\.{theirs}_conv\.{at}\.(.+)", rf"{_EMBED}.{theirs}.{place}.\1")
        for theirs in ("first", "second")
        for place, at in enumerate((0, 1, 3))
    ),
    (r"MAE_encoder\.pos_embed\.(.+)", rf"{_ENCODER}.position.layers.\1"),
    (r"MAE_encoder\.blocks\.blocks\.(.+)", rf"{_ENCODER}.blocks.\1"),
    (r"MAE_encoder\.norm\.(.+)", rf"{_ENCODER}.norm.\1"),
]


def _decoder(place: str, number: str = "", mark: str = "") -> list[tuple[str, str]]:
    """The decoder at a place of ours, whose names end in a number and a mark."""
    return [
        (rf"mask_token{number}", f"{place}.mask_token"),
        (rf"decoder_pos_embed{number}\.(.+)", rf"{place}.position.layers.\1"),
        (rf"MAE_decoder{mark}\.blocks\.(.+)", rf"{place}.blocks.\1"),
        (rf"MAE_decoder{mark}\.norm\.(.+)", rf"{place}.norm.\1"),
        (rf"increase_dim{mark}\.0\.(.+)", rf"{place}.head.\1"),
    ]


_POINT_MAE = [*_GROUPS, *_decoder(_DECODER)]
_POINT_CMAE = [*_GROUPS, *_decoder(_DECODER, "1"), *_decoder(_AGAIN, "2", "_")]


@register("format/official/point_mae")
def point_mae(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The pre-training checkpoints of Pang-Yatian/Point-MAE, bare or under `base_model`; convolutions as matrices."""
    return _matrices(rename(_plain(content), _POINT_MAE))


@register("format/official/point_cmae")
def point_cmae(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The pre-training checkpoints of Amazingren/Point-CMAE, bare or under `base_model`: Point-MAE's with two decoders.

    The second decoder is that of the recipe's term `again`. Left out are both class tokens, with the positions that are
    added to them before every block, as ours is one for both passes and has none, and their projector, which is in no
    loss. The authors' own fine-tuning leaves them out, too, and begins with a new class token.

    Raises:
        ValueError: for encoders of another size, and for files with further parts.
    """
    left = (r"MAE_encoder\.cls_(token|pos)[12]", r"MAE_encoder\.proj_cls\..+")
    state = _matrices(strictly(_plain(content), _POINT_CMAE, left))
    encoder_fits(state, module)
    return state


def _plain(content: Mapping[str, Any]) -> dict[str, Tensor]:
    held = content.get("base_model", content)
    return {name.removeprefix("module."): value for name, value in held.items()}


def _matrices(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.squeeze(-1) if value.dim() == 3 and "mask_token" not in name else value
            for name, value in state.items()}  # fmt: skip
