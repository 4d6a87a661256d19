"""Convolutional networks with a mask token in front of their last stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmssl.parts.encoders.timm import TimmGrid, create
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("encoder/inner_token")
class InnerToken(TimmGrid):
    """A timm CNN that sees all pixels, and at the input of its last stage a mask token where they are hidden (A2MIM).

    Features of hidden places are faded out by a factor per channel, and the token is added. For corruptors that mark
    what they hide, such as `corruptor/fill` with `mark: true`.

    Args:
        spec: sizes of the tokens.
        name: timm's name, for instance `resnet50`.
        pretrained: whether to fetch timm's weights.
        drop_path: stochastic depth.
        fade: initial factor of the features of hidden places.

    Raises:
        ValueError: for an unknown name, or a network whose stages are not known.
    """

    def __init__(
        self,
        spec: TokenSpec,
        *,
        name: str,
        pretrained: bool = False,
        drop_path: float = 0.0,
        fade: float = 1e-6,
    ) -> None:
        model: Any = create(name, pretrained=pretrained, in_chans=spec.channels, drop_path_rate=drop_path)
        stages: Any = getattr(model, "feature_info", None) or []
        if len(stages) < 2:
            raise ValueError(f"encoder/inner_token: the stages of {name} are not known; choose one such as resnet50")
        if hasattr(model, "head"):
            model.head = nn.Identity()  # its norm stands behind pooling, which is the evaluation's
        super().__init__(model, spec)
        self.stage, width = stages[-1]["module"], stages[-2]["num_chs"]
        self.mask_token = nn.Parameter(torch.empty(1, width, 1, 1))
        self.fade = nn.Parameter(torch.full((1, width, 1, 1), fade))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes the image that the raw values (b, n, v) make up; gives one token per cell of the last map."""
        if tokens.valid is None:
            return super().forward(tokens, taps)
        assert tokens.grid is not None
        flags = tokens.valid.reshape(-1, 1, *tokens.grid)
        stage = self.model.get_submodule(self.stage)
        hook = stage.register_forward_pre_hook(lambda _, given: (self._hidden(given[0], flags),))
        try:
            return super().forward(tokens.but(valid=None), taps)
        finally:
            hook.remove()

    def _hidden(self, x: Tensor, flags: Tensor) -> Tensor:
        """Features (b, c, h, w) with the token at hidden places."""
        for axis in (2, 3):
            flags = flags.repeat_interleave(x.shape[axis] // flags.shape[axis], axis)
        return torch.where(flags, x, self.fade * x + self.mask_token).to(x.dtype)
