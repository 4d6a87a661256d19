"""Positions from coordinates in space."""

from __future__ import annotations

from torch import Tensor, nn

from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


@register("position/mlp")
class CoordinateMLP(nn.Module):
    """A learned function of a token's coordinates: linear, GELU, linear (Point-BERT, Point-MAE).

    Args:
        spec: sizes of the tokens: `pos` coordinates.
        dim: width.
        hidden: width in between.
        std: standard deviation of the initial truncated normal; null for PyTorch's own initialisation.
    """

    def __init__(self, spec: TokenSpec, dim: int, *, hidden: int = 128, std: float | None = 0.02) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(spec.pos, hidden), nn.GELU(), nn.Linear(hidden, dim))
        for layer in self.layers:
            if isinstance(layer, nn.Linear) and std is not None:
                nn.init.trunc_normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tokens) -> Tensor:
        """Embeddings of the tokens' coordinates, (b, n, dim)."""
        return self.layers(tokens.pos)
