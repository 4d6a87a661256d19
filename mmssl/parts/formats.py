"""Layouts of other people's checkpoints: official names in, ours out. Called as (content, module)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.nn.network import Network
from mmssl.registry import register


def patch_matrix(weight: Tensor) -> Tensor:
    """A patch convolution (d, c, p, p) as our matrix (d, p * p * c), channel fastest."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def rename(state: Mapping[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Applies the first rule whose pattern matches the whole of a name; names that no rule knows are left out."""
    found = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            if re.fullmatch(pattern, name):
                found[re.sub(pattern, replacement, name)] = value
                break
    return found


def strictly(
    state: Mapping[str, Tensor], rules: list[tuple[str, str]], left: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """As `rename`, for layouts that are known to the last tensor.

    Args:
        state: tensors by official names.
        rules: patterns of names, and what they become.
        left: patterns of names that are left out on purpose.

    Raises:
        ValueError: for names that nothing knows, as the file is then of a model with further parts; and for no tensors.
    """
    if not state:
        raise ValueError("init_from: the file holds no tensors. Give the file that the authors' training wrote.")
    known = [*(pattern for pattern, _ in rules), *left]
    strange = [name for name in state if not any(re.fullmatch(pattern, name) for pattern in known)]
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise ValueError(
            f"init_from: the file holds {', '.join(strange[:3])}{more}, which the format has no place for, so its "
            "model has parts or variants that the recipe lacks. Give the file of the plain model, or another format."
        )
    return rename(state, rules)


def encoder_fits(found: Mapping[str, Tensor], module: nn.Module) -> None:
    """Refuses tensors of networks that the module has no place for, and such of another shape.

    Raises:
        ValueError: with their names and shapes.
    """
    own = module.state_dict()
    wrong = [
        f"{name} {tuple(value.shape)} ({f'here {tuple(own[name].shape)}' if name in own else 'not here'})"
        for name, value in found.items()
        if name.startswith("networks.") and (name not in own or own[name].shape != value.shape)
    ]
    if wrong:
        raise ValueError(
            f"init_from: the file's encoder is another one: {'; '.join(wrong[:3])}. Set encoder.dim, encoder.depth and "
            "the tokenizer's sizes to those of the file."
        )


_ENCODER = [
    (r"patch_embed\.proj\.(weight|bias)", r"networks.main.embed.proj.\1"),
    (r"cls_token", r"networks.main.encoder.prefix"),
    (r"blocks\.(.+)", r"networks.main.encoder.blocks.\1"),
    (r"norm\.(.+)", r"networks.main.encoder.norm.\1"),
]
_PIXELS = "objective.pixels.predictor"


def unwrap(
    content: Mapping[str, Any], keys: tuple[str, ...] = ("model", "state_dict", "module")
) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint: what stands under the first of some keys, else the content itself."""
    for key in keys:
        if key in content and isinstance(content[key], Mapping):
            return content[key]
    return content


def patches(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, with the patch embedding's convolution as our matrix."""
    key = "networks.main.embed.proj.weight"
    if key in state and state[key].dim() == 4:
        state[key] = patch_matrix(state[key])
    return state


def joined_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, with `q_bias` and `v_bias` of BEiT's attention as one `qkv.bias`; its keys have none, so zero."""
    found = dict(state)
    for name in [name for name in found if name.endswith("attn.q_bias")]:
        base = name.removesuffix("q_bias")
        query, value = found.pop(name), found.pop(base + "v_bias")
        found[base + "qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return found


def channels_last(rows: Tensor, network: nn.Module) -> Tensor:
    """Rows of a head, one a raw value of a patch: from the order (channel, row, column) to ours, channel fastest."""
    assert isinstance(network, Network) and network.spec.channels is not None
    return rows[torch.arange(network.spec.raw).reshape(network.spec.channels, -1).T.flatten()]


@register("format/official/mae")
def mae(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The checkpoints of facebookresearch/mae, with or without decoder, bare or under `model`."""
    state = unwrap(content)
    return patches(
        rename(
            state,
            [
                *_ENCODER,
                (r"decoder_embed\.(.+)", rf"{_PIXELS}.embed.\1"),
                (r"mask_token", rf"{_PIXELS}.mask_token"),
                (r"decoder_blocks\.(.+)", rf"{_PIXELS}.blocks.\1"),
                (r"decoder_norm\.(.+)", rf"{_PIXELS}.norm.\1"),
                (r"decoder_pred\.(.+)", rf"{_PIXELS}.head.\1"),
            ],
        )
    )


@register("format/official/crossmae")
def crossmae(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The checkpoints of TonyLianLong/CrossMAE with weighted feature maps."""
    state = rename(
        unwrap(content),
        [
            *_ENCODER,
            (r"wfm\.linear\.weight", rf"{_PIXELS}.mix.weight"),
            (r"dec_norms\.(.+)", rf"{_PIXELS}.memory_norms.\1"),
            (r"mask_token", rf"{_PIXELS}.mask_token"),
            (r"decoder_blocks\.(\d+)\.cross_attn\.proj\.(.+)", rf"{_PIXELS}.blocks.\1.attn.out_proj.\2"),
            (r"decoder_blocks\.(\d+)\.(norm1|norm2|mlp)\.(.+)", rf"{_PIXELS}.blocks.\1.\2.\3"),
            (r"decoder_blocks\.(\d+)\.cross_attn\.(q|kv)\.(.+)", rf"{_PIXELS}.blocks.\1.attn.\2.\3"),
            (r"decoder_norm\.(.+)", rf"{_PIXELS}.norm.\1"),
            (r"decoder_pred\.(.+)", rf"{_PIXELS}.head.\1"),
        ],
    )
    own = module.state_dict()
    for name in [name for name in state if name.endswith(".attn.q.weight")]:
        base = name.removesuffix("q.weight")
        keys, values = state.pop(base + "kv.weight").chunk(2)
        query = state.pop(name)
        if base + "in_proj_weight" in own:
            state[base + "in_proj_weight"] = torch.cat([query, keys, values])
        else:
            state |= {base + "q_proj_weight": query, base + "k_proj_weight": keys, base + "v_proj_weight": values}
        biases = (state.pop(base + "q.bias"), state.pop(base + "kv.bias"))
        state[base + "in_proj_bias"] = torch.cat(biases)
    return patches(state)


@register("format/official/simmim")
def simmim(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """The ViT checkpoints of microsoft/SimMIM; the head's pixel order (channel, row, column) becomes ours."""
    plain = {name.removeprefix("encoder."): value for name, value in unwrap(content).items()}
    state = rename(
        plain,
        [
            *_ENCODER,
            (r"mask_token", r"corruptors.x.mask_token"),
            (
                r"rel_pos_bias\.relative_position_bias_table",
                r"networks.main.encoder.bias.relative_position_bias_table",
            ),
            (r"decoder\.0\.(.+)", rf"{_PIXELS}.head.\1"),
        ],
    )
    key = f"{_PIXELS}.head.weight"
    if key in state:
        network = module.get_submodule("networks.main")
        state[key] = channels_last(state[key].flatten(1), network)
        state[f"{_PIXELS}.head.bias"] = channels_last(state[f"{_PIXELS}.head.bias"], network)
    return patches(state)


@register("format/timm/vit")
def timm_vit(content: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    """timm's VisionTransformer state dicts, into encoder/vit: encoder only, positions left as they are."""
    return patches(rename(unwrap(content), _ENCODER))
