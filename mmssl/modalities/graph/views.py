"""View operations of graphs: the neighbourhoods of seed nodes, and augmentations."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmssl.draws import Draws
from mmssl.modalities.graph.large import Large, Seed
from mmssl.modalities.graph.maskers import check_share
from mmssl.registry import register


@register("view/neighbours")
class Neighbours:
    """A small graph around a seed node, with a bounded number of in-neighbours a hop (GraphSAGE, Hamilton et al. 2017).

    Around every node that the last hop found at most so many in-edges are drawn, without replacement; the nodes they
    come from are the next hop. The small graph holds these nodes, the seed at place 0, and all edges among them. Whole
    graphs pass through untouched, so that a recipe can name this operation whatever the data are.

    With all neighbours and as many hops as the encoder has layers, a graph attention or isomorphism network gives the
    seed what it gives it in the whole graph. A graph convolution weighs an edge by the in-degrees of both its ends,
    and nodes of the last hop have lost in-edges: there it needs one hop more. With fewer neighbours all of this is an
    estimate. Graphs without features keep their nodes' in-degrees in the whole graph, which the tokenizer encodes.

    Args:
        fanout: in-edges drawn for each node, a number for each hop, nearest first; -1 for all.

    Raises:
        ValueError: where there is no hop, or a number is neither positive nor -1.
    """

    def __init__(self, *, fanout: Sequence[int] = (10, 10)) -> None:
        whole = not isinstance(fanout, str) and all(isinstance(f, int) and (f > 0 or f == -1) for f in fanout)
        if not whole or len(fanout) == 0:
            raise ValueError(
                f"view/neighbours: fanout needs a whole number from 1 on for each hop, or -1 for all neighbours (got "
                f"{fanout if isinstance(fanout, str) else list(fanout)!r}); write for instance fanout: [10, 10]"
            )
        self.fanout = tuple(fanout)

    def __call__(self, sample: Any, draws: Draws) -> Any:
        """The neighbourhood of a seed as torch-geometric's `Data`, with `node`, the numbers in the large graph."""
        if not isinstance(sample, Seed):
            return sample
        from torch_geometric.data import Data

        graph, nodes = sample.graph, self.nodes(sample, Draws(draws.keys))
        edges, place = graph.among(nodes)
        more: dict[str, Any] = {"degree": torch.from_numpy(graph.degree(nodes).astype(np.int64))}
        if graph.x is not None:
            more = {"x": torch.from_numpy(np.asarray(graph.x[nodes]).astype(np.float32))}
        if graph.edge_attr is not None and graph.order is not None:
            values = np.asarray(graph.edge_attr[graph.order[place]]).astype(np.float32)
            more["edge_attr"] = torch.from_numpy(values.reshape(len(place), graph.edge_features))
        return Data(edge_index=torch.from_numpy(edges), node=torch.from_numpy(nodes), num_nodes=len(nodes), **more)

    def nodes(self, seed: Seed, draws: Draws) -> np.ndarray:
        """The nodes of a seed's neighbourhood, (m,) int64: the seed, then hop by hop, ascending in each."""
        front = found = np.array([seed.node], dtype=np.int64)
        for hop, fanout in enumerate(self.fanout):
            near = np.unique(sample_sources(seed.graph, front, fanout, draws.named(f"hop/{hop}")))
            front = np.setdiff1d(near, found, assume_unique=True)
            if not len(front):
                break
            found = np.concatenate([found, front])
        return found


