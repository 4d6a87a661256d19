"""Our image encoders as timm models: the same weights under timm's names, and which options have no such name."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.nn.network import LinearEmbed, Network
from mmssl.nn.positions import Learned, SinCos
from mmssl.parts.encoders.beit import BEiT
from mmssl.parts.encoders.timm import TimmGrid, TimmViT, create
from mmssl.parts.encoders.vit import ViT
from mmssl.parts.positions import SinCosParts
from mmssl.registry import entry
from mmssl.types import View

# How timm calls our pools, where its `fc_norm` is off; `meanmax` and `sum` have no name there.
_POOLS = {"mean": "avg", "cls": "token", "max": "max"}
_EPS = 1e-6  # of timm's layer norms; a model's name and arguments cannot say another


class Unfit(ValueError):
    """Why a format cannot hold an encoder; names the option."""


@dataclass(frozen=True)
class Twin:
    """A timm model that computes what an encoder of ours computes from normalised pixels.

    Args:
        model: the model, with our weights.
        name: what `timm.create_model` calls it.
        args: what `timm.create_model` has to be told beside `num_classes=0`.
        pool: timm's `global_pool`, empty where it has no name for ours.
        limit: what name and arguments cannot say although the model can, or None.
    """

    model: Any
    name: str
    args: dict[str, Any]
    pool: str
    limit: str | None = None


def options(node: Mapping[str, Any]) -> dict[str, Any]:
    """What a part was told, with the plain defaults of its signature for what it was not."""
    found = {}
    for name, argument in entry(node["_target_"]).arguments.items():
        try:
            found[name] = ast.literal_eval(argument.default or "None")
        except ValueError:  # a class, for instance: no value that JSON could hold
            continue
    return found | {name: value for name, value in node.items() if name != "_target_"}


def twin(network: Network, tree: Mapping[str, Any], pool: str) -> Twin:
    """The timm model of an image encoder.

    Args:
        network: ours.
        tree: the configuration it was made with.
        pool: `evaluation.pool`, or `token`.

    Raises:
        Unfit: where timm has no model with this arithmetic.
    """
    if not hasattr(network.tokenizer, "pixels"):
        raise Unfit(f"it is for images, and {tree['tokenizer']['_target_']} reads no images")
    for kind, made in _TWINS.items():
        if isinstance(network.encoder, kind):
            return made(network, options(tree["encoder"]), pool)
    raise Unfit(f"there is no model with the arithmetic of {tree['encoder']['_target_']} in other libraries")


def _fill(name: str, args: dict[str, Any], state: Mapping[str, Tensor], pool: str, **live: Any) -> Twin:
    """A model with these weights; every tensor of it has to be given."""
    with torch.random.fork_rng(devices=[]):
        model = create(name, **args, **live) if pool == "" else _pooled(name, pool, args, live)
    model.load_state_dict(dict(state), strict=True)
    limit = None
    if live:
        limit = "encoder.norm_eps: timm's models have layer norms with 1e-6, and no argument says another"
    return Twin(model.eval(), name, args | {"global_pool": pool}, pool, limit)


def _pool(ours: str, first: bool) -> str:
    """timm's word for a pool; it has none for the first register of a model without class token."""
    return "" if ours == "cls" and not first else _POOLS.get(ours, "")


def _pooled(name: str, pool: str, args: dict[str, Any], live: dict[str, Any]) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=0, global_pool=pool, **args, **live)


def _image(network: Network) -> dict[str, Any]:
    spec = network.spec
    assert spec.grid is not None and spec.cell is not None and spec.channels is not None
    size = [side * cell for side, cell in zip(spec.grid, spec.cell, strict=True)]
    return {"img_size": size, "patch_size": spec.cell[0], "in_chans": spec.channels}


def _patches(network: Network) -> dict[str, Tensor]:
    """Our patch matrix (d, p * p * c), channel fastest, as a convolution (d, c, p, p)."""
    assert isinstance(network.embed, LinearEmbed) and network.spec.cell is not None
    proj, side = network.embed.proj, network.spec.cell[0]
    weight = proj.weight.detach().unflatten(1, (side, side, -1)).permute(0, 3, 1, 2).contiguous()
    return {"patch_embed.proj.weight": weight, "patch_embed.proj.bias": proj.bias.detach()}


