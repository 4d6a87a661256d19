"""Layouts of the authors' checkpoints of speech and sound models: official names in, ours out.

All are of fairseq's family: a convolution for positions with weight norm, and post-norm layers. Features of speech
equal the authors' for recordings of 400 + 320 n samples. Of others they differ a little: the norm over time behind the
first convolution takes the samples behind the last whole window into account there, and not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.parts.formats import encoder_fits, patch_matrix, strictly, unwrap
from mmssl.registry import register

_EMBED, _ENCODER = "networks.main.embed", "networks.main.encoder"
_UNITS, _CONTRAST = "objective.units.predictor", "objective.contrast"
_LAYER = r"encoder\.layers\.(\d+)"
_TRUNK = [
    (r"layer_norm\.(weight|bias)", rf"{_EMBED}.norm.\1"),
    (r"post_extract_proj\.(weight|bias)", rf"{_EMBED}.proj.\1"),
    (r"encoder\.pos_conv\.0\.bias", f"{_ENCODER}.position.conv.bias"),
    (r"encoder\.pos_conv\.0\.weight_g", f"{_ENCODER}.position.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v", f"{_ENCODER}.position.conv.parametrizations.weight.original1"),
    (r"encoder\.layer_norm\.(weight|bias)", rf"{_ENCODER}.norm.\1"),
    (rf"{_LAYER}\.self_attn_layer_norm\.(weight|bias)", rf"{_ENCODER}.blocks.\1.norm1.\2"),
    (rf"{_LAYER}\.final_layer_norm\.(weight|bias)", rf"{_ENCODER}.blocks.\1.norm2.\2"),
]
_SPEECH = [
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.weight", rf"{_EMBED}.convs.\1.weight"),
    (r"feature_extractor\.conv_layers\.0\.2\.(weight|bias)", rf"{_EMBED}.first.\1"),
    *_TRUNK,
    (rf"{_LAYER}\.self_attn\.([qkv])_proj\.(weight|bias)", rf"{_ENCODER}.blocks.\1.self_attn.\2.\3"),
    (rf"{_LAYER}\.self_attn\.out_proj\.(weight|bias)", rf"{_ENCODER}.blocks.\1.self_attn.out_proj.\2"),
    (rf"{_LAYER}\.fc([12])\.(weight|bias)", rf"{_ENCODER}.blocks.\1.linear\2.\3"),
    (r"mask_emb", "corruptors.x.mask_token"),
]
_BEATS = [
    (r"patch_embedding\.weight", f"{_EMBED}.stem.weight"),
    *_TRUNK,
    (r"encoder\.layers\.0\.self_attn\.relative_attention_bias\.weight", f"{_ENCODER}.bias.weight"),
    (rf"{_LAYER}\.self_attn\.([qkv])_proj\.(weight|bias)", rf"{_ENCODER}.blocks.\1.attn.\2.\3"),
    (rf"{_LAYER}\.self_attn\.out_proj\.(weight|bias)", rf"{_ENCODER}.blocks.\1.attn.proj.\2"),
    (rf"{_LAYER}\.self_attn\.grep_linear\.(weight|bias)", rf"{_ENCODER}.blocks.\1.attn.gate.\2"),
    (rf"{_LAYER}\.self_attn\.grep_a", rf"{_ENCODER}.blocks.\1.attn.scale"),
    (rf"{_LAYER}\.fc([12])\.(weight|bias)", rf"{_ENCODER}.blocks.\1.fc\2.\3"),
]
# one table of distances serves all layers, so that their names repeat it; constant sums of padding are ESPnet's
_BEATS_LEFT = (
    r"encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.weight",
    r"predictor\.(weight|bias)",
    r"(patch_embedding|raw2fbank)_pad\.weight",
)
_TUNED = "w2v_encoder.w2v_model."
SPECIAL = 4  # entries in front of the labels in every dictionary of fairseq: <s>, <pad>, </s>, <unk>


@register("format/official/hubert")
def hubert(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The base checkpoints of facebookresearch/fairseq's HuBERT, bare or under `model`, or fine-tuned with CTC.

    The vectors of codes lose the four special entries of fairseq's dictionary. They are of the authors' k-means, whose
    centres are no part of the file: ours number the codes otherwise, so that they are no more than a beginning. A file
    with several sets of labels fills none. The letters' layer of a fine-tuned file is left out.

    Such files hold fairseq's dictionaries, which are no tensors and not read: save the `model` of yours alone first.

    Raises:
        ValueError: for models with layer norms in every convolution or in front of attention (large, extra large), and
            for encoders of another size.
    """
    state = _speech(
        content,
        [
            (r"final_proj\.(weight|bias)", rf"{_UNITS}.proj.\1"),
            (r"label_embs_concat", f"{_UNITS}.codes"),
        ],
    )
    if f"{_UNITS}.codes" in state:
        state[f"{_UNITS}.codes"] = state[f"{_UNITS}.codes"][SPECIAL:]
    encoder_fits(state, module)
    return state


