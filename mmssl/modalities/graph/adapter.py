"""What generic data code knows of graphs: how they are decoded, joined, measured and shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmssl.draws import Draws
from mmssl.modalities.graph.files import from_arrays, read_arrays
from mmssl.modalities.graph.large import Large, Seed
from mmssl.modalities.graph.linking import hide_links
from mmssl.modalities.graph.pictures import draw
from mmssl.modalities.graph.sparse import Adjacency, propagate
from mmssl.modalities.graph.views import Neighbours
from mmssl.registry import register

_PICTURE = (6, 5)  # in-edges of each node that a picture of a seed shows, by hop


@register("modality/graph")
class Graph:
    """The graph modality. A decoded sample is a `torch_geometric.data.Data` with `x` or without, and `edge_index`.

    Where nodes of one large graph are sampled it is a `Seed`, which `view/neighbours` turns into a `Data`.
    """

    name = "graph"
    extensions: tuple[str, ...] = (".npz",)
    measured = 20_000  # graphs are small, and the largest degree is not found in a part of them

    def decode(self, blob: bytes, channels: int | None = None) -> Any:
        """One graph from the bytes of an `.npz` file: see `mmssl.modalities.graph.files.from_arrays`.

        Raises:
            ValueError: where the bytes are no archive of arrays, or the arrays no graph.
        """
        return from_arrays(read_arrays(blob))

    def convert(self, sample: Any, channels: int) -> Any:
        """Refuses: nodes have features, not channels.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"data.channels={channels} means nothing for graphs; leave the key away")

    def collate(self, samples: Sequence[Any]) -> Any:
        """Joins graphs to one disconnected graph, a `torch_geometric.data.Batch`; one graph alone stays a `Data`.

        Raises:
            ValueError: where some graphs have node features and others none, or of another width.
        """
        from torch_geometric.data import Batch, Data

        if any(isinstance(sample, Seed) for sample in samples):
            raise ValueError(
                "data.batch_size is a number, so that samples are nodes of one large graph, but no view operation "
                "takes their neighbourhoods: put {_target_: view/neighbours} into `view` and into every one of "
                "`views`, or set data.batch_size=full"
            )
        if len(samples) == 1:  # a new object about the same tensors, because `Data.to` changes its own
            keys = ("x", "edge_index", "edge_attr", "degree")
            parts = {key: samples[0][key] for key in keys if samples[0].get(key) is not None}
            return Data(**parts, num_nodes=samples[0].num_nodes)
        widths = {None if sample.x is None else sample.x.shape[1] for sample in samples}
        if len(widths) > 1:
            raise ValueError(_widths(widths))
        counts = torch.tensor([sample.num_nodes for sample in samples])
        start = torch.cumsum(counts, 0) - counts
        edges = [sample.edge_index + offset for sample, offset in zip(samples, start.tolist(), strict=True)]
        parts = {} if samples[0].x is None else {"x": torch.cat([sample.x for sample in samples])}
        for key in ("edge_attr", "degree"):
            if all(sample.get(key) is not None for sample in samples):
                parts[key] = torch.cat([sample[key] for sample in samples])
        owner = torch.repeat_interleave(torch.arange(len(samples)), counts)
        return Batch(
            batch=owner, ptr=torch.cat([start, counts.sum().view(1)]), edge_index=torch.cat(edges, 1),
            num_nodes=len(owner), **parts,
        )  # fmt: skip

    def facts(self, samples: Iterable[Any]) -> dict[str, Any]:
        """Measures graphs one by one.

        Returns:
            `features`, the width of node features, 0 without; `edge_features`, likewise; `max_degree`, the largest
            in-degree; `density`, the share of node features that are not zero; `nodes` and `edges` as [smallest,
            largest]; `counted`, the number of graphs.

        Raises:
            ValueError: where graphs differ in their features, or there is none.
        """
        found: list[_Size] = []
        seen: Large | None = None
        for sample in samples:
            if isinstance(sample, Seed):  # the graph is measured once, not for every seed
                if sample.graph is seen:
                    continue
                seen = sample.graph
            found.append(_measure(sample))
        if not found:
            raise ValueError("data.source gave no readable graph to measure; check data.root")
        widths = {size.features for size in found}
        if len(widths) > 1:
            raise ValueError(_widths(widths))
        features, edge_widths = widths.pop() or 0, {size.edge_features for size in found}
        nodes, edges = [size.nodes for size in found], [size.edges for size in found]
        return {
            "features": features,
            "edge_features": edge_widths.pop() if len(edge_widths) == 1 else 0,
            "max_degree": max(size.degree for size in found),
            "density": sum(size.filled for size in found) / (sum(nodes) * features) if features else 0.0,
            "nodes": [min(nodes), max(nodes)],
            "edges": [min(edges), max(edges)],
            "counted": len(found),
        }

    def baseline(self, sample: Any) -> Tensor:
        """The raw-input baseline.

        Of one large graph (a sample with `train_mask`) the nodes' features after two symmetric smoothings with self
        loops, (n, d); of a seed node of it the node's own, (1, d). Of a small graph the number of nodes and edges,
        mean and deviation of the degrees, the shares of the degrees 0 to 9 and more, and the mean of the node
        features, (d,).
        """
        if isinstance(sample, Seed):
            return torch.from_numpy(sample.graph.smoothed(sample.node)).unsqueeze(0)
        if sample.get("train_mask") is not None:
            return smoothed(sample, 2)
        degree = in_degrees(sample)
        histogram = torch.bincount(degree.clamp(max=10), minlength=11) / len(degree)
        size = torch.tensor(
            [len(degree), sample.edge_index.shape[1], degree.float().mean(), degree.float().std(correction=0)]
        )
        parts = [size, histogram] + ([] if sample.x is None else [sample.x.float().mean(0)])
        return torch.cat(parts)

    def links(self, samples: Sequence[Any], shares: Sequence[float]) -> tuple[list[Any], list[list[Tensor]], Tensor]:
        """Graphs without some of their edges, for link prediction.

        Returns:
            The graphs and the pairs of nodes as `linking.hide_links` gives them, and the raw input of all nodes: their
            features after two smoothings along the edges that are left, (nodes, d).
        """
        graphs, pairs = hide_links(samples, shares)
        return graphs, pairs, torch.cat([smoothed(graph, 2) for graph in graphs])

    def picture(self, sample: Any) -> np.ndarray:
        """The graph to look at, (h, w, 3) uint8; of a large one the neighbourhood of a node."""
        if isinstance(sample, Seed):
            sample = Neighbours(fanout=_PICTURE)(sample, Draws.of(0, 0, torch.tensor([sample.node])))
        return draw(sample)