def _under(module: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors below some parts of a module, under other names."""
    state = module.state_dict()
    return {
        theirs + name.removeprefix(ours): value
        for ours, theirs in names.items()
        for name, value in state.items()
        if name.startswith(ours + ".")
    }


_NAMES = {
    (192, 12, 3): "vit_tiny_patch16_224", (384, 12, 6): "vit_small_patch16_224",
    (1024, 24, 16): "vit_large_patch16_224", (1280, 32, 16): "vit_huge_patch14_224",
}  # fmt: skip


def _vit(network: Network, said: dict[str, Any], pool: str) -> Twin:
    encoder: Any = network.encoder
    if encoder.position_every:
        raise Unfit("encoder.position_every=true adds positions before every block, other libraries only once")
    if not isinstance(encoder.position, (SinCos, SinCosParts, Learned)):
        raise Unfit(f"encoder.position is a {type(encoder.position).__name__}, which is no fixed table over a grid")
    size = _image(network)["img_size"]
    tokens = network.tokenizer(View(torch.zeros(1, network.spec.channels or 1, *size), ""))
    with torch.no_grad():
        table = encoder.position(tokens)
    prefix = torch.zeros(1, 0, encoder.dim) if encoder.prefix is None else encoder.prefix.detach()
    first = int(said["class_token"])
    state = _patches(network) | _under(encoder, {"blocks": "blocks", "norm": "norm"})
    # Tokens in front have no position: theirs are zeros.
    state["pos_embed"] = torch.cat([torch.zeros_like(prefix), table], 1)
    state |= {"cls_token": prefix[:, :1]} if first else {}
    state |= {"reg_token": prefix[:, first:]} if said["registers"] else {}
    args = _image(network) | {
        "embed_dim": encoder.dim, "depth": encoder.depth, "num_heads": said["heads"], "mlp_ratio": said["mlp_ratio"],
        "qkv_bias": said["qkv_bias"], "class_token": bool(first), "reg_tokens": said["registers"],
        "init_values": said["layer_scale"], "final_norm": said["final_norm"], "fc_norm": False,
    }  # fmt: skip
    eps = float(said["norm_eps"])
    live = {} if eps == _EPS else {"norm_layer": partial(nn.LayerNorm, eps=eps)}
    name = _NAMES.get((encoder.dim, encoder.depth, said["heads"]), "vit_base_patch16_224")
    return _fill(name, args, state, _pool(pool, bool(first)), **live)


def _timm_vit(network: Network, said: dict[str, Any], pool: str) -> Twin:
    encoder: Any = network.encoder
    name = said["name"].split(".")[0]
    parts = ("norm_pre", "blocks", "norm")
    state = _patches(network) | _under(encoder, {part: part for part in parts})
    with torch.random.fork_rng(devices=[]):
        bare: Any = create(name, **_image(network))
    if bare.patch_embed.proj.bias is None and state.pop("patch_embed.proj.bias").any():
        raise Unfit(
            f"encoder.name={name}: timm's patch embedding of this model has no bias, and training has moved ours"
        )
    fronts = [front for front in ("cls_token", "reg_token") if getattr(bare, front) is not None]
    state |= dict(zip(fronts, (token.detach() for token in encoder.prefix_tokens), strict=True))
    state |= {} if encoder.pos_embed is None else {"pos_embed": encoder.pos_embed.detach()}
    return _fill(name, _image(network) | {"fc_norm": False}, state, _pool(pool, bare.cls_token is not None))


def _grid(network: Network, said: dict[str, Any], pool: str) -> Twin:
    encoder: Any = network.encoder
    # Heads of convolutional networks may normalise behind the pooling: the map itself is what is the same.
    return _fill(
        said["name"].split(".")[0], {"in_chans": network.spec.channels}, encoder.model.state_dict(), ""
    )  # fmt: skip


def _beit(network: Network, said: dict[str, Any], pool: str) -> Twin:
    encoder: Any = network.encoder
    state = _patches(network) | _under(encoder, {"bias": "rel_pos_bias", "blocks": "blocks", "norm": "norm"})
    args = _image(network) | {
        "embed_dim": encoder.dim, "depth": encoder.depth, "num_heads": said["heads"], "mlp_ratio": said["mlp_ratio"],
        "init_values": said["layer_scale"], "use_abs_pos_emb": False, "use_rel_pos_bias": False,
        "use_shared_rel_pos_bias": True,
    }  # fmt: skip
    # `avg` would move the norm behind the pooling
    pool = "token" if pool == "cls" else ""
    return _fill("beit_base_patch16_224", args, state | {"cls_token": encoder.prefix.detach()}, pool)


_TWINS: dict[type, Callable[[Network, dict[str, Any], str], Twin]] = {
    ViT: _vit, TimmViT: _timm_vit, TimmGrid: _grid, BEiT: _beit,
}  # fmt: skip