@register("format/official/wav2vec2")
def wav2vec2(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The checkpoints of facebookresearch/fairseq's wav2vec 2.0, bare or under `model`, or fine-tuned with CTC.

    With the quantiser and both maps that are compared. Left out is the letters' layer of a fine-tuned file.

    Raises:
        ValueError: for models with layer norms in every convolution or in front of attention (those of 60,000 hours),
            with quantised input or gated targets, and for encoders of another size.
    """
    codes = f"{_CONTRAST}.quantizer.codes"
    state = _speech(
        content,
        [
            (r"quantizer\.vars", codes),
            (r"quantizer\.weight_proj\.(weight|bias)", rf"{_CONTRAST}.quantizer.logits.\1"),
            (r"project_q\.(weight|bias)", rf"{_CONTRAST}.quantizer.proj.\1"),
            (r"final_proj\.(weight|bias)", rf"{_CONTRAST}.predictor.head.\1"),
        ],
    )
    own = module.state_dict()
    if codes in state and codes in own and own[codes].numel() == state[codes].numel():
        state[codes] = state[codes].reshape(own[codes].shape)  # groups come one after the other
    encoder_fits(state, module)
    return state


@register("format/official/beats")
def beats(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The checkpoints of microsoft/unilm's BEATs, pre-trained or fine-tuned, into the encoder of audio/openbeats.

    The pre-training files hold the encoder only: decoder and codes begin anew. The classifier of a fine-tuned file is
    left out. Tokenizers (`Tokenizer_iter*.pt`) have further parts and are refused.

    Raises:
        ValueError: for encoders of another size, without DeepNorm, or that count distances up to another one; the file
            says so in its `cfg`.
    """
    said = content.get("cfg")
    if isinstance(said, Mapping):
        _agrees(said, module)
    state = strictly(unwrap(content), _BEATS, _BEATS_LEFT)
    key = f"{_EMBED}.stem.weight"
    if key in state:
        state[key] = patch_matrix(state[key])
    encoder_fits(state, module)
    return state


def _agrees(said: Mapping[str, Any], module: nn.Module) -> None:
    """Refuses what a configuration of BEATs says and no shape shows."""
    wanted = {
        "deep_norm": True, "layer_norm_first": False, "relative_position_embedding": True, "gru_rel_pos": True,
        "activation_fn": "gelu",
    }  # fmt: skip
    for key, value in wanted.items():
        if said.get(key, value) != value:
            raise ValueError(
                f"init_from: the file's model has {key}={said[key]!r}, and encoder/deepnorm is one of {key}={value!r}. "
                "Give another file of BEATs."
            )
    longest = getattr(module.get_submodule(_ENCODER), "longest", None)
    if longest is not None and said.get("max_distance", longest) != longest:
        raise ValueError(
            f"init_from: the file's model counts distances up to {said['max_distance']} (got encoder.longest={longest})"
            f"; set encoder.longest={said['max_distance']}."
        )


def _speech(content: Mapping[str, Any], heads: list[tuple[str, str]]) -> dict[str, Tensor]:
    """The encoder of waveforms, its mask token, and heads by their own rules."""
    if _norm_first(content):
        raise ValueError(
            "init_from: the file's model normalises in front of attention (layer_norm_first), and encoder/postnorm "
            "behind it. Give the file of a model without, such as a base one."
        )
    plain = {name.removeprefix(_TUNED): value for name, value in unwrap(content).items()}
    state = strictly(plain, [*_SPEECH, *heads], (r"w2v_encoder\.proj\.(weight|bias)",))
    for name in [name for name in state if ".self_attn.q." in name]:
        parts = [state.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        state[name.replace(".q.", ".in_proj_")] = torch.cat(parts)
    if "corruptors.x.mask_token" in state:
        state["corruptors.x.mask_token"] = state["corruptors.x.mask_token"].reshape(1, 1, -1)
    return state


def _norm_first(content: Mapping[str, Any]) -> bool:
    """Whether the configuration beside the weights says that layers begin with their norms; names do not show it."""
    said = content.get("cfg")
    model = said.get("model") if isinstance(said, Mapping) else None
    if isinstance(model, Mapping):
        return bool(model.get("layer_norm_first"))
    return bool(getattr(content.get("args"), "layer_norm_first", False))
