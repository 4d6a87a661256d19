"""Maskers of edges that follow walks, or that weigh every edge and hide none; and how edges are weighed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmssl.draws import Draws
from mmssl.modalities.graph.maskers import EdgeMask, check_share, either_way, spread
from mmssl.modalities.graph.sparse import Adjacency, softmax
from mmssl.registry import register
from mmssl.types import Mask, Tokens, TokenSpec


def places_within(owner: Tensor, samples: int) -> Tensor:
    """The place of each element among those of its graph, in their order, (e,) int64."""
    order = torch.argsort(owner, stable=True)
    count = torch.bincount(owner, minlength=samples)
    start = torch.cumsum(count, 0) - count
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=owner.device) - start[owner[order]]
    return place


@register("masker/paths")
class Paths:
    """Hides the edges that random walks take (MaskGAE's path masking, Li et al. 2023).

    A walk begins at each of round(ratio * nodes) nodes of every graph, drawn without repetition, and takes `length`
    steps along edges, each to a neighbour drawn uniformly; a node without edges ends it. What is hidden is a function
    of the graph and its draws alone. Goes with `corruptor/drop_edges`.

    Args:
        ratio: share of the nodes of each graph where a walk begins, in [0, 1); 0.7 in the paper.
        length: steps of a walk, 3 in the paper.
        symmetric: whether both directions of an edge are hidden when a walk takes one. Else the direction it takes is
            asked for, but shows unless another walk takes the other, as in the released code.

    Raises:
        ValueError: for a share outside [0, 1), or a walk of no step.
    """

    def __init__(self, *, ratio: float = 0.7, length: int = 3, symmetric: bool = True) -> None:
        check_share("masker.ratio", ratio)
        if length < 1:
            raise ValueError(f"masker.length is the number of steps of a walk, from 1 on (got {length})")
        self.ratio, self.length, self.symmetric = ratio, length, symmetric

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Masks the edges of a packed batch as one row."""
        sample, index, edges = tokens.sample, tokens.index, tokens.edges
        assert sample is not None and edges is not None, "masker/paths hides edges of packed graphs"
        hidden = torch.zeros(edges.shape[1], dtype=torch.bool, device=edges.device)
        apart = (edges[0] != edges[1]).nonzero().squeeze(1)
        order = apart[torch.argsort(edges[0, apart], stable=True)]
        count = torch.bincount(edges[0, apart], minlength=len(index))
        first, node = torch.cumsum(count, 0) - count, self._starts(sample, index, draws)
        longest = int(index.max()) + 1 if len(index) else 0
        begun = node
        for step in range(self.length if len(order) else 0):
            luck = spread(draws.named(f"step/{step}"), sample[begun], index[begun], longest)
            going = (count[node] > 0).nonzero().squeeze(1)
            begun, node, luck = begun[going], node[going], luck[going]
            taken = order[first[node] + (luck * count[node]).long().clamp(max=count[node] - 1)]
            hidden[taken] = True
            node = edges[1, taken]
        if self.symmetric:
            hidden = either_way(hidden, edges, len(index))
        shown = ~hidden if self.symmetric else either_way(~hidden, edges, len(index))
        return EdgeMask(shown.unsqueeze(0), hidden.view(1, 1, -1))

    def _starts(self, sample: Tensor, index: Tensor, draws: Draws) -> Tensor:
        """Nodes where walks begin, (s,)."""
        longest = int(index.max()) + 1 if len(index) else 0
        order = torch.argsort(spread(draws.named("starts"), sample, index, longest), stable=True)
        order = order[torch.argsort(sample[order], stable=True)]
        place = torch.empty_like(order)
        place[order] = index  # nodes of a graph lie in order, so that places count from 0 in each
        # a table, not arithmetic on the device: a graph has as many starts as round(ratio * nodes) says
        table = torch.tensor([round(self.ratio * n) for n in range(longest + 1)], device=sample.device)
        return (place < table[torch.bincount(sample, minlength=len(draws.keys))[sample]]).nonzero().squeeze(1)


@dataclass(frozen=True)
class BandMask(EdgeMask):
    """A mask that hides no edge but lets more or less through it.

    Args:
        weight: how much each edge lets through in each layer of the encoder, (l, e) float; 1 for self loops.
    """

    weight: Tensor | None = None


@register("masker/bandwidths")
class Bandwidths:
    """Gives every edge a random bandwidth in each layer, and asks for all of them (Bandana, Zhao et al. 2024).

    In each layer every edge j -> i draws u from a standard normal; its bandwidth is the softmax of u / temperature over
    the edges that lead to i. So bandwidths of what a node receives sum to 1, and both directions of an edge differ.
    All edges stay; self loops are as they were and never asked for. Goes with `corruptor/weigh_edges`.

    Args:
        layers: layers of the encoder.
        temperature: of the softmax, above 0, or one of each layer. Large: all of a node's edges weigh alike; near 0:
            one of them has all.

    Raises:
        ValueError: for a temperature that is not above 0, or not as many as layers.
    """

    def __init__(self, *, layers: int = 2, temperature: float | Sequence[float] = 1.0) -> None:
        given = [float(temperature)] * layers if isinstance(temperature, (int, float)) else list(temperature)
        if layers < 1 or len(given) != layers or min(given) <= 0:
            raise ValueError(
                f"masker.temperature has to be above 0, one number or one for each of the {layers} layers (got "
                f"{temperature!r})"
            )
        self.temperatures = given

    def __call__(self, tokens: Tokens, draws: Draws, progress: float, score: Tensor | None) -> Mask:
        """Weighs the edges of a packed batch."""
        sample, edges, n = tokens.sample, tokens.edges, len(tokens.index)
        assert sample is not None and edges is not None, "masker/bandwidths weighs edges of packed graphs"
        asked = edges[0] != edges[1]
        apart = asked.nonzero().squeeze(1)
        apart = apart[torch.argsort(edges[1, apart], stable=True)]
        links, owner = Adjacency(edges[1, apart], edges[0, apart], (n, n)), sample[edges[1, apart]]
        weight = torch.ones(len(self.temperatures), edges.shape[1], device=edges.device)
        if len(apart):
            place = torch.empty_like(asked, dtype=torch.int64)
            place[asked] = places_within(sample[edges[1, asked]], len(draws.keys))  # in the order of the graph's edges
            place = place[apart]
            luck = [
                _normal(draws.named(f"layer/{i}"), owner, place) / temperature
                for i, temperature in enumerate(self.temperatures)
            ]
            weight[:, apart] = softmax(torch.stack(luck, 1), links).t()
        return BandMask(torch.ones_like(asked).unsqueeze(0), asked.view(1, 1, -1), weight=weight)


def _normal(draws: Draws, owner: Tensor, place: Tensor) -> Tensor:
    """A standard normal number for each element, (e,), whatever the largest place in the batch (Box-Muller)."""
    longest = int(place.max()) + 1
    radius, angle = (spread(draws.named(name), owner, place, longest) for name in ("radius", "angle"))
    return torch.sqrt(-2.0 * torch.log1p(-radius)) * torch.cos(2.0 * math.pi * angle)


@register("corruptor/weigh_edges")
class WeighEdges(nn.Module):
    """Weighs the edges of a graph as the mask says, in every layer of the encoder (Bandana).

    Args:
        spec: sizes of the tokens.
        accepts: what the encoder accepts: `graph`.
        dim: the encoder's width.
    """

    on = "tokens"
    needs = ("graph",)

    def __init__(self, spec: TokenSpec, accepts: str, dim: int) -> None:
        super().__init__()

    def forward(self, tokens: Tokens, mask: Mask, draws: Draws) -> Tokens:
        """The same nodes and edges, with `edge_weight` (l, e).

        Raises:
            ValueError: for a mask without weights.
        """
        if not isinstance(mask, BandMask) or mask.weight is None:
            raise ValueError(
                "corruptor/weigh_edges: the masker gives edges no weights; set masker._target_=masker/bandwidths, or "
                "corruptor._target_=corruptor/drop_edges for a masker that hides edges"
            )
        return tokens.but(edge_weight=mask.weight)
