"""Edges that are hidden from an encoder, to see whether its node features tell of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.draws import Draws

_ALL = 2000  # nodes of a graph whose pairs are listed; of larger ones pairs without an edge are drawn until enough


def hide_links(samples: Sequence[Any], shares: Sequence[float], seed: int = 0) -> tuple[list[Any], list[list[Tensor]]]:
    """Takes edges out of graphs, and draws as many pairs of nodes without an edge (PyG's `RandomLinkSplit`).

    An edge is hidden in both directions; self loops and repeats are none. No pair is drawn twice, and none that has an
    edge in the whole graph. Of a graph with too few pairs without an edge fewer edges are hidden.

    Args:
        samples: torch-geometric's `Data`.
        shares: of each set of hidden edges, the share of all of them.
        seed: of the draws.

    Returns:
        The graphs without the hidden edges, and for each graph and share the pairs of nodes, (2 m, 2) int64: m that
        have an edge, then m that have none.
    """
    made, found = [], []
    for number, sample in enumerate(samples):
        n, edges = int(sample.num_nodes), sample.edge_index
        low, high = edges.amin(0), edges.amax(0)
        key = low * n + high
        links = torch.unique(key[low != high])
        draws = Draws.of(seed, 0, torch.tensor([number])).named("links")
        absent = _absent(links, n, sum(round(share * len(links)) for share in shares), draws)
        order = links[draws.named("order").order(len(links))[0]]
        hidden, sets = 0, []
        for share in shares:
            count = min(round(share * len(links)), len(absent) - hidden)
            both = torch.cat([order[hidden : hidden + count], absent[hidden : hidden + count]])
            sets.append(torch.stack([both // n, both % n], 1))
            hidden += count
        kept = ~torch.isin(key, order[:hidden])
        graph = copy.copy(sample)
        graph.edge_index = edges[:, kept]
        if sample.get("edge_attr") is not None:
            graph.edge_attr = sample.edge_attr[kept]
        made.append(graph)
        found.append(sets)
    return made, found


def _absent(links: Tensor, n: int, count: int, draws: Draws) -> Tensor:
    """At most so many different pairs without an edge, in random order, as low * n + high."""
    if n <= _ALL:
        low, high = torch.triu_indices(n, n, 1)
        pairs = low * n + high
        pairs = pairs[~torch.isin(pairs, links)]
        return pairs[draws.named("absent").order(len(pairs))[0, :count]]
    found = links[:0]
    for attempt in range(20):
        drawn = draws.named(f"absent/{attempt}").integers(0, n, 2, 2 * count + 16)[0]
        pairs = drawn.amin(0) * n + drawn.amax(0)
        pairs = pairs[(drawn[0] != drawn[1]) & ~torch.isin(pairs, links) & ~torch.isin(pairs, found)]
        _, first = torch.unique(pairs, return_inverse=True)
        place = torch.full((int(first.max()) + 1 if len(first) else 0,), len(pairs))
        place = place.scatter_reduce(0, first, torch.arange(len(pairs)), "amin")
        found = torch.cat([found, pairs[place.sort().values]])
        if len(found) >= count:
            break
    return found[:count]
