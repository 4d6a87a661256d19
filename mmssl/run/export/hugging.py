"""Vision transformers in the layout of Hugging Face's `transformers`: ViT, DINOv2 (with registers), I-JEPA."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mmssl.run.export.twins import Twin, Unfit

_NO = nn.Identity()  # versions of timm differ in what norms attention has
# A model's class by what it has: a class token, registers, layer-scale. DINOv2's models have all gates, here of ones.
_KINDS = {
    (True, False, False): ("vit", "ViTModel"),
    (True, False, True): ("dinov2", "Dinov2Model"),
    (True, True, False): ("dinov2_with_registers", "Dinov2WithRegistersModel"),
    (True, True, True): ("dinov2_with_registers", "Dinov2WithRegistersModel"),
    (False, False, False): ("ijepa", "IJepaModel"),
}


def translate(twin: Twin) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`config.json` and the tensors of `model.safetensors`.

    Raises:
        Unfit: for what no such model of transformers computes, naming the option.
    """
    model = twin.model
    _recognise(model)
    block = model.blocks[0]
    has = (model.cls_token is not None, model.reg_token is not None, not isinstance(block.ls1, nn.Identity))
    if has not in _KINDS:
        what = " and ".join(name for name, there in zip(("registers", "layer_scale"), has[1:], strict=True) if there)
        raise Unfit(f"encoder.{what} without encoder.class_token=true is in no vision transformer of transformers")
    kind, name = _KINDS[has]
    dino = kind.startswith("dinov2")
    (height, width), side = twin.args["img_size"], twin.args["patch_size"]
    hidden = block.mlp.fc1.out_features
    if dino and hidden % model.embed_dim:
        ratio = hidden / model.embed_dim
        raise Unfit(f"encoder.mlp_ratio={ratio:g}: DINOv2's models in transformers take whole numbers")
    config = {
        "architectures": [name], "model_type": kind, "dtype": "float32", "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks), "num_attention_heads": block.attn.num_heads, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": model.norm.eps,
        "image_size": height if height == width else [height, width], "patch_size": side,
        "num_channels": twin.args["in_chans"], "qkv_bias": block.attn.qkv.bias is not None,
    }  # fmt: skip
    if dino:
        config |= {"mlp_ratio": hidden // model.embed_dim, "use_swiglu_ffn": False}
        config |= {"num_register_tokens": model.reg_token.shape[1]} if has[1] else {}
    else:
        config["intermediate_size"] = hidden
    state = _front(model, dino)
    for i, part in enumerate(model.blocks):
        state |= {f"encoder.layer.{i}.{key}": value for key, value in _block(part, dino).items()}
    state |= {f"layernorm.{key}": value for key, value in model.norm.state_dict().items()}
    return config, {key: value.detach().contiguous() for key, value in state.items()}


def _recognise(model: Any) -> None:
    """Refuses what has other arithmetic than a plain pre-norm ViT."""
    if not isinstance(model, VisionTransformer):
        raise Unfit(f"of image encoders it holds plain vision transformers, and this is timm's {type(model).__name__}")
    if not isinstance(model.norm, nn.LayerNorm):
        raise Unfit("encoder.final_norm=false: every vision transformer of transformers ends in a norm")
    if not isinstance(model.norm_pre, nn.Identity) or model.pos_embed is None:
        raise Unfit("a norm before the blocks, or no position table, is in no plain ViT of transformers")
    blocks: Any = model.blocks
    for block in blocks:
        plain = type(block) is Block and type(block.attn) is Attention and type(block.mlp) is Mlp
        norms = {type(getattr(block.attn, name, _NO)) for name in ("q_norm", "k_norm", "norm")}
        if not plain or norms != {nn.Identity}:
            raise Unfit("blocks other than timm's plain one (normed queries, parallel or gated parts) do not translate")
        act = block.mlp.act
        if not isinstance(act, nn.GELU) or act.approximate != "none" or not isinstance(block.mlp.norm, nn.Identity):
            raise Unfit("the MLPs are no plain ones with an exact GELU (SwiGLU, for instance)")
        if {block.norm1.eps, block.norm2.eps} != {model.norm.eps}:
            raise Unfit("layer norms of different epsilons have no name in its configuration")


def _front(model: Any, dino: bool) -> dict[str, Tensor]:
    """What stands before the blocks. Positions of registers, which transformers does not know, go into the tokens."""
    found = {f"embeddings.patch_embeddings.projection.{k}": v for k, v in model.patch_embed.proj.state_dict().items()}
    if "embeddings.patch_embeddings.projection.bias" not in found:
        found["embeddings.patch_embeddings.projection.bias"] = torch.zeros(model.embed_dim)
    table, cls, registers = model.pos_embed.detach(), model.cls_token, model.reg_token
    front = int(cls is not None) + (0 if registers is None else registers.shape[1])
    own = table.new_zeros(1, front, table.shape[2]) if model.no_embed_class else table[:, :front]
    table = table if model.no_embed_class else table[:, front:]
    if cls is None:
        return found | {"embeddings.position_embeddings": table}
    found |= {"embeddings.cls_token": cls, "embeddings.position_embeddings": torch.cat([own[:, :1], table], 1)}
    if registers is not None:
        found["embeddings.register_tokens"] = registers + own[:, 1:]
    if dino:  # read only by those who hide patches
        found["embeddings.mask_token"] = torch.zeros(1, model.embed_dim)
    return found


def _block(block: Any, dino: bool) -> dict[str, Tensor]:
    """One block under the names of the published files, which transformers of any version reads."""
    found = {}
    for kind, value in block.attn.qkv.state_dict().items():
        for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
            found[f"attention.attention.{name}.{kind}"] = part
    one, two = ("norm1", "norm2") if dino else ("layernorm_before", "layernorm_after")
    first, last = ("mlp.fc1", "mlp.fc2") if dino else ("intermediate.dense", "output.dense")
    names = {
        "attention.output.dense": block.attn.proj, one: block.norm1, two: block.norm2, first: block.mlp.fc1,
        last: block.mlp.fc2,
    }  # fmt: skip
    found |= {f"{name}.{kind}": value for name, part in names.items() for kind, value in part.state_dict().items()}
    if dino:
        for i, gate in ((1, block.ls1), (2, block.ls2)):
            ones = torch.ones(block.norm1.normalized_shape)
            found[f"layer_scale{i}.lambda1"] = getattr(gate, "gamma", ones)
    return found
