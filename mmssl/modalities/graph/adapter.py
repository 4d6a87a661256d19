"""What generic data code knows of graphs: how they are decoded, joined, measured and shown."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.modalities.graph.files import from_arrays
from mmssl.modalities.graph.pictures import draw
from mmssl.modalities.graph.sparse import Adjacency, propagate
from mmssl.registry import register


@register("modality/graph")
class Graph:
    """The graph modality. A decoded sample is a `torch_geometric.data.Data` with `x` or without, and `edge_index`."""

    name = "graph"
    extensions = (".npz",)
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

        if len(samples) == 1:  # a new object about the same tensors, because `Data.to` changes its own
            parts = {
                key: samples[0][key] for key in ("x", "edge_index", "edge_attr") if samples[0].get(key) is not None
            }
            return Data(**parts, num_nodes=samples[0].num_nodes)
        widths = {None if sample.x is None else sample.x.shape[1] for sample in samples}
        if len(widths) > 1:
            raise ValueError(_widths(widths))
        counts = torch.tensor([sample.num_nodes for sample in samples])
        start = torch.cumsum(counts, 0) - counts
        edges = [sample.edge_index + offset for sample, offset in zip(samples, start.tolist(), strict=True)]
        parts = {} if samples[0].x is None else {"x": torch.cat([sample.x for sample in samples])}
        if all(sample.edge_attr is not None for sample in samples):
            parts["edge_attr"] = torch.cat([sample.edge_attr for sample in samples])
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
        nodes, edges, widths, edge_widths = [], [], set[int | None](), set[int]()
        degree, filled, cells = 0, 0, 0
        for sample in samples:
            nodes.append(int(sample.num_nodes))
            edges.append(int(sample.edge_index.shape[1]))
            widths.add(None if sample.x is None else int(sample.x.shape[1]))
            edge_widths.add(0 if sample.edge_attr is None else int(sample.edge_attr.reshape(edges[-1], -1).shape[1]))
            degree = max(degree, int(in_degrees(sample).max()))
            if sample.x is not None:
                filled, cells = filled + int(torch.count_nonzero(sample.x)), cells + sample.x.numel()
        if not nodes:
            raise ValueError("data.source gave no readable graph to measure; check data.root")
        if len(widths) > 1:
            raise ValueError(_widths(widths))
        return {
            "features": widths.pop() or 0,
            "edge_features": edge_widths.pop() if len(edge_widths) == 1 else 0,
            "max_degree": degree,
            "density": filled / cells if cells else 0.0,
            "nodes": [min(nodes), max(nodes)],
            "edges": [min(edges), max(edges)],
            "counted": len(nodes),
        }

    def baseline(self, sample: Any) -> Tensor:
        """The raw-input baseline.

        Of one large graph (a sample with `train_mask`) the nodes' features after two symmetric smoothings with self
        loops, (n, d). Of a small graph the number of nodes and edges, mean and deviation of the degrees, the shares
        of the degrees 0 to 9 and more, and the mean of the node features, (d,).
        """
        if sample.get("train_mask") is not None:
            return smoothed(sample, 2)
        degree = in_degrees(sample)
        histogram = torch.bincount(degree.clamp(max=10), minlength=11) / len(degree)
        size = torch.tensor(
            [len(degree), sample.edge_index.shape[1], degree.float().mean(), degree.float().std(correction=0)]
        )
        parts = [size, histogram] + ([] if sample.x is None else [sample.x.float().mean(0)])
        return torch.cat(parts)

    def picture(self, sample: Any) -> np.ndarray:
        """The graph to look at, (h, w, 3) uint8; of a large one the neighbourhood of a node."""
        return draw(sample)


def read_arrays(blob: bytes) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` archive; nothing is unpickled.

    Raises:
        ValueError: where the bytes are none, or hold Python objects.
    """
    import zipfile
    import zlib

    try:
        with np.load(io.BytesIO(blob), allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, AttributeError, KeyError, OSError) as error:
        raise ValueError(f"not a readable .npz archive of arrays ({error})") from error


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
