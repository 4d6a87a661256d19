"""The official checkpoints of BEiT v2. Called as (content, module)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmssl.parts.aggregation import Aggregate
from mmssl.parts.formats import patches, rename
from mmssl.parts.formats_masked import only, placed, places, split
from mmssl.parts.formats_vit import Layout, State
from mmssl.parts.predictors import Linear
from mmssl.registry import register

_BEITV2 = Layout("beitv2", {})  # its attention heads are seen in the table of biases


@register("format/official/beitv2")
def beitv2(content: Any, module: Any) -> dict[str, Tensor]:
    """The pre-training checkpoints of microsoft/unilm's beit2, with the second head or without, into encoder/beit.

    In the file the second head's blocks share the encoder's relative-position bias and norm: ours get copies. Which of
    the encoder's layers they read is not in the file (`predictor.layer`). The index of the bias is computed.

    Raises:
        ValueError: for an encoder that differs from the run's, or a file whose two heads have maps of their own.
    """
    state = only(content, module, _BEITV2)
    tail, encoder = split(state, "lm_head.", "cls_pt_")
    encoder.pop("rel_pos_bias.relative_position_index", None)
    found = _beit(encoder, module)
    token = encoder.get("mask_token")
    for name, corruptor in getattr(module, "corruptors", {}).items():
        if token is not None and hasattr(corruptor, "mask_token"):
            found[f"corruptors.{name}.mask_token"] = token
    head = rename(tail, [(r"lm_head\.(.+)", r"head.\1")])
    found |= placed(places(module, Linear), head, _BEITV2)
    second = rename(tail, [(r"cls_pt_layers\.(.+)", r"blocks.\1")])
    second_heads = places(module, Aggregate)
    if not second_heads:
        return found
    if "cls_pt_lm_head.weight" in tail:
        raise ValueError(
            "init_from: official/beitv2: the file was trained with shared_lm_head=False, so each of its heads has a "
            "map to codes of its own; predictor/aggregate has one for both. Give a file with a shared one."
        )
    shared = {
        "bias.relative_position_bias_table": encoder["rel_pos_bias.relative_position_bias_table"],
        "norm.weight": encoder["norm.weight"],
        "norm.bias": encoder["norm.bias"],
    }
    return found | placed(second_heads, second | shared | head, _BEITV2)


def _beit(state: State, module: Any) -> dict[str, Tensor]:
    """Embedding and encoder of a BEiT with one relative-position bias for all blocks, filled whole.

    Raises:
        ValueError: for another architecture than the run's, with what the file has.
    """
    rules = [
        (r"patch_embed\.proj\.(.+)", r"embed.proj.\1"),
        (r"cls_token", r"encoder.prefix"),
        (r"rel_pos_bias\.relative_position_bias_table", r"encoder.bias.relative_position_bias_table"),
        (r"(blocks\..+|norm\..+)", r"encoder.\1"),
    ]
    found = patches({f"networks.main.{name}": value for name, value in rename(state, rules).items()})
    own = {
        f"networks.main.{name}": value
        for name, value in module.networks["main"].named_parameters() if not name.startswith("tokenizer.")
    }  # fmt: skip
    known = {name for name in state if name == "mask_token" or rename({name: state[name]}, rules)}
    apart = sorted(set(state) - known) + sorted(set(found) ^ set(own))
    apart = apart or [name for name in own if own[name].shape != found[name].shape]
    if apart:
        depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
        table, kernel = state.get("rel_pos_bias.relative_position_bias_table"), state.get("patch_embed.proj.weight")
        sizes = "none" if table is None else f"{table.shape[1]} heads and {table.shape[0]} relative positions"
        width = "no patches" if kernel is None else f"width {kernel.shape[0]}, patches {tuple(kernel.shape[1:])}"
        raise ValueError(
            f"init_from: official/beitv2: {', '.join(apart[:2])}{' ...' * (len(apart) > 2)} differ between the file "
            f"and the run. The file has {width}, depth {depth}, one bias for all blocks: {sizes}, layer-scale: "
            f"{'yes' if 'blocks.0.gamma_1' in state else 'no'}. Set encoder._target_=encoder/beit, encoder.dim, "
            "encoder.depth, encoder.heads, tokenizer.size and tokenizer.patch so, or give the file of the pre-training."
        )
    return found