def sample_sources(graph: Large, nodes: np.ndarray, fanout: int, draws: Draws) -> np.ndarray:
    """Sources of at most `fanout` in-edges of each node, drawn without replacement; of all of them with -1.

    Floyd's algorithm (Bentley and Floyd 1987), for all nodes at once: one number for each edge that is drawn, however
    many there are to choose from.
    """
    degree = graph.degree(nodes)
    many = degree > fanout if fanout > 0 else np.zeros(len(nodes), dtype=bool)
    places = [graph.rows(nodes[~many])[1]]
    if many.any():
        luck = draws.integers(0, 1 << 53, int(many.sum()), fanout)[0].numpy()
        chosen = np.full(luck.shape, -1)
        for i in range(fanout):
            last = degree[many] - fanout + i
            drawn = luck[:, i] % (last + 1)
            chosen[:, i] = np.where((chosen == drawn[:, None]).any(1), last, drawn)
        places.append((graph.pointers[nodes[many]][:, None] + chosen).ravel())
    return np.asarray(graph.sources[np.concatenate(places)]).astype(np.int64)


@register("view/drop_edges")
class DropEdges:
    """Leaves each edge out with a probability of its own draw (GRACE, Zhu et al. 2020; BGRL, Thakoor et al. 2022).

    Self loops among the edges are edges like any other; those that the tokenizer adds come afterwards and all stay.

    Args:
        ratio: probability that an edge is left out, in [0, 1).
        symmetric: whether both directions of an edge fare alike; the published codes draw for each direction.

    Raises:
        ValueError: for a ratio outside [0, 1).
    """

    def __init__(self, *, ratio: float, symmetric: bool = False) -> None:
        check_share("view/drop_edges: ratio", ratio)
        self.ratio, self.symmetric = ratio, symmetric

    def __call__(self, sample: Any, draws: Draws) -> Any:
        """The graph with the edges that are left, a new `Data`."""
        if isinstance(sample, Seed):  # joining samples says what is missing: view/neighbours
            return sample
        edges, unit = sample.edge_index, None
        if self.symmetric:
            pairs = edges.amin(0) * int(sample.num_nodes) + edges.amax(0)
            unit = torch.unique(pairs, return_inverse=True)[1]
        count = edges.shape[1] if unit is None else int(unit.max()) + 1 if len(unit) else 0
        kept = _luck(draws, "edges", count) >= self.ratio
        kept = (kept if unit is None else kept[unit]).nonzero().squeeze(1)
        made = copy.copy(sample)
        made.edge_index = edges[:, kept]
        if sample.get("edge_attr") is not None:
            made.edge_attr = sample.edge_attr[kept]
        return made


@register("view/drop_columns")
class DropColumns:
    """Sets whole columns of the nodes' features to zero, the same in all nodes of a graph (GRACE, BGRL).

    Args:
        ratio: probability of each column, in [0, 1).

    Raises:
        ValueError: for a ratio outside [0, 1), or graphs without features.
    """

    def __init__(self, *, ratio: float) -> None:
        check_share("view/drop_columns: ratio", ratio)
        self.ratio = ratio

    def __call__(self, sample: Any, draws: Draws) -> Any:
        """The graph with other features, a new `Data`."""
        if isinstance(sample, Seed):
            return sample
        if sample.get("x") is None:
            raise ValueError(
                "view/drop_columns: the graphs have no node features, and the degrees that stand for them are counted "
                "later; take view/drop_columns out of `views`, and drop edges only"
            )
        made = copy.copy(sample)
        made.x = sample.x * (_luck(draws, "columns", sample.x.shape[1]) >= self.ratio)
        return made


@register("view/normalize_features")
class NormalizeFeatures:
    """Divides the features of each node by their sum (of absolute values); nothing is drawn.

    For methods that drop columns of features that were normalised before, as GRACE and BGRL do. `tokenizer.normalize`
    does the same to what all views have made.
    """

    def __call__(self, sample: Any, draws: Draws) -> Any:
        """The graph with other features, a new `Data`; graphs without features pass."""
        if isinstance(sample, Seed) or sample.get("x") is None:
            return sample
        made, x = copy.copy(sample), sample.x.float()
        made.x = x / x.abs().sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        return made


def _luck(draws: Draws, name: str, count: int) -> torch.Tensor:
    """Uniform numbers of one sample, (count,): drawn for it alone, because every graph needs another count."""
    return Draws(draws.keys).named(name).uniform(count)[0]
