"""The user's own large graph, as plain arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.source import Adapter, Dataset, find_root
from mmssl.draws import Draws
from mmssl.modalities.graph.files import MASKS, from_arrays, node_labels, per_node, read_arrays
from mmssl.modalities.graph.large import Large
from mmssl.modalities.graph.splits import node_seeds, node_splits
from mmssl.registry import register

_NAMES = ("x", "edge_index", "edge_attr", "y", "num_nodes", *MASKS)


@register("source/graph")
class OwnGraph:
    """One large graph in a folder of `.npy` files, or in one `.npz` archive: labels and splits belong to nodes.

    Files, or arrays of the archive: `edge_index` (2, edges) of whole numbers, sources in the first row and targets in
    the second, an undirected edge in both directions; `x` (nodes, features), without which in-degrees are used;
    `edge_attr` (edges,) or (edges, features); `y` (nodes,) of classes from 0 on, -1 for none; `train_mask`,
    `val_mask` and `test_mask` (nodes,) of truth values. Only `edge_index` has to be there. With `y` but without masks
    `test_share` of each class is held out; with a `val_mask` or `test_mask` only, all other nodes are train.

    With `data.batch_size=full` the graph is read into memory. With a number, samples are seed nodes, and `.npy` files
    are mapped into memory: only the neighbourhoods that `view/neighbours` samples are read.

    Args:
        adapter: the modality.
        root: the folder, or the archive.
        test_share: share of each class that becomes the test split where there are labels but no masks.

    Raises:
        ValueError: for a share outside [0, 1).
    """

    unit = "token"

    def __init__(self, adapter: Adapter, *, root: str, test_share: float = 0.1) -> None:
        if not 0 <= test_share < 1:
            raise ValueError(f"data.source.test_share has to be at least 0 and below 1 (got {test_share})")
        self.root, self.test_share = root, test_share

    def splits(self) -> dict[str, Dataset]:
        """Train, val and test: the whole graph, with labels of their own nodes only.

        Raises:
            ValueError: naming the file, the array and what is wrong with it.
        """
        arrays, path = self._arrays()
        graph = from_arrays({key: value for key, value in arrays.items() if key != "y"}, str(path))
        y, masks, classes = self._labels(arrays, int(graph.num_nodes), path)
        if y is None:
            return node_splits(graph, None, None, path.stem)
        graph.update({f"{split}_mask": mask for split, mask in masks.items()})
        return node_splits(graph, y, classes, path.stem)

    def seeds(self) -> dict[str, Dataset]:
        """Train, val and test as seed nodes: all of them in train, those of their masks in val and test.

        Raises:
            ValueError: naming the file, the array and what is wrong with it.
        """
        arrays, path = self._arrays()
        large = Large.open(arrays, path) if path.is_dir() else Large.of(from_arrays(arrays, str(path)))
        y, masks, classes = self._labels(arrays, large.n, path)
        return node_seeds(large, y, masks, classes, path.stem)

    def _arrays(self) -> tuple[dict[str, np.ndarray], Path]:
        """The arrays, those of a folder mapped, and where they lie."""
        path = find_root(self.root)
        if path.is_file():
            if path.suffix != ".npz":
                raise ValueError(f"data.root={self.root} is no .npz archive; give one, or a folder of .npy files")
            try:
                return read_arrays(path.read_bytes()), path
            except ValueError as error:
                raise ValueError(f"data.root={self.root}: {error}") from error
        if not (path / "edge_index.npy").exists():
            archives = sorted(entry.name for entry in path.glob("**/*.npz"))
            hint = ""
            if archives:
                hint = f"; it holds {len(archives)} .npz: for many graphs, one a file, use data=folder"
                hint += f", for one graph data.root={path / archives[0]}" if len(archives) == 1 else ""
            raise ValueError(
                f"data.root={self.root} holds no edge_index.npy: a large graph is a folder of edge_index.npy, x.npy "
                f"and perhaps y.npy, train_mask.npy, val_mask.npy, test_mask.npy{hint}"
            )
        return {name: _map(path / f"{name}.npy") for name in _NAMES if (path / f"{name}.npy").exists()}, path

    def _labels(
        self, arrays: dict[str, np.ndarray], n: int, path: Path
    ) -> tuple[Tensor | None, dict[str, Tensor], list[str] | None]:
        """Labels, masks by split and names of classes; no labels, no masks."""
        masks = {key[:-5]: per_node(arrays[key], n, key, f"{path}: ") for key in MASKS if key in arrays}
        y = None if "y" not in arrays else node_labels(arrays["y"], n, f"{path}: ")
        if y is None or not bool((y >= 0).any()):
            return None, {}, None
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            both = int((masks[a] & masks[b]).sum()) if a in masks and b in masks else 0
            if both:
                raise ValueError(
                    f"{path}: {a}_mask and {b}_mask have {both} nodes in common; give every node to one split only"
                )
        if not masks:
            masks["test"] = held_out(y, self.test_share)
        if "train" not in masks:
            masks["train"] = ~torch.stack(list(masks.values())).any(0)
        return y, masks, [str(label) for label in range(int(y.max()) + 1)]


def held_out(y: Tensor, share: float) -> Tensor:
    """Nodes that are held out, (n,) bool: a share of each class, the same on every machine and for every seed.

    Of a class of at least two nodes one is held out at least, and one kept.
    """
    held = torch.zeros(len(y), dtype=torch.bool)
    keys = Draws.of(0, 0, torch.arange(len(y))).named("hold out").keys
    for label in y[y >= 0].unique() if share else ():
        places = (y == label).nonzero().squeeze(1)
        count = min(max(1, round(share * len(places))), len(places) - 1)
        held[places[torch.argsort(keys[places], stable=True)[:count]]] = True
    return held


def _map(path: Path) -> Any:
    """An array mapped into memory; an empty one cannot be, and is read."""
    try:
        head = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        try:
            head = np.load(path, allow_pickle=False)
            if head.size == 0:
                return head
        except (ValueError, OSError, EOFError):
            pass
        raise ValueError(
            f"{path} is not a readable array ({error}); it may be cut off, or hold Python objects: write it with "
            "numpy.save from an array of numbers"
        ) from error
    if not isinstance(head, np.ndarray):
        raise ValueError(f"{path} is an archive, not one array; write it with numpy.save")
    return head
