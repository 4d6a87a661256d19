"""Image data sets by name. None is fetched unless `download` is set."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmssl.data.manifest import Manifest
from mmssl.data.source import Adapter, Arrays, Dataset, find_root
from mmssl.registry import register

_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_IDX = {"train": "train", "test": "t10k"}


@register("source/cifar10")
class Cifar10:
    """CIFAR-10: 32x32 RGB, 10 classes, 50,000 training and 10,000 test images (Krizhevsky 2009).

    Args:
        adapter: the image modality.
        root: a folder with `cifar-10-batches-py` (torchvision's layout), that folder itself, or a folder with
            `train.parquet` and `test.parquet` (Hugging Face's layout).
        download: lets torchvision fetch the set into `root` where it is not there.
    """

    def __init__(self, adapter: Adapter, *, root: str, download: bool = False) -> None:
        self.adapter, self.root, self.download = adapter, root, download

    def splits(self) -> dict[str, Dataset]:
        """Train and test; ValueError where `root` holds no CIFAR-10."""
        return _cifar("CIFAR10", "cifar-10-batches-py", self.adapter, self.root, self.download)


@register("source/cifar100")
class Cifar100:
    """CIFAR-100: 32x32 RGB, 100 classes, 50,000 training and 10,000 test images (Krizhevsky 2009).

    Args:
        adapter: the image modality.
        root: a folder with `cifar-100-python` (torchvision's layout), that folder itself, or a folder with
            `train.parquet` and `test.parquet` (Hugging Face's layout; labels are the column `fine_label`).
        download: lets torchvision fetch the set into `root` where it is not there.
    """

    def __init__(self, adapter: Adapter, *, root: str, download: bool = False) -> None:
        self.adapter, self.root, self.download = adapter, root, download

    def splits(self) -> dict[str, Dataset]:
        """Train and test; ValueError where `root` holds no CIFAR-100."""
        return _cifar("CIFAR100", "cifar-100-python", self.adapter, self.root, self.download, label="fine_label")


@register("source/fashion_mnist")
class FashionMnist:
    """Fashion-MNIST: 28x28 grey, 10 classes, 60,000 training and 10,000 test images (Xiao, Rasul, Vollgraf 2017).

    Args:
        adapter: the image modality.
        root: a folder with `FashionMNIST/raw` (torchvision's layout) or with the four idx files, gzipped or not.
        download: lets torchvision fetch the set into `root` where it is not there.
    """

    def __init__(self, adapter: Adapter, *, root: str, download: bool = False) -> None:
        self.adapter, self.root, self.download = adapter, root, download

    def splits(self) -> dict[str, Dataset]:
        """Train and test; ValueError where `root` holds no Fashion-MNIST."""
        if self.download:
            import torchvision

            torchvision.datasets.FashionMNIST(self.root, download=True)
        root = find_root(self.root)
        for folder in (root, root / "raw", root / "FashionMNIST" / "raw"):
            if (folder / "train-images-idx3-ubyte").exists() or (folder / "train-images-idx3-ubyte.gz").exists():
                return {split: _idx_split(folder, split) for split in _IDX}
        raise ValueError(
            f"data.root={self.root} holds no Fashion-MNIST: expected train-images-idx3-ubyte(.gz) in it, in raw/ or in "
            "FashionMNIST/raw/; data.source.download=true fetches it there"
        )


@register("source/image_sample")
class ImageSample:
    """The sample shipped with mmssl: 8,000 training and 2,000 test images of Fashion-MNIST, 28x28 grey, 10 classes."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def splits(self) -> dict[str, Dataset]:
        """Train and test."""
        with np.load(Path(__file__).parent / "sample" / "fashion_mnist_10k.npz") as held:
            return {
                split: _arrays(held[f"{split}_images"][:, None], held[f"{split}_labels"], _FASHION, f"sample/{split}")
                for split in ("train", "test")
            }


def _arrays(images: np.ndarray, labels: Any, classes: Any, origin: str) -> Arrays:
    return Arrays(images, torch.as_tensor(np.asarray(labels, dtype=np.int64)), list(classes), origin)


def _cifar(
    name: str, inner: str, adapter: Adapter, root: str, download: bool, label: str | None = None
) -> dict[str, Dataset]:
    """Either CIFAR from torchvision's layout or from Parquet."""
    import torchvision

    kind = getattr(torchvision.datasets, name)
    if download:
        kind(root, download=True)
    path = find_root(root)
    if path.name == inner:
        path = path.parent
    if (path / "train.parquet").exists():
        import pyarrow.parquet

        columns = pyarrow.parquet.read_schema(path / "train.parquet").names
        return Manifest(adapter, root=str(path), label=label if label in columns else None).splits()
    if not (path / inner).is_dir():
        raise ValueError(
            f"data.root={root} holds no {name}: expected the folder {inner} (unpacked) or train.parquet and "
            "test.parquet in it; data.source.download=true fetches it there"
        )
    try:
        sets = {"train": kind(path, train=True), "test": kind(path, train=False)}
    except RuntimeError as error:
        raise ValueError(f"data.root={root}: the files in {inner} are not those of {name} ({error})") from error
    return {
        split: _arrays(held.data.transpose(0, 3, 1, 2), held.targets, held.classes, f"{name}/{split}")
        for split, held in sets.items()
    }


def _idx_split(folder: Path, split: str) -> Arrays:
    images, labels = (_idx(folder / f"{_IDX[split]}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    return _arrays(images[:, None], labels, _FASHION, f"fashion_mnist/{split}")


def _idx(path: Path) -> np.ndarray:
    """An idx file of bytes, gzipped or not: two zeros, type 8, number of axes, their lengths (big-endian), values."""
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and not packed.exists():
        raise ValueError(f"data.root: {path.parent} lacks {path.name}(.gz)")
    blob = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    axes = blob[3] if blob[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(blob, ">i4", axes, 4) if axes and len(blob) >= 4 + 4 * axes else np.zeros(1, dtype=int)
    if not axes or len(blob) != 4 + 4 * axes + int(shape.prod()):
        raise ValueError(f"data.root: {path} is not an idx file of bytes, or is cut off")
    return np.frombuffer(blob, np.uint8, offset=4 + 4 * axes).reshape(shape)
