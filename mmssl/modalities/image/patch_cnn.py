"""Patches that a small convolutional network embeds, each on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmssl.modalities.image.tokenizer import ImageTokenizer
from mmssl.registry import register
from mmssl.types import Tokens


class ResidualEmbed(nn.Module):
    """The first three stages of a pre-activation ResNet over each patch, and the mean of its last map.

    Args:
        channels: of the image.
        patch: side of a patch.
        dim: width of the last stage; the others have a quarter and half of it.
        layers: blocks of each stage.
        stem: `small`, a convolution of side 3, or `large`, ResNet's of side 7 with pooling, a quarter of the size.
    """

    def __init__(self, channels: int, patch: int, dim: int, layers: Sequence[int], stem: str) -> None:
        super().__init__()
        from timm.layers.create_conv2d import create_conv2d
        from timm.layers.norm_act import BatchNormAct2d
        from timm.models.resnetv2 import ResNetStage

        self.channels, self.patch, first = channels, patch, max(dim // 16, 1)
        large = [nn.Conv2d(channels, first, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)]
        self.stem = nn.Sequential(*large) if stem == "large" else nn.Conv2d(channels, first, 3, padding=1, bias=False)
        stages, width = list[nn.Module](), first
        for i, depth in enumerate(layers):
            out = dim >> (len(layers) - 1 - i)
            said: dict[str, Any] = {"norm_layer": BatchNormAct2d, "conv_layer": create_conv2d, "act_layer": nn.ReLU}
            stages.append(ResNetStage(width, out, 1 if i == 0 else 2, 1, depth, **said))
            width = out
        self.stages, self.norm = nn.Sequential(*stages), BatchNormAct2d(dim)

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens with `x` of shape (b, n, dim)."""
        patches = tokens.raw.flatten(0, 1).unflatten(1, (self.patch, self.patch, self.channels)).permute(0, 3, 1, 2)
        maps = self.norm(self.stages(self.stem(patches)))
        return tokens.but(x=maps.mean((2, 3)).unflatten(0, tokens.index.shape))


@register("tokenizer/patch_cnn")
class PatchCNN(ImageTokenizer):
    """Cuts an image as `tokenizer/image` does; a pre-activation ResNet's first stages embed each patch (Selfie).

    Args:
        facts: the data's facts: `channels`, and `mean` and `std` per channel in units of [0, 1].
        size: side of the image in pixels, one number or (height, width).
        patch: side of a patch in pixels; it has to divide the size.
        layers: blocks of each stage: [3, 4, 6] are ResNet-50's.
        stem: `small`, for patches of 8 pixels, or `large`, for patches of 32.

    Raises:
        ValueError: when the patch does not divide the size, for no stage, or another word.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        *,
        size: int | list[int] = 224,
        patch: int = 32,
        layers: Sequence[int] = (3, 4, 6),
        stem: str = "large",
    ) -> None:
        super().__init__(facts, size=size, patch=patch)
        if stem not in ("small", "large") or not layers:
            raise ValueError(
                f"tokenizer.stem has to be 'small' or 'large', and layers not empty (got {stem!r}, {layers})"
            )
        self.layers, self.stem = tuple(layers), stem

    def embedding(self, dim: int) -> nn.Module:  # pyright: ignore[reportIncompatibleMethodOverride]  # another module
        """A residual network that embeds each patch."""
        assert self.spec.channels is not None
        return ResidualEmbed(self.spec.channels, self.patch, dim, self.layers, self.stem)
