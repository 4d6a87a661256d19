"""Encoders that others trained: official files on a recipe's architecture, and vision transformers of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.config import build
from mmssl.config.compose import ConfigError
from mmssl.nn.network import Network
from mmssl.parts.formats import rename
from mmssl.registry import names, suggest
from mmssl.run import checkpoints


def official(tree: Mapping[str, Any], facts: Mapping[str, Any], source: str) -> Network:
    """The encoder of a recipe, filled from a file as `init_from` does it, in evaluation mode.

    Args:
        tree: the recipe's configuration.
        facts: the data's facts.
        source: `FORMAT:FILE`, or a file of ours.

    Raises:
        ConfigError: for a file of another architecture.
    """
    module = build.module(tree, facts)
    checkpoints.init_from(module, source, tree["init_share"])
    return module.kept.eval()


def with_format(name: str, recipe: str) -> str:
    """`FORMAT:FILE` for a file: the format that is said, else the official one of the recipe's method.

    Raises:
        ConfigError: where the recipe's method has no official format, with those there are.
    """
    if ":" in name:
        return name
    own = f"official/{recipe.split('/')[-1]}"
    if f"format/{own}" in names("format"):
        return f"{own}:{name}"
    known = [full.removeprefix("format/") for full in names("format")]
    raise ConfigError(
        f"{name}: recipe={recipe} says no layout for the file; write FORMAT:{name}{suggest(own, known)}. There is "
        f"{', '.join(known)}."
    )


# What transformers calls the parts of its ViTModel, ViTMAEModel and Dinov2Model, and what timm does.
_PLAIN = [
    (r"embeddings\.cls_token", r"cls_token"),
    (r"embeddings\.position_embeddings", r"pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.(.+)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.(.+)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layernorm\.(.+)", r"norm.\1"),
]
_ASKED = r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)"
_PASSED = ("pooler.", "classifier.", "decoder.", "mask_token", "embeddings.mask_token")
KINDS = ("vit", "vit_mae", "vit_msn", "dinov2")


@dataclass(frozen=True)
class HuggingFace:
    """A vision transformer in a Hugging Face directory.

    Args:
        config: its `config.json`.
        state: its tensors by timm's names.
        normal: `mean` and `std` of its input, where `preprocessor_config.json` says them.
    """

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    normal: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str) -> HuggingFace:
        """Reads `config.json` and `model.safetensors` (or `pytorch_model.bin`); no code of the directory is run.

        Raises:
            ConfigError: for a missing file, or a model that is no plain vision transformer.
        """
        path = Path(folder).expanduser()
        if not (path / "config.json").is_file():
            raise ConfigError(f"hf:{folder}: there is no config.json in it; give the directory of a downloaded model")
        config = json.loads((path / "config.json").read_text())
        if config.get("model_type") not in KINDS:
            raise ConfigError(
                f"hf:{folder} is a {config.get('model_type')!r}, and what is read through timm is {', '.join(KINDS)}; "
                "evaluate timm's own copy of the model with timm:NAME, where it has one"
            )
        file = next((path / n for n in ("model.safetensors", "pytorch_model.bin") if (path / n).is_file()), None)
        if file is None:
            raise ConfigError(f"hf:{folder} has neither model.safetensors nor pytorch_model.bin; download the weights")
        said = path / "preprocessor_config.json"
        found = json.loads(said.read_text()) if said.is_file() else {}
        normal = {key: found[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in found}
        return cls(config, _translated(checkpoints.read(file), folder), normal)

    @property
    def overrides(self) -> dict[str, Any]:
        """The input that it was made for, as keys."""
        return {"data.size": self.config["image_size"], "tokenizer.patch": self.config["patch_size"]}

    def network(self, tree: Mapping[str, Any], facts: Mapping[str, Any], seed: int | None = None) -> Network:
        """The encoder on the data's size, positions resampled where it differs; with random weights of a seed if given.

        Raises:
            ConfigError: where tensors and architecture do not agree.
        """
        from timm.layers.pos_embed import resample_abs_pos_embed

        from mmssl.parts.encoders.timm import TimmViT

        normal = self.normal if facts["channels"] == len(self.normal.get("mean", ())) else {}
        tokenizer = build.make(tree["tokenizer"], "tokenizer")(dict(facts) | dict(normal))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if seed is None else seed)
            model = self._model(tokenizer.spec)
        if seed is None:
            state = dict(self.state)
            prefix = int("cls_token" in state)
            resample: Any = resample_abs_pos_embed  # a decorated function whose type the stubs lose
            state["pos_embed"] = resample(state["pos_embed"], list(tokenizer.spec.grid), None, prefix)
            try:
                model.load_state_dict(state)
            except RuntimeError as error:
                lines = " ".join(str(error).splitlines()[1:4])
                raise ConfigError(
                    f"hf: config.json and weights do not fit a vision transformer of timm on these data: {lines}. Set "
                    f"tokenizer.patch={self.config['patch_size']} and data.channels={self.config['num_channels']}."
                ) from error
        return Network(tokenizer, TimmViT(model, tokenizer.spec)).eval()

    def _model(self, spec: Any) -> nn.Module:
        from timm.models.vision_transformer import VisionTransformer

        said = self.config
        size = tuple(side * cell for side, cell in zip(spec.grid, spec.cell, strict=True))
        inner = self.state["blocks.0.mlp.fc1.weight"].shape[0]
        return VisionTransformer(
            img_size=size, patch_size=spec.cell[0], in_chans=spec.channels, num_classes=0, global_pool="",
            embed_dim=said["hidden_size"], depth=said["num_hidden_layers"], num_heads=said["num_attention_heads"],
            mlp_ratio=inner / said["hidden_size"], qkv_bias="blocks.0.attn.qkv.bias" in self.state,
            class_token="cls_token" in self.state, init_values=1.0 if "blocks.0.ls1.gamma" in self.state else None,
            norm_layer=partial(nn.LayerNorm, eps=said.get("layer_norm_eps", 1e-12)),
        )  # fmt: skip


def _translated(state: Mapping[str, Tensor], folder: str) -> dict[str, Tensor]:
    """Tensors by timm's names; those of heads are passed over.

    Raises:
        ConfigError: for tensors that timm's vision transformer does not have.
    """
    import re

    plain = {re.sub(r"^(vit|dinov2|vit_mae)\.", "", name): value for name, value in state.items()}
    plain = {name: value for name, value in plain.items() if not name.startswith(_PASSED)}
    found = rename(plain, _PLAIN)
    asked = {name: match for name in plain if (match := re.fullmatch(_ASKED, name))}
    strange = [name for name in plain if name not in asked and not rename({name: plain[name]}, _PLAIN)]
    if strange or "blocks.0.mlp.fc1.weight" not in found or "pos_embed" not in found:
        raise ConfigError(
            f"hf:{folder} holds {', '.join(strange[:3]) or 'no vision transformer'}, which timm's plain vision "
            "transformer does not have; evaluate timm's own copy of the model with timm:NAME, where it has one"
        )
    for layer, kind in sorted({(match[1], match[3]) for match in asked.values()}):
        parts = [
            plain[f"encoder.layer.{layer}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")
        ]
        found[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
    return found
