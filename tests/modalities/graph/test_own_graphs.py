"""The user's own graphs: one large one, many small ones, and everything that can be wrong with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmssl.config import build
from mmssl.config.compose import compose
from mmssl.data.folder import Folder
from mmssl.data.module import Data
from mmssl.data.skipped import Unreadable
from mmssl.modalities.graph.adapter import Graph
from mmssl.modalities.graph.encoders import GAT
from mmssl.modalities.graph.own import OwnGraph
from mmssl.modalities.graph.tokenizer import GraphTokenizer
from mmssl.types import View
from tests.modalities.graph.small_graphs import arrays_of, classes, directed, masks, undirected, write


def own(root: Any, **said: Any) -> OwnGraph:
    return OwnGraph(Graph(), root=str(root), **said)


def labels(dataset: Any) -> list[int]:
    return dataset.labels.flatten().tolist()


def test_a_folder_and_an_archive_are_the_same_graph(tmp_path: Any) -> None:
    """Values, labels outside the split -1, and the classes."""
    arrays = arrays_of(directed())
    np.savez(tmp_path / "g.npz", **arrays)
    for root in (write(tmp_path / "folder", **arrays), tmp_path / "g.npz"):
        splits = own(root).splits()
        assert own(root).unit == "token" and set(splits) == {"train", "val", "test"}
        for split, dataset in splits.items():
            graph = dataset.read(0)
            assert np.array_equal(graph.x, arrays["x"]) and np.array_equal(graph.edge_index, arrays["edge_index"])
            assert dataset.classes == ["0", "1", "2"] and dataset.labels is not None and dataset.labels.shape == (1, 40)
            assert labels(dataset) == np.where(masks()[f"{split}_mask"], classes(), -1).tolist()
        seeds = own(root).seeds()
        assert labels(seeds["train"]) == labels(splits["train"]) and labels(seeds["val"]) == classes()[20:30].tolist()


def test_labels_without_masks_hold_a_share_of_each_class_out(tmp_path: Any) -> None:
    arrays = arrays_of(directed())
    bare = {key: arrays[key] for key in ("x", "edge_index", "y")}
    splits = own(write(tmp_path / "g", **bare), test_share=0.25).splits()
    train, test = (np.array(labels(splits[name])) for name in ("train", "test"))
    assert set(splits) == {"train", "test"} and not ((train >= 0) & (test >= 0)).any()
    assert np.array_equal(np.maximum(train, test), classes())
    counts = np.bincount(classes()[classes() >= 0])
    assert np.bincount(test[test >= 0]).tolist() == [round(0.25 * count) for count in counts]
    only = own(write(tmp_path / "h", **bare, val_mask=masks()["val_mask"])).splits()
    assert set(only) == {"train", "val"} and (np.array(labels(only["train"])) >= 0).sum() == 36 - 9


@pytest.mark.parametrize("form", ["splits", "seeds"])
def test_graphs_without_labels_or_features(tmp_path: Any, form: str) -> None:
    graph = directed()
    splits = getattr(own(write(tmp_path / "g", edge_index=graph.edge_index.numpy(), num_nodes=np.array(40))), form)()
    assert set(splits) == {"train"} and splits["train"].labels is None
    facts = Graph().facts([splits["train"].read(0)])
    assert (facts["features"], facts["nodes"]) == (0, [40, 40])
    unknown = {"edge_index": graph.edge_index.numpy(), "x": graph.x.numpy(), "y": np.full((40, 1), np.nan)}
    assert set(getattr(own(write(tmp_path / "h", **unknown)), form)()) == {"train"}


def with_nan(array: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(array))[:, None] == 7, np.nan, array)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "range": ({"edge_index": np.array([[0, 1], [1, 40]])}, r"edge_index names node 40, but there are 40 nodes"),
    "negative": ({"edge_index": np.array([[0, -2], [1, 3]])}, r"edge_index names node -2"),
    "floats": ({"edge_index": np.array([[0.0], [1.0]])}, r"edge_index has to be .* whole numbers .*float64\); cast"),
    "turned": ({"edge_index": np.zeros((5, 2), int)}, r"edge_index has to be of shape \(2, edges\).*transpose"),
    "empty": ({"x": np.zeros((0, 3)), "edge_index": np.zeros((2, 0), int)}, r"the graph is empty"),
    "nan": ({"x": with_nan(arrays_of(directed())["x"])}, r"x holds values that are not finite, first in node 7; fill"),
    "flat": ({"x": np.zeros(40)}, r"x has to be of shape \(nodes, features\)"),
    "words": ({"x": np.full((40, 1), "a")}, r"x has to be of shape \(nodes, features\) and of numbers"),
    "count": ({"num_nodes": np.array(41)}, r"x has 40 rows, but num_nodes is 41"),
    "counts": ({"num_nodes": np.array(4.5)}, r"num_nodes has to be one whole number"),
    "attributes": ({"edge_attr": np.zeros((3, 2))}, r"edge_attr has to hold numbers, one row for each of the 112 edges"),
    "attribute": ({"edge_attr": np.full(112, np.inf)}, r"edge_attr holds values that are not finite, first in edge 0"),
    "mask": ({"val_mask": np.ones(39, bool)}, r"val_mask has to be true or false for each of the 40 nodes"),
    "numbers": ({"test_mask": np.arange(40)}, r"test_mask has to be .*mask = numpy.zeros\(40, bool\); mask\[numbers\]"),
    "overlap": ({"test_mask": np.ones(40, bool)}, r"train_mask and test_mask have 20 nodes in common"),
    "labels": ({"y": np.zeros(39, int)}, r"y has to be one whole number for each of the 40 nodes"),
    "targets": ({"y": np.full(40, 0.5)}, r"y holds 0.5, which is no class.*Turn a continuous target"),
}  # fmt: skip
FILES = ("mask", "numbers", "overlap", "labels", "targets")  # of the one large graph only


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("form", ["splits", "seeds"])
def test_what_is_wrong_is_named(tmp_path: Any, what: str, form: str) -> None:
    """The file, the array and the remedy, from a folder and from an archive."""
    changes, message = BAD[what]
    arrays = arrays_of(directed()) | changes
    np.savez(tmp_path / "mine.npz", **arrays)
    for root, name in ((write(tmp_path / "mine", **arrays), "mine: "), (tmp_path / "mine.npz", "mine.npz: ")):
        with pytest.raises(ValueError, match=rf"{name}{message}"):
            getattr(own(root), form)()
    if what not in FILES:
        with pytest.raises(ValueError, match=message):
            Graph().decode((tmp_path / "mine.npz").read_bytes())


def test_broken_files_and_wrong_places(tmp_path: Any) -> None:
    root = write(tmp_path / "g", **arrays_of(directed()))
    whole = (root / "x.npy").read_bytes()
    for content in (whole[:200], whole[:40], b"", b"no array"):
        (root / "x.npy").write_bytes(content)
        for form in ("splits", "seeds"):
            with pytest.raises(ValueError, match=r"x\.npy is not a readable array .*cut off.*numpy\.save"):
                getattr(own(root), form)()
    np.save(root / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"x\.npy is not a readable array .*Python objects"):
        own(root).splits()
    (tmp_path / "many").mkdir()
    np.savez(tmp_path / "many" / "one.npz", **arrays_of(directed()))
    with pytest.raises(ValueError, match=r"holds no edge_index\.npy.*data=folder, for one graph data\.root=.*one\.npz"):
        own(tmp_path / "many").splits()
    with pytest.raises(ValueError, match=r"is no \.npz archive"):
        own(root / "y.npy").splits()
    with pytest.raises(ValueError, match=r"data\.source\.test_share"):
        own(root, test_share=1.0)


def test_no_truncated_archive_passes(tmp_path: Any) -> None:
    """Cut at many places, compressed or not, never anything but a ValueError that names archive and remedy."""
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "g.npz", **arrays_of(directed()))
        whole = (tmp_path / "g.npz").read_bytes()
        for end in range(0, len(whole) - 1, 97):
            with pytest.raises(ValueError, match=r"not a readable \.npz archive.*numpy\.savez"):
                Graph().decode(whole[:end])
    np.save(tmp_path / "lone.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    for name in ("lone.npy", "objects.npz"):
        with pytest.raises(ValueError, match=r"not a readable \.npz archive"):
            Graph().decode((tmp_path / name).read_bytes())
    (tmp_path / "g.npz").write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=r"data\.root=.*g\.npz: not a readable"):
        own(tmp_path / "g.npz").splits()


def test_nodes_without_edges_are_encoded() -> None:
    """A graph of lone nodes, and lone nodes in a batch: self loops keep every feature finite."""
    lone, graph = directed(), undirected(6, 10, width=5)
    lone.edge_index = torch.zeros(2, 0, dtype=torch.int64)
    tokenizer = GraphTokenizer(Graph().facts([lone, graph]))
    for graphs in ([lone], [graph, lone]):
        tokens = GAT(tokenizer.spec, dim=8)(tokenizer(View(Graph().collate(graphs), "graph")))
        assert tokens.x is not None and bool(torch.isfinite(tokens.x).all())
    assert torch.isfinite(Graph().baseline(lone)).all()
    assert Graph().decode(_bytes(lone)).num_nodes == 40


def _bytes(graph: Any) -> bytes:
    import io

    content = io.BytesIO()
    np.savez(content, x=graph.x.numpy(), edge_index=graph.edge_index.numpy())
    return content.getvalue()


def many(folder: Any, count: int = 12) -> Any:
    """A folder of two classes of graphs."""
    for i in range(count):
        path = folder / ("ring" if i % 2 else "star") / f"{i:02}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_bytes(undirected(5 + i, 20, i)))
    return folder


def test_many_graphs_are_a_folder_of_files(tmp_path: Any) -> None:
    """`data=folder` reads one graph a file, with classes as subfolders and splits as it finds them."""
    tree = compose("graph/graphmae", ["data=folder", f"data.root={many(tmp_path / 'd')}", "data.batch_size=4"])
    held = build.data(tree)
    assert held.unit == "sample" and {name: len(d) for name, d in held.splits.items()} == {"train": 10, "test": 2}
    assert held.splits["train"].classes == ["ring", "star"] and held.facts()["features"] == 4
    batch = next(iter(held.train_dataloader()))
    assert batch["x"].data.num_graphs == 4 and batch["label"].shape == (4,)


@pytest.mark.parametrize("said", ["full", "8"])
def test_data_graph_composes(tmp_path: Any, said: str) -> None:
    """`data=graph` with the whole graph in a step, or with seed nodes, whose neighbourhoods the recipe takes by itself."""
    root = write(tmp_path / "mine", **arrays_of(directed()))
    tree = compose("graph/graphmae", ["data=graph", f"data.root={root}", f"data.batch_size={said}"])
    held = build.data(tree)
    for batch in (next(iter(held.train_dataloader())), next(iter(held.eval_loader("test")))):
        data, places = batch["x"].data, batch["label"].shape
        if said == "full":
            assert held.unit == "token" and data.num_nodes == 40 and places == (1, 40)
        else:
            assert held.unit == "token" and data.num_graphs == 8 and places == (8, 1)


def test_bad_files_are_skipped_and_counted(tmp_path: Any) -> None:
    """One truncated file and one of a wrong range: batches stay full, both are listed; one is an error where none is allowed, as soon as 20 samples were read."""
    root = many(tmp_path / "d", 24)
    whole = (root / "star" / "22.npz").read_bytes()
    (root / "star" / "22.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(root / "ring" / "07.npz", x=np.zeros((3, 4)), edge_index=np.array([[0], [3]]))

    def data(share: float) -> Data:
        return Data(
            Graph(), 0, source=lambda adapter: Folder(adapter, root=str(root), test_share=0), views={"x": []}, view=[],
            batch_size=6, workers=0, bad_share=share,
        )  # fmt: skip

    held = data(0.2)
    assert held.facts()["counted"] == 22
    assert [batch["x"].data.num_graphs for batch in held.train_dataloader()] == [6] * 4
    assert sorted(held.skipped) == ["ring/07.npz", "star/22.npz"]
    with pytest.raises(
        Unreadable,
        match=r"2 of 24 samples cannot be read: ring/07\.npz, star/22\.npz\. The reason for ring/07\.npz: edge_index names",
    ):
        data(0.0).facts()