class _Size(NamedTuple):
    nodes: int
    edges: int
    features: int | None
    edge_features: int
    degree: int
    filled: int


def _measure(sample: Any) -> _Size:
    """Sizes of a graph, or of the large graph of a seed."""
    if isinstance(sample, Seed):
        large = sample.graph
        return _Size(large.n, len(large.sources), large.features, large.edge_features, large.max_degree, large.filled)
    return _Size(
        int(sample.num_nodes),
        int(sample.edge_index.shape[1]),
        None if sample.x is None else int(sample.x.shape[1]),
        0 if sample.edge_attr is None else sample.edge_attr.shape[1:].numel(),
        int(in_degrees(sample).max()),
        0 if sample.x is None else int(torch.count_nonzero(sample.x)),
    )


def in_degrees(sample: Any) -> Tensor:
    """Edges that lead to each node, (n,) int64."""
    return torch.bincount(sample.edge_index[1], minlength=int(sample.num_nodes))


def smoothed(sample: Any, times: int) -> Tensor:
    """Node features (n, d) after products with the symmetrically normalised adjacency matrix with self loops."""
    n = int(sample.num_nodes)
    source, target = sample.edge_index
    apart, loop = source != target, torch.arange(n)
    links = Adjacency.of(torch.cat([target[apart], loop]), torch.cat([source[apart], loop]), (n, n))
    degree = torch.bincount(links.row, minlength=n).float()
    scale = degree.rsqrt()
    x = torch.ones(n, 1) if sample.x is None else sample.x.float()
    for _ in range(times):
        x = propagate(scale[links.row] * scale[links.col], x, links)
    return x


def _widths(widths: set[int | None]) -> str:
    told = ", ".join(sorted("none" if width is None else str(width) for width in widths))
    return (
        f"graphs differ in their number of node features ({told}); give every graph the same `x` columns, or none, "
        "so that degrees are used"
    )
