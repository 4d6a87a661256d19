"""Small graphs that the tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

torch.set_num_threads(1)  # everything is small: threads would only wait for one another


def directed(n: int = 40, width: int = 5, seed: int = 0, edges: int = 110) -> Any:
    """A random graph: edges one way, one of them twice, a self loop; the last node has none."""
    from torch_geometric.data import Data

    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(0, n - 1, (2, edges), generator=generator)
    pairs = torch.cat([pairs, pairs[:, :1], torch.tensor([[3], [3]])], 1)
    return Data(x=torch.randn(n, width, generator=generator), edge_index=pairs, num_nodes=n)


def undirected(n: int = 20, pairs: int = 40, seed: int = 0, width: int = 4) -> Any:
    """A random graph with every edge in both directions, in a random order, and no self loops."""
    from torch_geometric.data import Data

    generator = torch.Generator().manual_seed(seed)
    one = torch.randint(0, n, (2, pairs), generator=generator)
    one = torch.stack([one.amin(0), one.amax(0)])[:, one[0] != one[1]].unique(dim=1)
    both = torch.cat([one, one.flip(0)], 1)
    both = both[:, torch.randperm(both.shape[1], generator=generator)]
    return Data(x=torch.randn(n, width, generator=generator), edge_index=both, num_nodes=n)


def classes(n: int = 40) -> np.ndarray:
    """Labels 0, 1, 2 in turn; every tenth node has none."""
    return np.where(np.arange(n) % 10 == 9, -1, np.arange(n) % 3)


def masks(n: int = 40) -> dict[str, Any]:
    """The first half trains, then val, then test."""
    place = np.arange(n)
    return {
        "train_mask": place < n // 2,
        "val_mask": (place >= n // 2) & (place < n - 10),
        "test_mask": place >= n - 10,
    }


def write(folder: Path, **arrays: Any) -> Path:
    """A folder of .npy files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def arrays_of(graph: Any) -> dict[str, Any]:
    """The arrays of a graph, with labels and masks."""
    n = int(graph.num_nodes)
    return {"x": graph.x.numpy(), "edge_index": graph.edge_index.numpy(), "y": classes(n)} | masks(n)
