"""A2MIM: hidden tokens take a colour, corruptors act in two stages, and a loss that minds large errors most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.registry import register
from mmssl.types import Mask, Tokens, TokenSpec


@register("corruptor/fill")
class Fill(nn.Module):
    """Gives the raw values of hidden tokens the mean colour of their own sample (A2MIM, Li et al. 2022).

    Args:
        spec: sizes of the tokens, whose raw values have the channel fastest.
        accepts: what the encoder accepts.
        dim: the encoder's width.
        mark: whether hidden tokens are marked as not valid, for encoders that ask where they are.

    Raises:
        ValueError: for tokens without channels.
    """

    on = "tokens"
    needs = ("sequence", "full", "grid")

    def __init__(self, spec: TokenSpec, accepts: str, dim: int, *, mark: bool = False) -> None:
        super().__init__()
        self.mark = mark
        if spec.channels is None:
            raise ValueError("corruptor/fill needs tokens with channels, such as patches of images")
        self.channels = spec.channels

    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """All tokens, one row per mask, the hidden ones filled."""
        if mask.row is not None:
            tokens = tokens.take(tokens.index[mask.row], mask.row)
        raw = tokens.raw
        colour = raw.unflatten(2, (-1, self.channels)).mean((1, 2))
        colour = colour.repeat(1, raw.shape[2] // self.channels).unsqueeze(1)
        valid = tokens.valid
        if self.mark:
            valid = mask.visible if valid is None else valid & mask.visible
        return tokens.but(raw=torch.where(mask.hidden.unsqueeze(-1), colour, raw), valid=valid)


@register("loss/focal_l1")
def focal_l1(prediction: Tensor, target: Tensor, *, sharpness: float = 0.2) -> Tensor:
    """Absolute error, each value times 2 sigmoid(sharpness * error) - 1, averaged over features (A2MIM's CNNs)."""
    error = (prediction.to(target.dtype) - target).abs()
    return (error * (2 * torch.sigmoid(sharpness * error) - 1)).mean(-1)


@register("corruptor/both")
class Both(nn.Module):
    """One corruptor of raw values, and one of embeddings behind it (A2MIM: colour, then mask token).

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts.
        dim: the encoder's width.
        first: the corruptor that acts on tokens, such as `corruptor/fill`.
        second: the one that acts on what is embedded, such as `corruptor/token`.

    Raises:
        ValueError: for other corruptors, or those that do not fit the encoder.
    """

    on = "tokens"

    def __init__(
        self,
        spec: TokenSpec,
        accepts: str,
        dim: int,
        *,
        first: Callable[..., Any],
        second: Callable[..., Any],
    ) -> None:
        super().__init__()
        self.first, self.second = first(spec, accepts, dim), second(spec, accepts, dim)
        stages = (self.first.on, self.second.on)
        if stages != ("tokens", "embedded") or getattr(self.first, "drops", False):
            raise ValueError(
                "corruptor/both: the first acts on tokens, and leaves none out, and the second on embeddings, such as "
                "corruptor/fill and corruptor/token"
            )
        self.needs = tuple(kind for kind in self.first.needs if kind in self.second.needs)

    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """Tokens through the first corruptor."""
        return self.first(tokens, mask, draws)

    def after(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """Embedded tokens of the first, through the second; rows are those of the masks already."""
        row = mask.row
        mask = mask if row is None else Mask(mask.visible, mask.targets)
        return self.second(tokens, mask, draws)
