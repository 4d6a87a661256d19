"""Sets of clouds, the generated sample, and what the adapter makes of samples."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from mmssl.config import build
from mmssl.config.compose import compose
from mmssl.data.skipped import Unreadable
from mmssl.modalities.pointcloud.adapter import PointCloud
from mmssl.modalities.pointcloud.generated import CLASSES, generate
from mmssl.modalities.pointcloud.mesh import Mesh, Shown
from mmssl.modalities.pointcloud.sets import CloudFiles, PointCloudSample

torch.set_num_threads(1)  # everything is small: threads would only wait for one another

ADAPTER = PointCloud()
TETRAHEDRON = Mesh(torch.eye(4)[:, :3], torch.tensor([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]))


def clouds(n, p=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, p, 3)).astype(np.float32)


def splits(root, **said):
    return CloudFiles(ADAPTER, root=str(root), **said).splits()


def test_splits_in_one_file(tmp_path):
    train, test = clouds(6).astype(np.float16), clouds(3, seed=1).astype(np.float16)
    np.savez(
        tmp_path / "points_1024.npz", train_points=train, train_labels=np.arange(6) % 2, test_points=test,
        test_labels=np.zeros(3, np.uint8), train_files=np.array(["a"] * 6), classes=np.array(["cat", "dog"]),
    )  # fmt: skip
    for root in (tmp_path, tmp_path / "points_1024.npz"):
        found = splits(root)
        assert {name: len(d) for name, d in found.items()} == {"train": 6, "test": 3}
        assert found["train"].classes == ["cat", "dog"] and found["train"].labels.tolist() == [0, 1, 0, 1, 0, 1]
        read = found["test"].read(2)
        assert read.dtype == torch.float32 and np.array_equal(read.numpy(), test[2].astype(np.float32))


def test_named_labels_and_per_point_labels(tmp_path):
    """COSEG: the category of each cloud beside the part of each point."""
    file = tmp_path / "set.npz"
    np.savez(
        file, train_points=clouds(4), train_category=np.arange(4), train_part=np.ones((4, 16), np.uint8),
        test_points=clouds(2), test_category=np.arange(2), test_part=np.ones((2, 16), np.uint8),
        categories=np.array(list("abcd")),
    )  # fmt: skip
    found = splits(file, label="category")["train"]
    assert found.labels.tolist() == [0, 1, 2, 3] and found.classes == list("abcd")
    with pytest.raises(ValueError, match=r"data.source.label='categry'.*no array 'train_categry'; did you mean"):
        splits(file, label="categry")
    with pytest.raises(ValueError, match=r"one whole number per cloud, 4"):
        splits(file, label="part")


def test_modelnet_layout(tmp_path):
    parts = {"train0": clouds(3), "train1": clouds(2, seed=1), "test0": clouds(2, seed=2)}
    for name, data in parts.items():
        with h5py.File(tmp_path / f"ply_data_{name}.h5", "w") as held:
            held["data"], held["label"] = data, np.arange(len(data), dtype=np.uint8)[:, None]
            held["normal"] = data
    (tmp_path / "shape_names.txt").write_text("airplane\nbathtub\nbed\n")
    found = splits(tmp_path)
    assert len(found["train"]) == 5 and found["train"].labels.tolist() == [0, 1, 2, 0, 1]
    assert found["train"].classes == ["airplane", "bathtub", "bed"]
    assert np.array_equal(found["train"].read(3).numpy(), parts["train1"][0])


def test_one_split_is_held_out_and_labels_are_optional(tmp_path):
    np.savez(tmp_path / "labelled.npz", points=clouds(20), labels=np.arange(20) % 2)
    found = splits(tmp_path / "labelled.npz", test_share=0.2)
    assert (len(found["train"]), len(found["test"])) == (16, 4) and found["train"].classes == ["0", "1"]
    np.savez(tmp_path / "bare.npz", clouds(5))
    found = splits(tmp_path / "bare.npz")
    assert set(found) == {"train"} and found["train"].labels is None


def test_what_is_no_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is no file of clouds and holds none.*data=folder"):
        splits(tmp_path)
    np.savez(tmp_path / "flat.npz", points=clouds(2)[0])
    with pytest.raises(ValueError, match=r"no array \(clouds, points, 3\)"):
        splits(tmp_path)
    (tmp_path / "flat.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"flat.npz cannot be read"):
        splits(tmp_path)
    (tmp_path / "flat.npz").unlink()
    np.savez(tmp_path / "test.npz", points=clouds(2))
    with pytest.raises(ValueError, match=r"no train split, only test"):
        splits(tmp_path)
    np.savez(tmp_path / "train_a.npz", points=clouds(2))
    np.savez(tmp_path / "train_b.npz", points=clouds(2, 20))
    with pytest.raises(ValueError, match=r"16 and 20 points"):
        splits(tmp_path)


def loader(root, *more):
    tree = compose("pointcloud/point_mae", [f"data.root={root}", "data.batch_size=4", "data.workers=0", *more])
    return build.data(tree)


def test_clouds_with_nan_are_skipped_counted_and_listed(tmp_path):
    points = clouds(20)
    points[[3, 19], 2, 1] = np.nan
    np.savez(tmp_path / "train.npz", points=points)
    data = loader(tmp_path, "data=clouds", "data.size=16", "data.bad_share=0.2")
    batch = data.batch([(0, i) for i in range(8)])
    assert batch["id"].tolist() == [0, 1, 2, 4, 4, 5, 6, 7] and batch["bad"] == [f"{tmp_path.name}/train[3]"]
    assert data.facts()["points"] == [16, 16] and len(data.skipped) == 2
    strict = loader(tmp_path, "data=clouds", "data.size=16")
    with pytest.raises(Unreadable, match=r"2 of 20 samples.*train\[3\].*not finite"):
        strict.facts()


def test_a_folder_of_meshes_and_clouds(tmp_path):
    for kind in ("cube", "tetra"):
        (tmp_path / kind).mkdir()
        for i in range(5):
            np.savez(
                tmp_path / kind / f"{i}.npz", vertices=TETRAHEDRON.vertices.numpy() * (i + 1),
                faces=TETRAHEDRON.faces.numpy(),
            )  # fmt: skip
    np.save(tmp_path / "tetra" / "few.npy", clouds(1, 30)[0])
    np.save(tmp_path / "tetra" / "many.npy", clouds(1, 80)[0])
    data = loader(tmp_path, "data=folder", "data.size=64", "data.bad_share=0.5", "data.source.test_share=0")
    facts = data.facts()
    assert (facts["meshes"], facts["counted"], facts["points"]) == (10, 12, [30, 80])
    batch = data.batch([(0, i) for i in range(12)])
    assert batch["x"].data.shape == (12, 64, 3) and batch["bad"] == ["tetra/few.npy"]  # replaced by the next one


def test_batches_of_unequal_clouds_or_meshes_say_what_to_do():
    with pytest.raises(ValueError, match=r"clouds of 3 to 5 points.*view/sample_points"):
        ADAPTER.collate([torch.zeros(3, 3), torch.zeros(5, 3)])
    with pytest.raises(ValueError, match=r"meshes.*view/sample_points"):
        ADAPTER.collate([TETRAHEDRON])
    assert ADAPTER.collate([torch.zeros(4, 3), torch.ones(4, 3)]).shape == (2, 4, 3)
    assert ADAPTER.convert(TETRAHEDRON, 3) is TETRAHEDRON
    with pytest.raises(ValueError, match=r"data.channels=6"):
        ADAPTER.convert(torch.zeros(3, 3), 6)


def test_facts():
    square = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 4, 0], [0, -4, 0]])
    facts = ADAPTER.facts([square, square[:2] + 9, TETRAHEDRON])
    assert facts == {"channels": 3, "points": [2, 4], "meshes": 1, "extent": 4.0, "counted": 3}
    assert ADAPTER.facts([TETRAHEDRON])["points"] is None
    with pytest.raises(ValueError, match=r"no readable cloud"):
        ADAPTER.facts([])


def test_the_baseline_is_the_histogram_of_distances():
    points = torch.from_numpy(clouds(1, 300)[0])
    made = ADAPTER.baseline(points)
    unit = points - points.mean(0)
    unit = unit / unit.norm(dim=1).max()
    every = (unit[:, None] - unit).norm(dim=-1).flatten()
    exact = torch.histc(every, 64, 0, 2) / len(every)
    assert made.shape == (64,) and float(made.sum()) == pytest.approx(1)
    assert float((made - exact).abs().max()) < 5 * (0.25 / 2**15) ** 0.5
    assert torch.equal(ADAPTER.baseline(points), made)
    turned = points[:, [1, 2, 0]] * 5 + 2  # blind to rotation, scale and place
    torch.testing.assert_close(ADAPTER.baseline(turned), made, atol=2e-4, rtol=0)
    mesh = ADAPTER.baseline(TETRAHEDRON)
    assert mesh.shape == (64,) and torch.isfinite(mesh).all()


def test_pictures_have_one_frame_and_grey_hidden_points():
    points = torch.from_numpy(clouds(1, 200)[0])
    whole = ADAPTER.picture(points)
    assert whole.dtype == np.uint8 and whole.shape[2] == 3 and (whole[0] == 255).all()
    seen = torch.zeros(200, dtype=torch.bool)
    nothing = ADAPTER.picture(Shown(points, seen))
    assert (nothing == nothing[..., :1]).all() and nothing.min() == 228  # grey only
    assert np.array_equal((nothing < 250).any(2), (whole < 250).any(2))  # at the same places
    seen[:100] = True
    half = ADAPTER.picture(Shown(points, seen))
    blue = (half.max(2).astype(int) - half.min(2)) > 40
    assert 0.2 < blue.sum() / ((whole.max(2).astype(int) - whole.min(2)) > 40).sum() < 0.9
    assert ADAPTER.picture(TETRAHEDRON).shape == whole.shape
    assert ADAPTER.picture(torch.zeros(5, 3)).shape == whole.shape


def test_the_sample_is_fixed_balanced_and_finite():
    points, labels = generate(40)
    again, _ = generate(20)
    assert np.array_equal(points[:20], again) and np.isfinite(points).all()
    assert np.bincount(labels).tolist() == [4] * 10 and points.shape == (40, 1024, 3)
    assert np.linalg.norm(points, axis=2).max() < 1.001
    assert np.abs(points.mean(1)).max() < 1e-3
    assert np.array_equal(points, np.round(points * 2048) / 2048)
    assert len({one.tobytes() for one in points}) == 40
    found = PointCloudSample(ADAPTER).splits()
    assert {name: len(d) for name, d in found.items()} == {"train": 800, "test": 200}
    assert found["train"].classes == list(CLASSES) and len(CLASSES) == 10
    assert np.array_equal(found["train"].read(7).numpy(), points[7])
    assert torch.bincount(found["test"].labels).tolist() == [20] * 10


def test_classes_of_points_in_one_file(tmp_path):
    """COSEG's parts begin at 1 in each category, and become classes of their own; others are taken as they are."""
    part = np.array([[1, 2, 3, 3]] * 3, np.uint8)
    arrays = {"train_points": clouds(3, 4), "train_category": np.array([0, 1, 1]), "train_part": part,
              "test_points": clouds(2, 4), "test_category": np.array([1, 2]), "test_part": part[:2] + 1}  # fmt: skip
    np.savez(tmp_path / "set.npz", **arrays)
    found = splits(tmp_path, label="category", segments="part", segments_by_label=True)
    # pairs that occur: (0, 1..3), (1, 1..4), (2, 2..4)
    assert [found["train"].segments.of(i, None).tolist() for i in range(3)] == [
        [0, 1, 2, 2],
        [3, 4, 5, 5],
        [3, 4, 5, 5],
    ]
    assert [found["test"].segments.of(i, None).tolist() for i in range(2)] == [[4, 5, 6, 6], [7, 8, 9, 9]]
    plain = splits(tmp_path)["train"]  # the array's name is a known one
    assert plain.segments.of(2, None).tolist() == [1, 2, 3, 3]
    with pytest.raises(ValueError, match=r"data.source.segments='prt'.*no array 'train_prt'; did you mean"):
        splits(tmp_path, segments="prt")
    with pytest.raises(ValueError, match=r"one whole number per point, 12"):
        splits(tmp_path, segments="category")
    np.savez(tmp_path / "set.npz", points=clouds(6, 4), labels=np.arange(6) % 2, part=np.tile(np.arange(6)[:, None], 4))
    held = splits(tmp_path, test_share=0.4)
    for split in held.values():  # a held-out share keeps its own
        for i in range(len(split)):
            assert split.segments.of(i, None).tolist() == [int(split.index[i])] * 4
    np.savez(tmp_path / "set.npz", points=clouds(6, 4), part=np.arange(6))  # of that name, but of clouds
    assert splits(tmp_path)["train"].segments is None
    with pytest.raises(ValueError, match="segments_by_label=true wants labels"):
        splits(tmp_path, segments_by_label=True)


def test_classes_of_points_in_files_beside():
    cloud = torch.zeros(3, 3)
    assert ADAPTER.segments(b"4\n-9\n0\n", cloud).tolist() == [4, -1, 0]
    assert ADAPTER.segments(None, cloud).tolist() == [-1, -1, -1]
    for blob, sample, said in ((b"1\n2\n", cloud, "for 3 points"), (b"1\n", TETRAHEDRON, "a mesh")):
        with pytest.raises(ValueError, match=said):
            ADAPTER.segments(blob, sample)
