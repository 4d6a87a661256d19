"""Graph encoders. They read the nodes' features themselves, and replace masked nodes rather than leave them out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.modalities.graph.layers import Attention, Convolution, Isomorphism, activation, norm
from mmssl.modalities.graph.quick import drop, prelu
from mmssl.modalities.graph.tokens import GraphTokens, links, project
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec


def check_dropout(key: str, share: float) -> None:
    """Refuses a dropout outside [0, 1).

    Raises:
        ValueError: naming the key.
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"{key} is a share and has to be in [0, 1) (got {share:g})")


class Stack(nn.Module):
    """Layers in turn, with dropout before and shortcut, norm and activation behind each.

    Args:
        layers: see `layers.py`.
        widths: features that each layer reads, and those that the last one gives.
        dropout: share of each layer's input that is dropped in training.
        norm_name: norm behind each layer.
        residual: whether a layer's input is added to its output, by a Linear where widths differ.
        activation_name: activation behind each layer.
        momentum: of a batch norm's running statistics.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        widths: Sequence[int],
        dropout: float,
        norm_name: str | None,
        residual: bool,
        activation_name: str,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        check_dropout("encoder.dropout", dropout)
        # a module, though its share is all that is used, so that a teacher's twin can do without
        self.layers, self.dropout = nn.ModuleList(layers), nn.Dropout(dropout)
        self.norms = nn.ModuleList(norm(norm_name, width, momentum) for width in widths[1:])
        self.activations = nn.ModuleList(activation(activation_name) for _ in layers)
        self.shortcuts = nn.ModuleList(
            nn.Identity() if width == out else nn.Linear(width, out, bias=False)
            for width, out in pairwise(widths)
            if residual
        )

    def forward(self, tokens: Tokens, taps: tuple[str, ...]) -> Tokens:
        """Tokens with `x` (n, d) and the taps `block.0`, `block.1`, ... that are asked for.

        Where tokens say which nodes are `wanted` the last layer may leave the others at zero.
        """
        edges, h, kept = links(tokens), None, dict[str, Tensor]()
        weights = self._weights(tokens)
        for i, layer in enumerate(self.layers):
            if h is not None and f"block.{i}" not in taps and (some := self._wanted(tokens, i)) is not None:
                h = drop(h, self.dropout.p, self.training)
                out = layer.at(h, h[some], edges.part(some))  # pyright: ignore[reportCallIssue]
                out = prelu(self.activations[i], self.norms[i](out))
                h = out.new_zeros(len(h), out.shape[1]).index_copy(0, some, out)
                continue
            shortcut = self.shortcuts[i] if self.shortcuts else None
            matrix: Any = layer.matrix
            added = None
            if h is None and isinstance(shortcut, nn.Linear):  # one product for both: they see the same dropout
                both = project(tokens, torch.cat([matrix, shortcut.weight]), self.dropout.p, self.training)
                z, added = both.split([len(matrix), len(shortcut.weight)], 1)
            elif h is None:
                z = project(tokens, matrix, self.dropout.p, self.training)
                added = None if shortcut is None else tokens.raw
            else:
                h = drop(h, self.dropout.p, self.training)
                z, added = nn.functional.linear(h, matrix), None if shortcut is None else shortcut(h)
            out = layer(z.contiguous(), edges) if weights is None else layer(z.contiguous(), edges, weights[i])
            h = prelu(self.activations[i], self.norms[i](out if added is None else out + added))
            if f"block.{i}" in taps:
                kept[f"block.{i}"] = h
        return tokens.but(x=h, taps=kept)

    def _weights(self, tokens: Tokens) -> Tensor | None:
        """The weights of edges in each layer, (l, e), in the order of the adjacency; None where all weigh alike."""
        if tokens.edge_weight is None or tokens.edges is None:
            return None
        if not all(getattr(layer, "weighs", False) for layer in self.layers):
            raise ValueError("edges have weights, which encoder/gcn reads and this encoder does not; use encoder=gcn")
        weights = tokens.edge_weight if tokens.edge_weight.dim() == 2 else tokens.edge_weight.unsqueeze(0)
        if len(weights) not in (1, len(self.layers)):
            raise ValueError(
                f"edges have weights for {len(weights)} layers, but the encoder has {len(self.layers)}; set "
                "masker.layers to encoder.depth"
            )
        order = torch.argsort(tokens.edges[1], stable=True)
        return weights[:, order].expand(len(self.layers), -1)

    def _wanted(self, tokens: Tokens, i: int) -> Tensor | None:
        """The nodes to which the last layer can be confined: it has to treat each by itself."""
        last, alone = i == len(self.layers) - 1, not isinstance(self.norms[i], nn.BatchNorm1d)
        confined = last and alone and isinstance(self.layers[i], Attention) and not self.shortcuts
        return tokens.wanted if confined and isinstance(tokens, GraphTokens) else None


def tap_names(depth: int) -> tuple[str, ...]:
    """Names of the layers of an encoder of this depth.

    Raises:
        ValueError: for a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"encoder.depth has to be at least 1 (got {depth})")
    return tuple(f"block.{i}" for i in range(depth))


