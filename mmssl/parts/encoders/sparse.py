"""Convolutional networks that do not see hidden cells, at any depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmssl.nn.patches import fold
from mmssl.nn.sparse import Active, sparsify
from mmssl.parts.encoders.timm import TimmGrid, create
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("encoder/sparse")
class Sparse(TimmGrid):
    """A timm CNN made sparse by masking (SparK, Tian et al. 2023): with nothing hidden it is the network itself.

    Its last four maps can be asked for: `stage.0`, the finest, to `stage.3`.

    Args:
        spec: sizes of the tokens, which have to be the cells of the network's last map: 32 pixels for most.
        name: timm's name, for instance `resnet50` or `convnext_small`.
        pretrained: whether to fetch timm's weights.
        weights: a local file with weights in timm's layout, instead of fetching them.
        drop_path: stochastic depth.

    Raises:
        ValueError: for an unknown name, a network with layers that are not known, or tokens of another size.
    """

    def __init__(
        self,
        spec: TokenSpec,
        *,
        name: str,
        pretrained: bool = False,
        weights: str | None = None,
        drop_path: float = 0.0,
    ) -> None:
        said: dict[str, Any] = {"pretrained": pretrained, "in_chans": spec.channels, "drop_path_rate": drop_path}
        if weights is not None:
            said |= {"pretrained": True, "pretrained_cfg_overlay": {"file": weights}}
        model: Any = create(name, **said)
        stages: Any = getattr(model, "feature_info", None) or []
        stride = stages[-1]["reduction"] if stages else 0
        if len(stages) < 4 or not hasattr(model, "forward_intermediates"):
            raise ValueError(f"encoder/sparse: {name} has no four maps; choose a network such as resnet50")
        if spec.cell != (stride, stride):
            raise ValueError(
                f"encoder/sparse: a cell of the last map of {name} covers {stride} pixels, and tokens are {spec.cell}; "
                f"set tokenizer.patch={stride}, and data.size to a multiple of it"
            )
        if hasattr(model, "head"):
            model.head = nn.Identity()  # its norm stands behind pooling, which is the evaluation's
        super().__init__(model, spec)
        self.active = Active()
        sparsify(model, self.active)
        self.tap_names = {f"stage.{i}": stage["num_chs"] for i, stage in enumerate(stages[-4:])}

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Encodes the visible cells of the image that the raw values (b, n, v) make up; hidden ones stay zero."""
        assert tokens.grid is not None and self.spec.cell is not None
        flags, raw = tokens.valid, tokens.raw
        self.active.say(None if flags is None else flags.reshape(-1, 1, *tokens.grid))
        image = fold(raw if flags is None else raw * flags.unsqueeze(-1), tokens.grid, (*self.spec.cell,))
        last, maps = self.model.forward_intermediates(image, indices=4)
        self.active.say(None)
        kept: dict[str, Tensor] = {name: sequence(x) for name, x in zip(self.tap_names, maps, strict=True)}
        return tokens.but(x=sequence(last), taps={name: kept[name] for name in taps})


def sequence(x: Tensor) -> Tensor:
    """A map (b, d, h, w) as tokens (b, h w, d)."""
    return torch.flatten(x, 2).mT
