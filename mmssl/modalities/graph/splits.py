"""Data sets of graphs: many of them, or one whose nodes have labels, whole or by seed nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmssl.data.source import Dataset, digest
from mmssl.modalities.graph.large import Large, Seed


class Graphs:
    """Graphs in memory.

    Args:
        samples: torch-geometric's `Data`.
        labels: (graphs,) int64, or (graphs, nodes) for labels of nodes; None without.
        classes: names of the labels.
        origin: name for messages: `cora/train`.
    """

    in_memory = True

    def __init__(self, samples: list[Any], labels: Tensor | None, classes: list[str] | None, origin: str) -> None:
        self.samples, self.labels, self.classes, self.origin = samples, labels, classes, origin

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, i: int) -> Any:
        """The i-th graph itself, not a copy."""
        return self.samples[i]

    def name(self, i: int) -> str:
        """The set and the graph's place in it."""
        return f"{self.origin}[{i}]"

    def fingerprint(self) -> str:
        """Digest of all edges, features and labels."""
        parts: list[bytes] = [] if self.labels is None else [self.labels.numpy().tobytes()]
        for sample in self.samples:
            parts += [value.numpy().tobytes() for value in (sample.edge_index, sample.x) if value is not None]
        return digest(parts)

    def cache_key(self) -> None:
        """Nothing: the graphs are decoded already."""


def node_splits(graph: Any, y: Tensor | None, classes: list[str] | None, origin: str) -> dict[str, Dataset]:
    """The splits of one large graph: each is the whole graph, with labels of its own nodes only, (1, nodes).

    Args:
        graph: with `train_mask`, `val_mask` and `test_mask`, or some of them.
        y: (nodes,) int64; None without labels, and then all is train.
        classes: names of the labels.
        origin: for messages.
    """
    if y is None:
        return {"train": Graphs([graph], None, None, f"{origin}/train")}
    return {
        split: Graphs([graph], torch.where(mask, y, -1).unsqueeze(0), classes, f"{origin}/{split}")
        for split, mask in masks_of(graph).items()
        if split == "train" or bool(mask.any())
    }


class Seeds:
    """Nodes of one large graph. A sample is a light `Seed`; `view/neighbours` makes a small graph of it.

    Args:
        graph: the large graph.
        nodes: the seeds, (n,) int64; None for all nodes.
        labels: (n,) int64, -1 where there is none; None without.
        classes: names of the labels.
        origin: name for messages: `cora/train`.
    """

    def __init__(
        self, graph: Large, nodes: Tensor | None, labels: Tensor | None, classes: list[str] | None, origin: str
    ) -> None:
        self.graph, self.nodes, self.classes, self.origin = graph, nodes, classes, origin
        self.labels = None if labels is None else labels.unsqueeze(1)
        self.in_memory = not graph.mapped

    def __len__(self) -> int:
        return self.graph.n if self.nodes is None else len(self.nodes)

    def node(self, i: int) -> int:
        """The number of the i-th seed in the graph."""
        return i if self.nodes is None else int(self.nodes[i])

    def read(self, i: int) -> Seed:
        """The i-th seed; nothing is read yet."""
        return Seed(self.graph, self.node(i))

    def name(self, i: int) -> str:
        """The set and the number of the node."""
        return f"{self.origin}[node {self.node(i)}]"

    def fingerprint(self) -> str:
        """Digest of the graph, the seeds and their labels."""
        parts = [part.numpy().tobytes() for part in (self.nodes, self.labels) if part is not None]
        return digest([self.graph.fingerprint, str(len(self)), *parts])

    def cache_key(self) -> None:
        """Nothing: a seed is a number."""


def node_seeds(
    graph: Large, y: Tensor | None, masks: Mapping[str, Tensor], classes: list[str] | None, origin: str
) -> dict[str, Dataset]:
    """The splits of one large graph by seed nodes.

    All nodes train, for what is learned needs no labels; labels are known to the splits of their own nodes only.

    Args:
        graph: the large graph.
        y: (nodes,) int64; None without labels, and then all is train.
        masks: `train`, `val` and `test` as (nodes,) bool, or some of them.
        classes: names of the labels.
        origin: for messages.
    """
    if y is None:
        return {"train": Seeds(graph, None, None, None, f"{origin}/train")}
    learnt = torch.where(masks["train"], y, -1)
    found: dict[str, Dataset] = {"train": Seeds(graph, None, learnt, classes, f"{origin}/train")}
    for split in ("val", "test"):
        nodes = masks[split].nonzero().squeeze(1) if split in masks else None
        if nodes is not None and len(nodes):
            found[split] = Seeds(graph, nodes, y[nodes], classes, f"{origin}/{split}")
    return found


def masks_of(graph: Any) -> dict[str, Tensor]:
    """The masks of a graph by split."""
    held = {split: graph.get(f"{split}_mask") for split in ("train", "val", "test")}
    return {split: mask for split, mask in held.items() if mask is not None}


def graph_splits(
    graphs: list[Any], y: Tensor, classes: list[str] | None, origin: str, share: float
) -> dict[str, Dataset]:
    """The splits of many graphs: all of them train, without the labels of a stratified part that is held out.

    Graphs without labels still teach: methods that are scored by cross-validation over all graphs are trained on all.

    Args:
        graphs: all graphs.
        y: (graphs,) int64, 0 to classes - 1.
        classes: names of the labels.
        origin: for messages and the choice.
        share: share of each class that is held out.
    """
    held = torch.zeros(len(y), dtype=torch.bool)
    ranks = torch.tensor([int(digest([f"{origin}[{i}]"])[:15], 16) for i in range(len(y))])
    for label in y.unique():
        places = (y == label).nonzero().squeeze(1)
        held[places[torch.argsort(ranks[places])[: round(share * len(places))]]] = True
    train = Graphs(graphs, torch.where(held, -1, y), classes, f"{origin}/train")
    chosen = held.nonzero().squeeze(1)
    test = Graphs([graphs[i] for i in chosen.tolist()], y[chosen], classes, f"{origin}/test")
    return {"train": train, "test": test}
