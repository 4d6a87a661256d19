import gzip
import hashlib
import io
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image as Pil

from mmssl.data.folder import Folder
from mmssl.data.module import Data
from mmssl.modalities.image import sets
from mmssl.modalities.image.adapter import Image
from mmssl.parts import views
from mmssl.parts.color_views import ColorJitter

ADAPTER = Image()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def test_sample_is_what_its_readme_says():
    found = sets.ImageSample(ADAPTER).splits()
    train, test = found["train"], found["test"]
    assert len(train) == 8000 and len(test) == 2000
    assert train.labels.bincount().tolist() == [800] * 10 and test.labels.bincount().tolist() == [200] * 10
    assert train.read(0).shape == (1, 28, 28) and train.read(0).dtype == torch.uint8
    # the official training file starts with an ankle boot, two T-shirts and a dress
    assert [train.classes[i] for i in train.labels[:4]] == ["Ankle boot", "T-shirt/top", "T-shirt/top", "Dress"]
    mean = float(np.mean(train.samples)) / 255
    assert mean == pytest.approx(0.2860, abs=0.002)  # of the whole set, as published
    folder = Path(sets.__file__).parent / "sample"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000
    assert "MIT" in (folder / "LICENSE").read_text()


def idx(path, array, packed):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    blob = header + array.tobytes()
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(blob))
    else:
        path.write_bytes(blob)


@pytest.mark.parametrize(("inner", "packed"), [("", True), ("", False), ("FashionMNIST/raw", False), ("raw", True)])
def test_fashion_mnist(tmp_path, inner, packed):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    labels = np.array([9, 0, 1, 2, 3, 4], dtype=np.uint8)
    for split in ("train", "t10k"):
        idx(tmp_path / inner / f"{split}-images-idx3-ubyte", images if split == "train" else images[:2], packed)
        idx(tmp_path / inner / f"{split}-labels-idx1-ubyte", labels if split == "train" else labels[:2], packed)
    found = sets.FashionMnist(ADAPTER, root=str(tmp_path)).splits()
    assert torch.equal(found["train"].read(4), torch.from_numpy(images[4:5])) and len(found["test"]) == 2
    assert found["train"].labels.tolist() == [9, 0, 1, 2, 3, 4]
    assert found["train"].classes == torchvision.datasets.FashionMNIST.classes


def test_fashion_mnist_errors(tmp_path):
    with pytest.raises(ValueError, match=r"holds no Fashion-MNIST: .*download=true"):
        sets.FashionMnist(ADAPTER, root=str(tmp_path)).splits()
    idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 28, 28), np.uint8), False)
    with pytest.raises(ValueError, match="lacks train-labels-idx1-ubyte"):
        sets.FashionMnist(ADAPTER, root=str(tmp_path)).splits()
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1]))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte is not an idx file of bytes, or is cut off"):
        sets.FashionMnist(ADAPTER, root=str(tmp_path)).splits()


def cifar(folder, monkeypatch, kind):
    """Few images in torchvision's layout, with the checksums that torchvision then wants to see."""
    rng = np.random.default_rng(0)
    cls = getattr(torchvision.datasets, kind)
    key = "labels" if kind == "CIFAR10" else "fine_labels"
    inner = folder / cls.base_folder
    inner.mkdir(parents=True)
    sums = {}
    for name, _ in [*cls.train_list, *cls.test_list]:
        pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        (inner / name).write_bytes(pickle.dumps({"data": pixels, key: rng.integers(0, 10, 4).tolist()}))
    meta = {cls.meta["key"]: [f"class {i}" for i in range(10)]}
    (inner / cls.meta["filename"]).write_bytes(pickle.dumps(meta))
    for file in inner.iterdir():
        sums[file.name] = hashlib.md5(file.read_bytes()).hexdigest()
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(cls, attribute, [[name, sums[name]] for name, _ in getattr(cls, attribute)])
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": sums[cls.meta["filename"]]})
    return cls


