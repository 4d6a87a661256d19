"""The decoder of GraphMAE: one graph layer over what the encoder saw, with nodes masked once more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmssl import ranks
from mmssl.modalities.graph.encoders import check_dropout
from mmssl.modalities.graph.layers import Attention, Convolution, Isomorphism
from mmssl.modalities.graph.maskers import check_share, placed, spread
from mmssl.modalities.graph.quick import drop
from mmssl.modalities.graph.sparse import Adjacency
from mmssl.modalities.graph.tokens import GraphTokens, links
from mmssl.registry import register, suggest
from mmssl.types import Tokens, TokenSpec

_KINDS = ("gat", "gcn", "gin")


@register("predictor/graph")
class Graph(nn.Module):
    """A linear bridge, re-masking and one graph layer (GraphMAE, Hou et al. 2022; GraphMAE2, Hou et al. 2023).

    By default the features of the nodes asked for are set to zero behind the bridge, so that they are predicted from
    their neighbours. Rows that are zero, and rows that are not asked for, are not computed; the answers are those of
    the whole layer. With `remask` a random share of *all* nodes gets a learned vector instead, anew for each of several
    `decodings` (GraphMAE2's multi-view random re-mask decoding).

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
        remask: share of all nodes of the global batch that are masked once more, at random; null masks those asked for.
            It goes with corruptor/replace.
        decodings: how many times that is done. In training all answers are given, so that a mean over answers is a mean
            over decodings (GraphMAE2 sums: give the term this weight); in evaluation their mean.

    Raises:
        ValueError: for an unknown kind, heads that do not divide the width of the answer, a share outside [0, 1), or
            several decodings without `remask`.
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
        remask: float | None = None,
        decodings: int = 1,
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"predictor.kind={kind!r} is no graph layer{suggest(kind, _KINDS)}")
        if kind == "gat" and (heads < 1 or out % heads):
            raise ValueError(f"predictor.heads={heads} does not divide the {out} features of the answer; set it to 1")
        check_dropout("predictor.dropout", dropout)
        check_dropout("predictor.attention_dropout", attention_dropout)
        check_remask(remask, decodings)
        self.dropout, self.remask, self.decodings = dropout, remask, decodings
        self.bridge = nn.Linear(width, width, bias=False)
        if kind == "gat":
            self.layer: nn.Module = Attention(width, out, heads, attention_dropout)
        else:
            self.layer = Convolution(width, out) if kind == "gcn" else Isomorphism(width, width, out, norm, activation)
        self.token = None if remask is None else nn.Parameter(nn.init.xavier_normal_(torch.empty(1, width)))

    def forward(self, seen: Tokens, query: Tokens) -> Tensor:
        """Answers (t, out) at the nodes of the query; (decodings, t, out) in training where there are several."""
        assert seen.x is not None
        n = len(seen.x)
        asked = seen.at(query, torch.arange(n, device=seen.x.device))
        if self.remask is not None:
            return self._decodings(seen, asked)
        shown = torch.ones(n, dtype=torch.bool, device=asked.device).index_fill(0, asked, False).nonzero().squeeze(1)
        h = drop(self.bridge(seen.x[shown]), self.dropout, self.training)
        if isinstance(self.layer, Attention):
            return self._attend(self.layer, h, shown, asked, links(seen))
        z = nn.functional.linear(h, self.layer.matrix)  # pyright: ignore[reportArgumentType]
        return self._finish(z.new_zeros(n, z.shape[1]).index_copy(0, shown, z), asked, links(seen))

    def _finish(self, z: Tensor, asked: Tensor, edges: Adjacency) -> Tensor:
        """Features times the matrix of a convolution or isomorphism layer to answers at some nodes."""
        if isinstance(self.layer, Isomorphism):  # a norm inside sees every node
            return self.layer.conv.nn[3](self.layer.inner(z, edges)[asked])
        return self.layer(z, edges)[asked]

    def _attend(self, layer: Attention, h: Tensor, shown: Tensor, asked: Tensor, edges: Adjacency) -> Tensor:
        """Attention from the nodes shown, and one row of zeros for all others, to the nodes asked for."""
        source = torch.full((edges.shape[1],), len(shown), device=shown.device)
        source[shown] = torch.arange(len(shown), device=shown.device)
        some = edges.part(asked)
        some = Adjacency(some.row, source[some.col], (len(asked), len(shown) + 1))
        zero = h.new_zeros(1, h.shape[1])
        return layer.at(torch.cat([h, zero]), zero.expand(len(asked), -1), some)

    def _decodings(self, seen: Tokens, asked: Tensor) -> Tensor:
        """The answers of every decoding, each with other nodes masked."""
        assert seen.x is not None and self.token is not None
        edges, bridged = links(seen), self.bridge(seen.x)
        some, answers = edges.part(asked), list[Tensor]()
        for masked in self._masked(seen):
            h = torch.where(masked.unsqueeze(1), self.token.to(bridged.dtype), bridged)
            h = drop(h, self.dropout, self.training)
            if isinstance(self.layer, Attention):
                answers.append(self.layer.at(h, h[asked], some))
            else:
                z = nn.functional.linear(h, self.layer.matrix)  # pyright: ignore[reportArgumentType]
                answers.append(self._finish(z, asked, edges))
        if len(answers) == 1:
            return answers[0]
        return torch.stack(answers) if self.training else torch.stack(answers).mean(0)

    def _masked(self, seen: Tokens) -> list[Tensor]:
        """Which nodes each decoding masks, (n,) bool: exactly int(remask * nodes) of the global batch."""
        if not isinstance(seen, GraphTokens) or seen.draws is None or seen.sample is None:
            raise ValueError(
                "predictor.remask masks nodes at random and needs the draws that corruptor/replace hands on; set "
                "corruptor._target_=corruptor/replace, or predictor.remask=null"
            )
        assert self.remask is not None
        longest = int(seen.index.max()) + 1
        count = torch.tensor([len(seen.index)], device=seen.index.device)
        hide = int(self.remask * int(ranks.gather(count).sum()))
        streams = [seen.draws.named(f"remask/{k}") for k in range(self.decodings)]
        return [placed(spread(stream, seen.sample, seen.index, longest)) < hide for stream in streams]


def check_remask(remask: float | None, decodings: int) -> None:
    """Refuses shares outside [0, 1), and several decodings that would all be the same.

    Raises:
        ValueError: naming the key and the remedy.
    """
    if remask is not None:
        check_share("predictor.remask", remask)
    if decodings < 1 or (decodings > 1 and remask is None):
        raise ValueError(
            f"predictor.decodings={decodings} differ in which nodes are masked at random; give predictor.remask a "
            "share such as 0.5 and predictor.decodings a number from 1 on, or leave both away"
        )