@register("encoder/gat")
class GAT(nn.Module):
    """Graph attention network (Velickovic et al. 2018) as GraphMAE trains it: heads side by side in every layer.

    Args:
        spec: sizes of the tokens.
        dim: width of every layer, all heads together.
        depth: number of layers.
        heads: attention heads; they have to divide the width.
        dropout: share of each layer's input that is dropped in training.
        attention_dropout: share of attention weights that are dropped in training.
        slope: of the leaky ReLU before the softmax.
        norm: behind each layer: `batch`, `layer` or null for none.
        residual: whether a layer's input is added to its output.
        activation: behind each layer: `prelu`, `relu`, `elu`, `gelu` or `none`.

    Raises:
        ValueError: when heads do not divide the width, or for an unknown norm or activation.
    """

    accepts = "graph"

    def __init__(
        self,
        spec: TokenSpec,
        *,
        dim: int = 512,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.2,
        attention_dropout: float = 0.1,
        slope: float = 0.2,
        norm: str | None = None,
        residual: bool = False,
        activation: str = "prelu",
    ) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"encoder.heads={heads} does not divide encoder.dim={dim}; choose a divisor of {dim}")
        check_dropout("encoder.attention_dropout", attention_dropout)
        self.dim, self.tap_names = dim, tap_names(depth)
        widths = [spec.raw] + [dim] * depth
        layers = [Attention(width, dim, heads, attention_dropout, slope) for width in widths[:-1]]
        self.stack = Stack(layers, widths, dropout, norm, residual, activation)

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Packed tokens with `x` (n, dim) and the taps asked for."""
        return self.stack(tokens, taps)


@register("encoder/gcn")
class GCN(nn.Module):
    """Graph convolutional network (Kipf and Welling 2017). The tokenizer adds self loops, so that layers do not.

    Args:
        spec: sizes of the tokens.
        dim: width of the last layer.
        depth: number of layers.
        expansion: width of all layers but the last over the width of the last; 2 in GRACE and BGRL.
        dropout: share of each layer's input that is dropped in training.
        norm: behind each layer: `batch`, `layer` or null for none.
        norm_momentum: share of the last batch in the running statistics of a batch norm; 0.99 in BGRL, so that
            evaluation sees almost the statistics of the last batch alone.
        residual: whether a layer's input is added to its output.
        activation: behind each layer: `prelu`, `relu`, `elu`, `gelu` or `none`.
        joined: whether features are those of all layers side by side (MaskGAE, Bandana) and not of the last alone.

    Raises:
        ValueError: for an unknown norm or activation, or an expansion that leaves no layer any width.
    """

    accepts = "graph"

    def __init__(
        self,
        spec: TokenSpec,
        *,
        dim: int = 512,
        depth: int = 2,
        expansion: float = 1.0,
        dropout: float = 0.2,
        norm: str | None = None,
        norm_momentum: float = 0.1,
        residual: bool = False,
        activation: str = "prelu",
        joined: bool = False,
    ) -> None:
        super().__init__()
        if expansion * dim < 1:
            raise ValueError(f"encoder.expansion={expansion:g} leaves inner layers no width at encoder.dim={dim}")
        widths = [spec.raw] + [int(expansion * dim)] * (depth - 1) + [dim]
        self.joined, self.tap_names = joined, tap_names(depth)
        self.dim, self.tap_dims = sum(widths[1:]) if joined else dim, dict(zip(self.tap_names, widths[1:], strict=True))
        layers = [Convolution(width, out) for width, out in pairwise(widths)]
        self.stack = Stack(layers, widths, dropout, norm, residual, activation, norm_momentum)

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Packed tokens with `x` (n, dim) and the taps asked for."""
        if not self.joined:
            return self.stack(tokens, taps)
        features = self.stack(tokens, self.tap_names)
        return features.but(x=torch.cat([features.taps[name] for name in self.tap_names], 1))


@register("encoder/gin")
class GIN(nn.Module):
    """Graph isomorphism network (Xu et al. 2019) as GraphMAE trains it: MLPs of two Linears, a norm behind each Linear.

    Args:
        spec: sizes of the tokens.
        dim: width of every layer.
        depth: number of layers.
        dropout: share of each layer's input that is dropped in training.
        norm: in and behind each MLP: `batch`, `layer` or null for none.
        residual: whether a layer's input is added to its output.
        activation: in and behind each MLP: `prelu`, `relu`, `elu`, `gelu` or `none`.
    """

    accepts = "graph"

    def __init__(
        self,
        spec: TokenSpec,
        *,
        dim: int = 512,
        depth: int = 2,
        dropout: float = 0.2,
        norm: str | None = "batch",
        residual: bool = False,
        activation: str = "prelu",
    ) -> None:
        super().__init__()
        self.dim, self.tap_names = dim, tap_names(depth)
        widths = [spec.raw] + [dim] * depth
        layers = [Isomorphism(width, dim, dim, norm, activation) for width in widths[:-1]]
        self.stack = Stack(layers, widths, dropout, norm, residual, activation)

    def forward(self, tokens: Tokens, taps: tuple[str, ...] = ()) -> Tokens:
        """Packed tokens with `x` (n, dim) and the taps asked for."""
        return self.stack(tokens, taps)
