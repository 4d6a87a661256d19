"""Layers of graph networks: torch-geometric's convolutions hold the weights, sparse products do the sums.

Each layer has a `matrix`, which multiplies features first, is called with the product and the edges for what comes
behind it, and answers at some nodes only by `at`. The numbers are those of torch-geometric's own forward.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.modalities.graph.quick import drop, prelu, thin
from mmssl.modalities.graph.sparse import Adjacency, propagate, softmax
from mmssl.nn.norm import BatchNorm
from mmssl.registry import suggest

_ACTIVATIONS = {"prelu": nn.PReLU, "relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "none": nn.Identity}
_SPARSE = 8  # how much longer a multiplication takes in a sparse product than in a dense one
_NORMS = {"batch": BatchNorm, "layer": nn.LayerNorm}


def activation(name: str) -> nn.Module:
    """The activation of this name; `prelu` has one slope, which is learned.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation={name!r} is unknown{suggest(name, _ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def norm(name: str | None, dim: int, momentum: float = 0.1) -> nn.Module:
    """The norm of this name over `dim` features: `batch`, `layer`, or None for none.

    Args:
        name: the norm.
        dim: number of features.
        momentum: share of the last batch in the running statistics of `batch`.

    Raises:
        ValueError: for an unknown name.
    """
    if name is None:
        return nn.Identity()
    if name not in _NORMS:
        raise ValueError(f"norm={name!r} is unknown{suggest(name, _NORMS)}")
    return BatchNorm(dim, momentum=momentum) if name == "batch" else _NORMS[name](dim)


class Attention(nn.Module):
    """Graph attention (Velickovic et al. 2018): a softmax over the in-edges of each node, in heads side by side.

    Xavier-normal weights with the gain of a ReLU and zero biases, as GraphMAE has them.

    Args:
        width: features in.
        out: features out of all heads together.
        heads: attention heads.
        dropout: share of attention weights that are dropped in training.
        slope: of the leaky ReLU.
    """

    def __init__(self, width: int, out: int, heads: int, dropout: float = 0.1, slope: float = 0.2) -> None:
        super().__init__()
        from torch_geometric.nn import GATConv

        conv: Any = GATConv(width, out // heads, heads, negative_slope=slope, add_self_loops=False)
        for weight in (conv.lin.weight, conv.att_src, conv.att_dst):
            nn.init.xavier_normal_(weight, gain=math.sqrt(2.0))
        nn.init.zeros_(conv.bias)
        self.conv, self.heads, self.dropout = conv, heads, nn.Dropout(dropout)

    @property
    def matrix(self) -> Tensor:
        """What features are multiplied by, (out, width)."""
        return self.conv.lin.weight

    def forward(self, z: Tensor, links: Adjacency) -> Tensor:
        """Features times the matrix, (n, out), to the sum over in-edges with the bias."""
        # one product with a block-diagonal matrix: quicker by far than a batched product of thin slices
        scores = thin(z, torch.cat([self._blocks(self.conv.att_src), self._blocks(self.conv.att_dst)], 1))
        source, target = scores.split(self.heads, 1)
        return self._sum(self._weights(source, target, links), z, links) + self.conv.bias

    def at(self, source: Tensor, target: Tensor, links: Adjacency) -> Tensor:
        """The layer from some nodes (s, width) to others (t, width), (t, out).

        The matrix is applied before the sum or behind it, whichever is less work; the result is the same.
        """
        weight = self.matrix.view(self.heads, -1, self.matrix.shape[1])
        of_source = thin(source, self.matrix.t() @ self._blocks(self.conv.att_src))
        of_target = thin(target, self.matrix.t() @ self._blocks(self.conv.att_dst))
        alpha = self._weights(of_source, of_target, links)
        out, width = self.matrix.shape
        before = (len(source) * width + _SPARSE * len(links.row)) * out
        if before <= (len(target) * out + _SPARSE * len(links.row) * self.heads) * width:
            return self._sum(alpha, F.linear(source, self.matrix), links) + self.conv.bias
        sums = [F.linear(propagate(alpha[:, i].contiguous(), source, links), w) for i, w in enumerate(weight)]
        return torch.cat(sums, 1) + self.conv.bias

    def _blocks(self, attention: Tensor) -> Tensor:
        """Attention vectors (1, heads, out / heads) as columns, each in the rows of its head, (out, heads)."""
        return torch.block_diag(*attention[0].unsqueeze(2))

    def _weights(self, source: Tensor, target: Tensor, links: Adjacency) -> Tensor:
        logits = source.index_select(0, links.col) + target.index_select(0, links.row)
        alpha = softmax(F.leaky_relu(logits, self.conv.negative_slope), links)
        return drop(alpha, self.dropout.p, self.training)

    def _sum(self, alpha: Tensor, z: Tensor, links: Adjacency) -> Tensor:
        if self.heads == 1:
            return propagate(alpha.squeeze(1), z, links)
        entries, order = links.heads(self.heads)
        out = propagate(alpha.flatten()[order], z.view(len(z) * self.heads, -1), entries)
        return out.view(links.shape[0], -1)


class Convolution(nn.Module):
    """Graph convolution (Kipf and Welling 2017): edges weigh 1 over the square roots of both ends' in-degrees.

    Edges may have weights of their own; in-degrees are then sums of weights.

    Args:
        width: features in.
        out: features out.
    """

    weighs = True

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.conv: Any = GCNConv(width, out, add_self_loops=False)

    @property
    def matrix(self) -> Tensor:
        """What features are multiplied by, (out, width)."""
        return self.conv.lin.weight

    def forward(self, z: Tensor, links: Adjacency, weight: Tensor | None = None) -> Tensor:
        """Features times the matrix, (n, out), to the weighted sum over in-edges with the bias."""
        if weight is None:
            degree = torch.bincount(links.row, minlength=links.shape[0]).to(z.dtype)
        else:
            weight = weight.to(z.dtype)
            degree = z.new_zeros(links.shape[0]).index_add(0, links.row, weight)
        scale = torch.where(degree > 0, degree.rsqrt(), torch.zeros_like(degree))
        values = scale[links.row] * scale[links.col]
        return propagate(values if weight is None else values * weight, z, links) + self.conv.bias


class Isomorphism(nn.Module):
    """Graph isomorphism layer (Xu et al. 2019): own features plus the neighbours' sum, then an MLP of two Linears.

    Epsilon is 0. With self loops among the edges a node's own features count twice, as in GraphMAE.

    Args:
        width: features in.
        hidden: width of the MLP.
        out: features out.
        norm_name: norm in the MLP, see `norm`.
        activation_name: activation in the MLP, see `activation`.
    """

    def __init__(self, width: int, hidden: int, out: int, norm_name: str | None, activation_name: str) -> None:
        super().__init__()
        from torch_geometric.nn import GINConv

        first, last = nn.Linear(width, hidden), nn.Linear(hidden, out)
        self.conv: Any = GINConv(nn.Sequential(first, norm(norm_name, hidden), activation(activation_name), last))

    @property
    def matrix(self) -> Tensor:
        """What features are multiplied by, (hidden, width)."""
        return self.conv.nn[0].weight

    def inner(self, z: Tensor, links: Adjacency) -> Tensor:
        """Features times the matrix, (n, hidden), to what the last Linear reads."""
        summed = (1.0 + self.conv.eps) * z + propagate(z.new_ones(len(links.row)), z, links)
        mlp = self.conv.nn
        return prelu(mlp[2], mlp[1](summed + mlp[0].bias))

    def forward(self, z: Tensor, links: Adjacency) -> Tensor:
        """Features times the matrix, (n, hidden), to (n, out)."""
        return self.conv.nn[3](self.inner(z, links))
