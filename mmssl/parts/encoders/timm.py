"""Any timm model as an encoder: vision transformers on any subset of tokens, everything else on whole grids."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from mmssl.nn.patches import coordinates, fold
from mmssl.parts.encoders.vit import key_mask, qkv_names, tap_names, walk
from mmssl.registry import register, suggest
from mmssl.types import Tokens, TokenSpec


def create(name: str, **kwargs: Any) -> nn.Module:
    """A timm model without classifier.

    Raises:
        ValueError: for a name that timm does not have, with near names; or when weights cannot be fetched.
    """
    import timm

    if name.split(".")[0] not in timm.list_models():
        raise ValueError(f"timm has no model {name!r}{suggest(name.split('.')[0], timm.list_models())}")
    try:
        return timm.create_model(name, num_classes=0, global_pool="", **kwargs)
    except (OSError, RuntimeError) as error:
        if not kwargs.get("pretrained"):
            raise
        raise ValueError(
            f"The pretrained weights of timm's {name} could not be loaded ({error}). Without a network, download the "
            "file elsewhere and give it as `weights: FILE`, or set `pretrained: false`."
        ) from error


@register("encoder/timm")
def build(
    spec: TokenSpec,
    *,
    name: str,
    pretrained: bool = False,
    weights: str | None = None,
    drop_path: float = 0.0,
    small: bool = False,
) -> nn.Module:
    """Any timm model by name. Vision transformers run on visible tokens alone; convolutional networks on whole images.

    Args:
        spec: sizes of the tokens; input size, patch and channels of the model follow it.
        name: timm's name, for instance `vit_small_patch16_224` or `resnet50.a1_in1k`.
        pretrained: whether to fetch timm's weights; stems are adapted to other channel counts and sizes.
        weights: a local file with weights in timm's layout, instead of fetching them.
        drop_path: stochastic depth.
        small: whether a ResNet begins with a convolution of 3 x 3 pixels and stride 1 and does not pool behind it, as
            papers do on images of 32 pixels (SimCLR).

    Raises:
        ValueError: for an unknown name, weights that cannot be had, or `small` of another model or with weights.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    assert spec.grid is not None and spec.cell is not None
    kwargs: dict[str, Any] = {"pretrained": pretrained, "in_chans": spec.channels, "drop_path_rate": drop_path}
    if weights is not None:
        kwargs |= {"pretrained": True, "pretrained_cfg_overlay": {"file": weights}}
    if name.split(".")[0] in timm.list_models(module="vision_transformer"):
        size = tuple(side * cell for side, cell in zip(spec.grid, spec.cell, strict=True))
        model = create(name, img_size=size, patch_size=spec.cell[0], **kwargs)
        assert isinstance(model, VisionTransformer)
        return TimmViT(model, spec)
    model = create(name, **kwargs)
    return TimmGrid(_small(model, name, pretrained or weights is not None) if small else model, spec)


def _small(model: Any, name: str, loaded: bool) -> nn.Module:
    """A ResNet whose first layers keep the size of the image."""
    first = getattr(model, "conv1", None)
    if loaded or not isinstance(first, nn.Conv2d) or not hasattr(model, "maxpool"):
        raise ValueError(f"encoder.small=true is for a ResNet without weights (got {name!r}); set it to false")
    model.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=first.bias is not None)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


class TimmViT(nn.Module):
    """A timm VisionTransformer from its embedded patches on; see `build`."""

    accepts = "sequence"

    def __init__(self, model: Any, spec: TokenSpec) -> None:
        super().__init__()
        self.dim, self.depth = model.embed_dim, len(model.blocks)
        self.tap_names = tap_names(self.depth)
        if all(hasattr(getattr(block, "attn", None), "qkv") for block in model.blocks):
            self.tap_names += qkv_names(self.depth)
        self.grid = spec.grid
        # Only the stem's weights are wanted, by `Network`; they must not be trained twice.
        proj = model.patch_embed.proj
        weight = proj.weight.detach().permute(0, 2, 3, 1).flatten(1).clone()
        self._stem = (weight, torch.zeros(self.dim) if proj.bias is None else proj.bias.detach().clone())
        self.prefix_tokens = nn.ParameterList(t for t in (model.cls_token, model.reg_token) if t is not None)
        self.class_only = model.no_embed_class
        self.pos_embed = model.pos_embed
        self.norm_pre, self.blocks, self.norm = model.norm_pre, nn.ModuleList(model.blocks), model.norm

    def stem(self) -> tuple[Tensor, Tensor]:
        """Weights of the patch embedding in (row, column, channel) order, and its bias."""
        return self._stem

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes any subset of the patches, `x` (b, n, dim)."""
        x = tokens.x
        assert x is not None
        count = sum(token.shape[1] for token in self.prefix_tokens)
        offset = 0 if self.class_only else count
        prefix = [token.expand(x.shape[0], -1, -1) for token in self.prefix_tokens]
        if self.pos_embed is not None:
            table = self.pos_embed
            if tokens.grid is not None and tokens.grid != self.grid:
                old, new = list(self.grid or ()), list(tokens.grid)
                table = resample_abs_pos_embed(table, new, old, offset)  # type: ignore[operator]  # a decorated function whose type the stubs lose
            x = x + table[0, offset:][tokens.index]
            if offset:
                prefix = [torch.cat(prefix, 1) + table[:, :offset]]
        x = self.norm_pre(torch.cat([*prefix, x], 1))
        x, kept = walk(self.blocks, x, taps, attn_mask=key_mask(tokens, count))
        x = self.norm(x)
        return tokens.but(x=x[:, count:], prefix=x[:, :count] if count else None, taps=kept)


class TimmGrid(nn.Module):
    """A timm model that reads whole images and gives a map; hidden cells are zeroed. See `build`."""

    accepts = "grid"

    def __init__(self, model: Any, spec: TokenSpec) -> None:
        super().__init__()
        self.model, self.dim, self.spec = model, model.num_features, spec
        self.tap_names: tuple[str, ...] | dict[str, int] = ()  # names, and how wide maps are

    def depths(self) -> dict[str, int]:
        """Depth of each parameter for layer decay, as timm groups them: the stem is 0."""
        from timm.models import group_parameters

        groups: Any = group_parameters(self.model, self.model.group_matcher(coarse=False), reverse=True)
        return {f"model.{name}": depth for name, depth in groups.items()}

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes the image that the raw values (b, n, v) make up; gives one token per cell of the last map."""
        assert not taps and tokens.grid is not None and self.spec.cell is not None
        raw = tokens.raw if tokens.valid is None else tokens.raw * tokens.valid.unsqueeze(-1)
        features = self.model.forward_features(fold(raw, tokens.grid, self.spec.cell))
        if features.dim() == 3:
            raise ValueError("encoder/timm: this model gives a sequence, not a map; use one of timm's vit_* instead")
        if features.shape[1] != self.dim:
            features = features.permute(0, 3, 1, 2)
        b, _, *grid = features.shape
        x = features.flatten(2).transpose(1, 2)
        index = torch.arange(x.shape[1], device=x.device).expand(b, -1)
        pos = coordinates(tuple(grid)).to(x.device).expand(b, -1, -1)
        same = tuple(grid) == tokens.grid
        return Tokens(raw=tokens.raw if same else x.detach()[..., :0], pos=pos, index=index, x=x, grid=tuple(grid))
