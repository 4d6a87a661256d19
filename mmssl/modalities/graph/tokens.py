"""Tokens of graphs: one node each, packed, with what makes their layers quick."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.draws import Draws
from mmssl.modalities.graph.quick import drop, kept
from mmssl.modalities.graph.sparse import Adjacency, SparseRows, propagate
from mmssl.types import Tokens


@dataclass(frozen=True)
class GraphTokens(Tokens):
    """Packed tokens whose features may be given a second time, as sparse rows and a learned vector.

    Args:
        links: `edges`, sorted; None before the first layer that needs them.
        features: the same as `raw` but for the rows at `replaced`, which are empty; None where features are dense.
        token: the learned vector that stands in the rows of `raw` at `replaced`, (v,).
        replaced: nodes whose features are the learned vector, (k,) int64; None where there is none.
        wanted: nodes whose features an encoder has to give, (w,) int64 ascending; others may be zeros. None for all.
        draws: random numbers of the samples, for predictors that mask nodes once more; None outside of training steps.
    """

    links: Adjacency | None = None
    features: SparseRows | None = None
    token: Tensor | None = None
    replaced: Tensor | None = None
    wanted: Tensor | None = None
    draws: Draws | None = None

    def take(self, index: Tensor, row: Tensor | None = None, valid: Tensor | None = None) -> Tokens:
        """The tokens at flat places, without edges; see `Tokens.take`."""
        bare = self.but(links=None, features=None, token=None, replaced=None, wanted=None, draws=None)
        return Tokens.take(bare, index, row, valid)


def links(tokens: Tokens) -> Adjacency:
    """The edges of packed tokens as an adjacency matrix: rows are targets, columns sources."""
    held = tokens.links if isinstance(tokens, GraphTokens) else None
    if held is not None:
        return held
    assert tokens.edges is not None, "graph encoders need tokens with edges"
    source, target = tokens.edges
    return Adjacency.of(target, source, (len(tokens.index), len(tokens.index)))


def project(tokens: Tokens, weight: Tensor, p: float, training: bool) -> Tensor:
    """Dropout of the nodes' features and their product with a matrix: the first layer of a graph encoder.

    With sparse features only what is not zero is multiplied. Rows that hold the learned vector are (keep * token) W':
    one product with the 0/1 matrix `keep` serves the rows, and one more the gradients of matrix and vector.

    Args:
        tokens: packed tokens with features (n, v).
        weight: (o, v).
        p: share of features that dropout sets to zero.
        training: whether there is dropout.

    Returns:
        (n, o).
    """
    if not isinstance(tokens, GraphTokens) or (tokens.features is None and tokens.replaced is None):
        return F.linear(drop(tokens.raw, p, training), weight)
    if tokens.features is not None:
        out = propagate(drop(tokens.features.values, p, training), weight.t(), tokens.features.entries)
    else:
        out = _others(tokens, weight, p, training)
    if tokens.token is None or tokens.replaced is None or len(tokens.replaced) == 0:
        return out
    if training and p > 0.0:
        keep, scale = kept(len(tokens.replaced), weight.shape[1], p, weight)
        filled = keep @ (weight * (tokens.token * scale)).t()
    else:
        filled = (weight @ tokens.token).expand(len(tokens.replaced), -1)
    return out.index_copy(0, tokens.replaced, filled.to(out.dtype))


def _others(tokens: GraphTokens, weight: Tensor, p: float, training: bool) -> Tensor:
    """The product in the rows that do not hold the learned vector, and zeros in those that do."""
    assert tokens.replaced is not None
    apart = torch.ones(len(tokens.raw), dtype=torch.bool, device=weight.device)
    apart[tokens.replaced] = False
    rows = apart.nonzero().squeeze(1)
    shown = F.linear(drop(tokens.raw.detach()[rows], p, training), weight)
    return shown.new_zeros(len(tokens.raw), len(weight)).index_copy(0, rows, shown)
