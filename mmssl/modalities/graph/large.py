"""One graph that is read by neighbourhoods: its edges sorted by target, its features where they lie."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.data.memory import cache_folder
from mmssl.data.source import digest, digest_file, stat
from mmssl.modalities.graph.files import check_arrays, check_finite

_log = logging.getLogger(__name__)
# A node with more than so many in-edges for each node asked about is searched, not read.
_HUB = 16


@dataclass(eq=False)
class Large:
    """A graph as in-edges of each node, ascending by source (compressed sparse rows).

    Args:
        n: number of nodes.
        pointers: where the in-edges of each node begin, (n + 1,) int64.
        sources: where each edge comes from, (e,).
        order: the place of each edge in `edge_attr`, (e,); None without attributes.
        x: features (n, v); None without.
        edge_attr: (e,) or (e, f); None without.
        filled: how many features are not zero.
        fingerprint: a digest of the content.
    """

    n: int
    pointers: np.ndarray
    sources: np.ndarray
    order: np.ndarray | None
    x: np.ndarray | None
    edge_attr: np.ndarray | None
    filled: int
    fingerprint: str

    @classmethod
    def of(cls, graph: Any) -> Large:
        """From a graph in memory, torch-geometric's `Data`."""
        parts = {key: graph[key].numpy() for key in ("edge_index", "x", "edge_attr") if graph.get(key) is not None}
        n, x, attributes = int(graph.num_nodes), parts.get("x"), parts.get("edge_attr")
        made = by_target(parts["edge_index"], n, attributes is not None)
        filled = 0 if x is None else int(np.count_nonzero(x))
        return cls(n, *made, x, attributes, filled, digest([str(n), *(part.tobytes() for part in parts.values())]))

    @classmethod
    def open(cls, arrays: Mapping[str, np.ndarray], folder: Path) -> Large:
        """From arrays mapped into memory, which stay so.

        Edges are checked and sorted once, which needs about five times the memory of `edge_index`, and kept in the
        cache folder, mapped into memory from then on. Features are looked through once.

        Args:
            arrays: see `mmssl.modalities.graph.files.from_arrays`.
            folder: where they lie, for messages and the cache.

        Raises:
            ValueError: naming the array and what is wrong with it.
        """
        names = sorted({"edge_index", "x", "edge_attr", "num_nodes"} & set(arrays))
        files = [folder / f"{name}.npy" for name in names]
        key = digest(["graph", str(folder.resolve()), *(f"{path.name}:{stat(path)}" for path in files)])
        kept = cache_folder() / f"{key}.graph"
        if not kept.exists():
            made, note = _sorted(arrays, f"{folder}: ")
            if not _write(kept, made, note):
                return cls._joined(made, note, arrays, files)
        made = {path.stem: np.load(path, mmap_mode="r") for path in kept.glob("*.npy")}
        return cls._joined(made, json.loads((kept / "note.json").read_text()), arrays, files)

    @classmethod
    def _joined(
        cls, made: dict[str, np.ndarray], note: dict[str, int], arrays: Mapping[str, np.ndarray], files: list[Path]
    ) -> Large:
        return cls(
            note["nodes"], made["pointers"], made["sources"], made.get("order"), arrays.get("x"),
            arrays.get("edge_attr"), note["filled"], digest([path.name + digest_file(path) for path in files]),
        )  # fmt: skip

    @property
    def mapped(self) -> bool:
        """Whether features are read from a file."""
        return isinstance(self.x, np.memmap)

    @property
    def features(self) -> int | None:
        """Width of the features; None without."""
        return None if self.x is None else int(self.x.shape[1])

    @property
    def edge_features(self) -> int:
        """Width of the edges' attributes, 0 without."""
        return 0 if self.edge_attr is None else 1 if self.edge_attr.ndim == 1 else int(self.edge_attr.shape[1])

    @cached_property
    def max_degree(self) -> int:
        """The largest in-degree."""
        return int(np.diff(self.pointers).max())

    @cached_property
    def apart(self) -> np.ndarray:
        """In-degrees without self loops, (n,)."""
        degree = np.diff(self.pointers)
        loops = self.sources == np.repeat(np.arange(self.n, dtype=self.sources.dtype), degree)
        return degree - np.bincount(self.sources[loops], minlength=self.n)

    def degree(self, nodes: np.ndarray) -> np.ndarray:
        """In-degrees of some nodes."""
        return np.asarray(self.pointers[nodes + 1] - self.pointers[nodes])

    def rows(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In-edges of some nodes: which of the nodes each leads to, and its place among all edges."""
        count = self.degree(nodes)
        owner = np.repeat(np.arange(len(nodes)), count)
        return owner, np.arange(len(owner)) + np.repeat(self.pointers[nodes] - (np.cumsum(count) - count), count)

    def among(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The edges among some nodes, numbered by their place in `nodes`, and their places among all edges.

        Returns:
            (2, e) int64 and (e,), by target, then by source.
        """
        order = np.argsort(nodes)
        ascending = nodes[order].astype(self.sources.dtype)
        hub = self.degree(nodes) > _HUB * len(nodes)
        ordinary = np.flatnonzero(~hub)
        owner, place = self.rows(nodes[ordinary])
        source = np.asarray(self.sources[place])
        near = np.minimum(np.searchsorted(ascending, source), len(nodes) - 1)
        inside = ascending[near] == source
        targets, found, places = [ordinary[owner[inside]]], [order[near[inside]]], [place[inside]]
        for i in np.flatnonzero(hub):  # its row is too long to be read, but it is sorted
            first, last = self.pointers[nodes[i]], self.pointers[nodes[i] + 1]
            row = self.sources[first:last]
            left = np.searchsorted(row, ascending)
            count = np.searchsorted(row, ascending, "right") - left
            found.append(np.repeat(order, count))
            targets.append(np.full(len(found[-1]), i))
            within = np.arange(len(found[-1])) - np.repeat(np.cumsum(count) - count, count)
            places.append(first + np.repeat(left, count) + within)
        target, source, place = (np.concatenate(parts) for parts in (targets, found, places))
        turn = np.lexsort((source, target))
        return np.stack([source[turn], target[turn]]), place[turn]

    def smoothed(self, node: int) -> np.ndarray:
        """Features of a node after two symmetric smoothings with self loops, (v,) float32; see the adapter."""
        nodes, weights = np.array([node]), np.ones(1)
        for _ in range(2):
            owner, place = self.rows(nodes)
            source = np.asarray(self.sources[place]).astype(np.int64)
            keep = source != nodes[owner]
            source, owner = np.concatenate([source[keep], nodes]), np.append(owner[keep], np.arange(len(nodes)))
            scale = (self.apart[source] + 1.0) * (self.apart[nodes[owner]] + 1.0)
            nodes, back = np.unique(source, return_inverse=True)
            weights = np.bincount(back, weights[owner] / np.sqrt(scale), len(nodes))
        x = np.ones((len(nodes), 1)) if self.x is None else np.asarray(self.x[nodes], dtype=np.float64)
        return (weights @ x).astype(np.float32)

    def __getstate__(self) -> dict[str, Any]:
        """Sends mapped arrays to another process as the paths of their files."""
        return {key: Path(value.filename) if isinstance(value, np.memmap) and value.filename else value
                for key, value in self.__dict__.items()}  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps the arrays again."""
        self.__dict__.update(
            {key: np.load(value, mmap_mode="r") if isinstance(value, Path) else value for key, value in state.items()}
        )


@dataclass(frozen=True)
class Seed:
    """A node of a large graph, before its neighbourhood is sampled.

    Args:
        graph: the large graph.
        node: the number of the node.
    """

    graph: Large
    node: int


def by_target(edges: np.ndarray, n: int, ordered: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Edges (2, e) as compressed rows: pointers, sources, and their places in the given order where asked."""
    kind = np.int32 if n < 2**31 else np.int64
    order = np.lexsort((edges[0], edges[1]))
    pointers = np.concatenate([[0], np.cumsum(np.bincount(edges[1], minlength=n))]).astype(np.int64)
    return pointers, edges[0][order].astype(kind), order if ordered else None


def _sorted(arrays: Mapping[str, np.ndarray], place: str) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Checked and sorted edges, and what was found out about the features."""
    n = check_arrays(arrays, place)
    filled = check_finite(arrays["x"], "x", place) if "x" in arrays else 0
    if "edge_attr" in arrays:
        check_finite(arrays["edge_attr"], "edge_attr", place)
    pointers, sources, order = by_target(np.asarray(arrays["edge_index"]), n, "edge_attr" in arrays)
    made = {"pointers": pointers, "sources": sources} | ({} if order is None else {"order": order})
    return made, {"nodes": n, "filled": filled}


def _write(folder: Path, made: dict[str, np.ndarray], note: dict[str, int]) -> bool:
    """Writes arrays as a folder that appears at once, so that processes that do the same do no harm."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".tmp"))
    except OSError as error:
        _log.warning("sorted edges are not kept for the next run: %s (set MMSSL_CACHE to another folder)", error)
        return False
    try:
        for name, array in made.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / "note.json").write_text(json.dumps(note))
        os.rename(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.exists():  # else another process was quicker
            _log.warning("sorted edges are not kept for the next run: %s (set MMSSL_CACHE to another folder)", error)
    return folder.exists()
