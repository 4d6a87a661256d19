"""The decoder of GraphMAE: one graph layer over what the encoder saw, with the nodes asked for masked once more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl.modalities.graph.encoders import check_dropout
from mmssl.modalities.graph.layers import Attention, Convolution, Isomorphism
from mmssl.modalities.graph.quick import drop
from mmssl.modalities.graph.sparse import Adjacency
from mmssl.modalities.graph.tokens import links
from mmssl.registry import register, suggest
from mmssl.types import Tokens, TokenSpec

_KINDS = ("gat", "gcn", "gin")


@register("predictor/graph")
class Graph(nn.Module):
    """A linear bridge, re-masking and one graph layer (GraphMAE, Hou et al. 2022).

    The features of the nodes asked for are set to zero behind the bridge, so that they are predicted from their
    neighbours. Rows that are zero, and rows that are not asked for, are not computed; the answers are those of the
    whole layer.

    Args:
        spec: sizes of the tokens.
        width: the encoder's width.
        out: width of the answer.
        taps: layers that the encoder can give; none is read.
        kind: the layer: `gat`, `gcn` or `gin`.
        heads: attention heads of `gat`; they have to divide the width of the answer.
        dropout: share of the layer's input that is dropped in training.
        attention_dropout: share of attention weights of `gat` that are dropped in training.
        norm: inside the MLP of `gin`: `batch`, `layer` or null for none.
        activation: inside the MLP of `gin`.

    Raises:
        ValueError: for an unknown kind, or heads that do not divide the width of the answer.
    """

    taps: tuple[str, ...] = ()

    def __init__(
        self,
        spec: TokenSpec,
        width: int,
        out: int,
        taps: tuple[str, ...],
        *,
        kind: str = "gat",
        heads: int = 1,
        dropout: float = 0.2,
        attention_dropout: float = 0.1,
        norm: str | None = "batch",
        activation: str = "prelu",
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"predictor.kind={kind!r} is no graph layer{suggest(kind, _KINDS)}")
        if kind == "gat" and (heads < 1 or out % heads):
            raise ValueError(f"predictor.heads={heads} does not divide the {out} features of the answer; set it to 1")
        check_dropout("predictor.dropout", dropout)
        check_dropout("predictor.attention_dropout", attention_dropout)
        self.dropout = dropout
        self.bridge = nn.Linear(width, width, bias=False)
        if kind == "gat":
            self.layer: nn.Module = Attention(width, out, heads, attention_dropout)
        else:
            self.layer = Convolution(width, out) if kind == "gcn" else Isomorphism(width, width, out, norm, activation)

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (t, out) at the nodes of the query."""
        assert seen.x is not None
        n = len(seen.x)
        asked = seen.at(query, torch.arange(n, device=seen.x.device))
        shown = torch.ones(n, dtype=torch.bool, device=asked.device).index_fill(0, asked, False).nonzero().squeeze(1)
        h = drop(self.bridge(seen.x[shown]), self.dropout, self.training)
        if isinstance(self.layer, Attention):
            return self._attend(self.layer, h, shown, asked, links(seen))
        z = nn.functional.linear(h, self.layer.matrix)  # pyright: ignore[reportArgumentType]
        z = z.new_zeros(n, z.shape[1]).index_copy(0, shown, z)
        if isinstance(self.layer, Isomorphism):  # a norm inside sees every node
            return self.layer.conv.nn[3](self.layer.inner(z, links(seen))[asked])
        return self.layer(z, links(seen))[asked]

    def _attend(self, layer: Attention, h: Tensor, shown: Tensor, asked: Tensor, edges: Adjacency) -> Tensor:
        """Attention from the nodes shown, and one row of zeros for all others, to the nodes asked for."""
        source = torch.full((edges.shape[1],), len(shown), device=shown.device)
        source[shown] = torch.arange(len(shown), device=shown.device)
        some = edges.part(asked)
        some = Adjacency(some.row, source[some.col], (len(asked), len(shown) + 1))
        zero = h.new_zeros(1, h.shape[1])
        return layer.at(torch.cat([h, zero]), zero.expand(len(asked), -1), some)