@pytest.mark.filterwarnings("ignore:dtype\\(\\)")
@pytest.mark.parametrize(("kind", "source"), [("CIFAR10", sets.Cifar10), ("CIFAR100", sets.Cifar100)])
def test_cifar_in_torchvisions_layout(tmp_path, monkeypatch, kind, source):
    cls = cifar(tmp_path, monkeypatch, kind)
    wanted = cls(tmp_path, train=True)
    for root in (tmp_path, tmp_path / cls.base_folder):
        found = source(ADAPTER, root=str(root)).splits()
        assert len(found["train"]) == len(wanted) and len(found["test"]) == 4
        for i in range(4):
            pixels, label = wanted[i]
            assert np.array_equal(found["train"].read(i).permute(1, 2, 0).numpy(), np.array(pixels))
            assert found["train"].labels[i] == label
        assert found["train"].classes == wanted.classes
    (tmp_path / cls.base_folder / cls.test_list[0][0]).write_bytes(b"")
    with pytest.raises(ValueError, match=f"are not those of {kind}"):
        source(ADAPTER, root=str(tmp_path)).splits()


def png(pixels):
    out = io.BytesIO()
    Pil.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_cifar_from_parquet_is_kept_in_memory(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for split in ("train", "test"):
        cells = [{"bytes": png(image), "path": None} for image in pixels]
        pq.write_table(pa.table({"img": cells, "label": [*range(10), 0, 1]}), tmp_path / f"{split}.parquet")
    source = partial(sets.Cifar10, root=str(tmp_path))
    data = Data(ADAPTER, 0, source=source, views={"x": []}, view=[], batch_size=4, workers=0)
    assert data.dataset("train").in_memory
    batch = next(iter(data.train_dataloader()))
    assert np.array_equal(batch["x"].data.permute(0, 2, 3, 1).numpy(), pixels[batch["id"].numpy()])
    assert data.facts()["mean"] == pytest.approx((pixels.reshape(-1, 3).mean(0) / 255).tolist())


def test_cifar_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"data\.root=.* holds no CIFAR10: .*download=true"):
        sets.Cifar10(ADAPTER, root=str(tmp_path)).splits()


def folder_of_images(root):
    rng = np.random.default_rng(0)
    for i in range(12):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)))
    return root


def test_folder_of_images_through_real_views(tmp_path):
    ops = [views.RandomResizedCrop(size=16), views.Flip(), ColorJitter(), views.GaussianBlur(), views.Solarize()]
    view = [views.Resize(size=16), views.CenterCrop(size=16)]
    source = partial(Folder, root=str(folder_of_images(tmp_path / "d")), test_share=0)

    def made(workers):
        said = {"views": {"a": ops, "b": ops}, "view": view, "batch_size": 6, "workers": workers}
        return Data(ADAPTER, 3, source=source, **said)

    batches = list(made(0).train_dataloader())
    for one, two in zip(batches, made(2).train_dataloader(), strict=True):
        assert one["a"].data.shape == (6, 3, 16, 16) and not torch.equal(one["a"].data, one["b"].data)
        assert torch.equal(one["a"].data, two["a"].data) and torch.equal(one["b"].data, two["b"].data)
    assert next(iter(made(0).eval_loader("train")))["x"].data.shape == (6, 3, 16, 16)


def test_mixed_channels_name_the_remedy(tmp_path):
    root = folder_of_images(tmp_path / "d")
    (root / "a" / "grey.png").write_bytes(png(np.zeros((20, 30), np.uint8)))
    source = partial(Folder, root=str(root), test_share=0)
    said = {"source": source, "views": {"x": [views.CenterCrop(size=16)]}, "view": [], "batch_size": 13, "workers": 0}
    with pytest.raises(ValueError, match=r"\(1 with 1, 12 with 3\); set data\.channels=3"):
        Data(ADAPTER, 0, **said).facts()
    fixed = Data(ADAPTER, 0, **said, channels=3)
    assert fixed.facts()["channels"] == 3 and next(iter(fixed.train_dataloader()))["x"].data.shape[:2] == (13, 3)
