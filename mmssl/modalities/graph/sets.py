"""Graphs by name: Planetoid, the TU collection, and the sample shipped with mmssl."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.source import Adapter, Dataset, find_root
from mmssl.modalities.graph.large import Large
from mmssl.modalities.graph.splits import graph_splits, masks_of, node_seeds, node_splits
from mmssl.registry import register, suggest

_PLANETOID = {
    "cora": ("Cora", ["theory", "reinforcement learning", "genetic algorithms", "neural networks",
                      "probabilistic methods", "case based", "rule learning"]),
    "citeseer": ("CiteSeer", ["agents", "AI", "databases", "information retrieval", "machine learning", "HCI"]),
    "pubmed": ("PubMed", ["experimental diabetes", "diabetes type 1", "diabetes type 2"]),
}  # fmt: skip
_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
# All that the pickles of the Planetoid repository name.
_HARMLESS = {
    ("numpy", "dtype"), ("numpy", "ndarray"), ("numpy.core.multiarray", "_reconstruct"),
    ("scipy.sparse.csr", "csr_matrix"), ("collections", "defaultdict"), ("__builtin__", "list"), ("builtins", "list"),
}  # fmt: skip


@register("source/planetoid")
class Planetoid:
    """Citation networks Cora, CiteSeer and PubMed with the public split (Yang et al. 2016): one graph, labelled nodes.

    A sample is the whole graph; train, val and test differ in which nodes have labels: 20 of each class, 500 and 1,000.
    With a number as `data.batch_size` samples are seed nodes: all of them in train, those with labels in val and test.

    Args:
        adapter: the modality.
        root: folder with the files `ind.NAME.*`, or with NAME/raw or raw below it.
        name: cora, citeseer or pubmed.
        download: whether missing files are fetched to `root`.
    """

    unit = "token"

    def __init__(self, adapter: Adapter, *, root: str, name: str, download: bool = False) -> None:
        if name.lower() not in _PLANETOID:
            raise ValueError(f"data.source.name={name!r} is none of Planetoid's graphs{suggest(name, _PLANETOID)}")
        self.root, self.name, self.download = root, name.lower(), download

    def splits(self) -> dict[str, Dataset]:
        """Train, val and test: the same graph with other labels.

        Raises:
            ValueError: where files are missing, or are not those of Planetoid.
        """
        graph, y, classes = self._load()
        return node_splits(graph, y, classes, self.name)

    def seeds(self) -> dict[str, Dataset]:
        """Train, val and test as seed nodes; raises as `splits` does."""
        graph, y, classes = self._load()
        return node_seeds(Large.of(graph), y, masks_of(graph), classes, self.name)

    def _load(self) -> tuple[Any, Tensor, list[str]]:
        """The graph, its labels, and the names of the classes."""
        from torch_geometric.io import read_planetoid_data

        official, classes = _PLANETOID[self.name]
        if self.download:
            from torch_geometric.datasets import Planetoid as Official

            Official(self.root, official)
        folder = self._folder(official)
        for part in _PARTS[:-1]:
            refuse_code(folder / f"ind.{self.name}.{part}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph: Any = read_planetoid_data(str(folder), self.name)
        y = graph.y
        del graph.y
        return graph, y, classes

    def _folder(self, official: str) -> Path:
        root = find_root(self.root)
        for folder in (root, root / "raw", root / official / "raw", root / official, root / self.name / "raw"):
            if (folder / f"ind.{self.name}.graph").exists():
                missing = [part for part in _PARTS if not (folder / f"ind.{self.name}.{part}").exists()]
                if missing:
                    raise ValueError(f"data.root: {folder} lacks ind.{self.name}.{missing[0]}; copy all eight files")
                return folder
        raise ValueError(
            f"data.root={self.root} holds no {official}: expected ind.{self.name}.graph and the seven files beside it, "
            f"there, in raw/ or in {official}/raw/; data.source.download=true fetches them there"
        )


def refuse_code(path: Path) -> None:
    """Checks that a pickle names nothing but arrays and lists, before anything else reads it.

    Raises:
        ValueError: where it names anything else, or is none.
    """

    class Careful(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in _HARMLESS:
                raise ValueError(f"{path} is a pickle that calls {module}.{name}, which no file of Planetoid does")
            return super().find_class(module, name)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the files are older than the libraries that read them
            Careful(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError, ImportError, AttributeError) as error:
        raise ValueError(f"data.root: {path} is not a file of Planetoid, or is cut off ({error})") from error


@register("source/tu")
class TU:
    """A set of the TU collection (Morris et al. 2020), many labelled graphs: MUTAG, IMDB-BINARY, NCI1, PROTEINS, ...

    Node labels become one-hot features; sets without them have none, so that degrees are used. There is no official
    split: all graphs train, and a stratified part is held out from the labels of `train` as `test`.

    Args:
        adapter: the modality.
        root: folder with the files `NAME_A.txt` and so on, or with NAME/raw or raw below it.
        name: name of the set.
        test_share: share of each class that is held out.
        download: whether missing files are fetched to `root`.
    """

    def __init__(
        self, adapter: Adapter, *, root: str, name: str, test_share: float = 0.2, download: bool = False
    ) -> None:
        if not 0 < test_share < 1:
            raise ValueError(f"data.source.test_share has to lie between 0 and 1 (got {test_share})")
        self.root, self.name, self.test_share, self.download = root, name, test_share, download

    def splits(self) -> dict[str, Dataset]:
        """Train (all graphs) and test (a part of them).

        Raises:
            ValueError: where files are missing, or are no set of the collection.
        """
        from torch_geometric.data import Data
        from torch_geometric.io import read_tu_data

        if self.download:
            from torch_geometric.datasets import TUDataset

            TUDataset(self.root, self.name)
        folder = self._folder()
        joined: Any
        try:
            joined, slices, sizes = read_tu_data(str(folder), self.name)
        except (ValueError, IndexError, RuntimeError) as error:
            raise ValueError(f"data.root: the files {self.name}_*.txt in {folder} cannot be read ({error})") from error
        x, edges = joined.x, slices["edge_index"].tolist()
        if x is not None and sizes["num_node_labels"]:  # attributes stand before labels; published numbers use labels
            x = x[:, sizes["num_node_attributes"] :]
        counts = np.bincount(np.loadtxt(folder / f"{self.name}_graph_indicator.txt", dtype=np.int64) - 1)
        graphs, start = [], 0
        for i, count in enumerate(counts.tolist()):
            own = {} if x is None else {"x": x[start : start + count]}
            start += count
            own["edge_index"] = joined.edge_index[:, edges[i] : edges[i + 1]]
            graphs.append(Data(num_nodes=count, y=joined.y[i : i + 1], **own))
        return graph_splits(graphs, joined.y, None, self.name, self.test_share)

    def _folder(self) -> Path:
        root = find_root(self.root)
        for folder in (root, root / "raw", root / self.name / "raw", root / self.name):
            if (folder / f"{self.name}_A.txt").exists():
                return folder
        near = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
        raise ValueError(
            f"data.root={self.root} holds no {self.name}: expected {self.name}_A.txt there, in raw/ or in "
            f"{self.name}/raw/{suggest(self.name, near) if near else ''}; data.source.download=true fetches it there"
        )


@register("source/graph_sample")
class GraphSample:
    """The sample shipped with mmssl: the citation network Cora with its public split, 2,708 nodes of 7 classes."""

    unit = "token"

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def splits(self) -> dict[str, Dataset]:
        """Train, val and test: the same graph with other labels."""
        graph, y = self._load()
        return node_splits(graph, y, _PLANETOID["cora"][1], "sample")

    def seeds(self) -> dict[str, Dataset]:
        """Train, val and test as seed nodes: all of them in train, those with labels in val and test."""
        graph, y = self._load()
        return node_seeds(Large.of(graph), y, masks_of(graph), _PLANETOID["cora"][1], "sample")

    def _load(self) -> tuple[Any, Tensor]:
        """The graph and its labels."""
        from torch_geometric.data import Data

        with np.load(Path(__file__).parent / "sample" / "cora.npz", allow_pickle=False) as held:
            arrays = {name: torch.from_numpy(held[name].astype(np.int64)) for name in held.files}
        n, width = arrays["shape"].tolist()
        x = torch.zeros(n, width)
        x[torch.repeat_interleave(torch.arange(n), arrays["words"]), arrays["word"]] = 1.0
        pairs = arrays["pairs"]
        edges = torch.cat([pairs, pairs.flip(0)], 1)
        order = torch.argsort(edges[1] * n + edges[0])
        graph = Data(x=x, edge_index=edges[:, order])
        for split in ("train", "val", "test"):
            first, last = arrays[split].tolist()
            graph[f"{split}_mask"] = (torch.arange(n) >= first) & (torch.arange(n) < last)
        return graph, arrays["y"]
