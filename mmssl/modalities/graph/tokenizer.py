"""Graphs to tokens: every node is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.modalities.graph.sparse import SparseRows
from mmssl.modalities.graph.tokens import GraphTokens, links
from mmssl.nn.network import LinearEmbed
from mmssl.registry import register
from mmssl.types import Tokens, TokenSpec, View

_MAX_DEGREE = 400
# A sparse product of wide features is quicker than a dense one below this share of entries.
_SPARSE, _WIDE = 0.05, 256


@register("tokenizer/graph")
class GraphTokenizer(nn.Module):
    """Nodes as tokens of a packed batch; a node's raw values are its features (GraphMAE's input).

    Graphs without features get their nodes' in-degrees one-hot, of at most 400, counted before self loops are added.

    Args:
        facts: the data's facts: `features`, `max_degree` and `density`.
        self_loops: whether self loops are replaced by exactly one per node; else edges stay as they are.
        normalize: whether features are divided by their sum in each node (of absolute values).
        sparse: whether the first layer multiplies only what is not zero; null: for at least 256 features of which less
            than 5 % are not zero.
    """

    like: Tensor

    def __init__(
        self, facts: Mapping[str, Any], *, self_loops: bool = True, normalize: bool = False, sparse: bool | None = None
    ) -> None:
        super().__init__()
        self.self_loops, self.normalize = self_loops, normalize
        self.degrees = 0 if facts["features"] else min(int(facts["max_degree"]), _MAX_DEGREE) + 1
        width = int(facts["features"]) or self.degrees
        self.sparse = facts["density"] < _SPARSE and width >= _WIDE and not self.degrees if sparse is None else sparse
        self.spec = TokenSpec(width, 0)
        self._last: tuple[Any, GraphTokens] | None = None
        self.register_buffer("like", torch.zeros(()), persistent=False)  # features take the type of the network

    def embedding(self, dim: int) -> nn.Module:
        """A linear embedding of nodes, for encoders that want one; graph encoders read the features themselves."""
        return LinearEmbed(self.spec.raw, dim)

    def forward(self, view: View) -> Tokens:
        """Packed tokens of graphs (torch-geometric's `Data` or `Batch`), without embeddings.

        Of the same graph as in the last call the tokens are not made again.
        """
        data = view.data
        owner = data.get("batch")
        held = (data.get("x"), data.edge_index, owner)
        if torch.is_inference_mode_enabled():  # its tensors may not meet a gradient later, so that nothing is kept
            return self._tokens(data, owner)
        if self._last is None or any(a is not b for a, b in zip(self._last[0], held, strict=True)):
            with torch.no_grad():
                self._last = (held, self._tokens(data, owner))
        return self._last[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without the tokens of the last call."""
        return self.__dict__ | {"_last": None}

    def _tokens(self, data: Any, owner: Tensor | None) -> GraphTokens:
        n, edges = int(data.num_nodes), data.edge_index
        raw = self._features(data, n)
        sample = torch.zeros(n, dtype=torch.int64, device=edges.device) if owner is None else owner
        start = torch.zeros(1, dtype=torch.int64, device=edges.device) if owner is None else data.ptr
        index = torch.arange(n, device=edges.device) - start[sample]
        attributes = data.get("edge_attr")
        if self.self_loops:
            apart, loop = edges[0] != edges[1], torch.arange(n, device=edges.device)
            edges = torch.cat([edges[:, apart], loop.expand(2, -1)], 1)
            if attributes is not None:  # the attributes of a self loop are zeros
                kept = attributes[apart]
                attributes = torch.cat([kept, kept.new_zeros(n, *kept.shape[1:])])
        tokens = GraphTokens(
            raw=raw, pos=raw.new_zeros(n, 0), index=index, sample=sample, edges=edges, edge_attr=attributes,
            samples=1 if owner is None else len(data.ptr) - 1,
            features=SparseRows.of(raw) if self.sparse else None,
        )  # fmt: skip
        return tokens.but(links=links(tokens))  # pyright: ignore[reportReturnType]

    def _features(self, data: Any, n: int) -> Tensor:
        """Node features (n, v) float."""
        x = data.get("x")
        if self.degrees:
            said = data.get("degree")  # of a sampled neighbourhood: in the whole graph
            degree = torch.bincount(data.edge_index[1], minlength=n) if said is None else said
            return F.one_hot(degree.clamp(max=self.degrees - 1), self.degrees).to(self.like.dtype)
        if x is None or x.shape[1] != self.spec.raw:
            got = "no node features" if x is None else f"{x.shape[1]} node features"
            raise ValueError(
                f"data: a graph has {got}, but the data this encoder was built for have {self.spec.raw}; give every "
                "graph the same columns `x`"
            )
        x = x.to(self.like.dtype)
        return x / x.abs().sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) if self.normalize else x

    def restore(self, tokens: Tokens, shown: Tensor | None) -> Sequence[Any]:
        """Graphs that tokens make up, for pictures.

        Args:
            tokens: packed tokens of whole graphs.
            shown: which nodes are shown, (n,) bool; the others are marked by `hidden`. None for all.
        """
        from torch_geometric.data import Data

        assert tokens.sample is not None and tokens.samples is not None and tokens.edges is not None
        raw, owner = tokens.raw.detach().float().cpu(), tokens.sample.cpu()
        hidden = torch.zeros(len(raw), dtype=torch.bool) if shown is None else ~shown.cpu()
        counts = torch.bincount(owner, minlength=tokens.samples)
        start, edges = torch.cumsum(counts, 0) - counts, tokens.edges.cpu()
        found = []
        for i, (first, count) in enumerate(zip(start.tolist(), counts.tolist(), strict=True)):
            own = edges[:, owner[edges[0]] == i] - first if tokens.samples > 1 else edges
            nodes = slice(first, first + count)
            found.append(Data(x=raw[nodes], edge_index=own, hidden=hidden[nodes], num_nodes=count))
        return found
