"""A folder of files: with classes, with splits, or just files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

import torch

from mmssl.data.segments import SegmentFiles
from mmssl.data.source import SPLITS, Adapter, Dataset, Files, find_root
from mmssl.data.subset import hold_out
from mmssl.registry import register, suggest


@register("source/folder")
class Folder:
    """All files of the modality's types below a folder.

    * Subfolders `train`, `val` and `test` (and nothing else at the top) are used as splits.
    * Below that, or below the root, subfolders are classes if every file lies in one and there are at least two.
    * Labelled data without `val` and `test` hold out `test_share` of each class; see `mmssl.data.subset.hold_out`.
    * Files that lie flat are unlabelled.

    Hidden files are left out, links are followed.

    Args:
        adapter: the modality.
        root: the folder.
        test_share: share of each class that becomes the test split.
        labels: false takes subfolders as mere order, true refuses data without classes, null finds out.
        segments: a folder of files that say the class of each element (pixel, point) of a sample, each at the sample's
            path but for the ending: `train/cat/7.png` for `train/cat/7.jpg`. A sample without one has no classes.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        root: str,
        test_share: float = 0.1,
        labels: bool | None = None,
        segments: str | None = None,
    ) -> None:
        self.adapter, self.root, self.test_share, self.labels = adapter, root, test_share, labels
        self.segments = segments

    def splits(self) -> dict[str, Dataset]:
        """Data sets by split.

        Raises:
            ValueError: for a missing or empty folder, and for classes that do not agree between the splits.
        """
        root = find_root(self.root)
        if not root.is_dir():
            raise ValueError(f"data.root={self.root} is a file, not a folder; for a table of files use data=manifest")
        names = scan(root, self.adapter)
        beside = None if self.segments is None else _beside(self.adapter, self.segments, root, names)

        def make(folder: Path, own: list[str], *more: Any) -> Dataset:
            files = None
            if beside is not None:
                top = folder.relative_to(root)
                files = SegmentFiles(beside[0], [beside[1].get(_stem(top / name)) for name in own])
            return Files(self.adapter, folder, own, *more, segments=files)

        return arranged(names, root, make, self.test_share, self.labels)


def _stem(path: PurePath) -> str:
    return path.with_suffix("").as_posix()


def _beside(adapter: Any, segments: str, root: Path, names: list[str]) -> tuple[Callable[..., Any], dict[str, Path]]:
    """What reads a file of elements' classes, and these files by their path in the folder, without ending."""
    if not hasattr(adapter, "segments"):
        raise ValueError(
            f"data.source.segments={segments}: {adapter.name} samples have no elements whose classes could be read "
            "from files; leave the key away"
        )
    folder = find_root(segments)
    if folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"data.source.segments={segments} lies in data.root={root}, all of whose files are samples; put the two "
            "folders side by side"
        )
    found = {
        _stem((top / name).relative_to(folder)): top / name
        for top, _, files in walk(folder)
        for name in files
        if name.lower().endswith(adapter.segment_extensions)
    }
    if not any(_stem(PurePath(name)) in found for name in names):
        endings = ", ".join(adapter.segment_extensions)
        raise ValueError(
            f"data.source.segments={segments} holds no file for any sample: looked for "
            f"{_stem(PurePath(names[0]))} with {endings}, the path of {names[0]}, and found {len(found)} files"
            f"{suggest(_stem(PurePath(names[0])), found)}"
        )
    return adapter.segments, found


def arranged(
    names: list[str], root: Path, make: Callable[..., Dataset], test_share: float, labels: bool | None
) -> dict[str, Dataset]:
    """Samples in folders as data sets by split, labelled by their class folders; see `Folder`.

    Args:
        names: paths of the samples relative to the root.
        root: the folder.
        make: called with (folder, names, labels, classes).
        test_share: share of each class that becomes the test split where there is none.
        labels: false takes subfolders as mere order, true refuses data without classes, null finds out.

    Raises:
        ValueError: for classes that do not agree between the splits, or are missing where they are asked for.
    """
    parts = _by_split(names, root)
    classes = None if labels is False else _classes(parts["train"][1])
    if labels and classes is None:
        raise ValueError(
            f"data.source.labels=true, but {root} has no class folders: every sample has to lie in a subfolder named "
            "by its class, and there have to be at least two; for unlabelled data leave the key away"
        )
    splits: dict[str, Dataset] = {
        split: make(folder, own, *_labelled(own, classes, split)) for split, (folder, own) in parts.items()
    }
    return hold_out(splits["train"], test_share) if set(splits) == {"train"} else splits


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Every folder below a root once, links followed: its path, its subfolders and its files, hidden ones left out."""
    seen = set[str]()
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = [] if real in seen else sorted(name for name in inner if not name.startswith((".", "__MACOSX")))
        if real in seen:  # a link back into the tree
            continue
        seen.add(real)
        yield Path(folder), inner, [name for name in files if not name.startswith(".")]


def scan(root: Path, adapter: Adapter) -> list[str]:
    """Paths of the modality's files relative to the root, sorted.

    Raises:
        ValueError: where there is none, with what was found instead.
    """
    found, other = [], Counter[str]()
    for folder, _, files in walk(root):
        for name in files:
            if name.lower().endswith(adapter.extensions):
                found.append((folder / name).relative_to(root).as_posix())
            else:
                other[Path(name).suffix.lower() or "no extension"] += 1
    if found:
        return sorted(found)
    instead = ", ".join(f"{count} {kind}" for kind, count in other.most_common(5)) or "no files at all"
    table = {".parquet", ".csv", ".tsv"} & set(other)
    remedy = "use data=manifest for tables" if table else "check data.root and modality"
    raise ValueError(
        f"data.root={root} holds no {adapter.name} files: looked in it and below it for "
        f"{', '.join(adapter.extensions)}, found {instead}; {remedy}"
    )


def _by_split(names: list[str], root: Path) -> dict[str, tuple[Path, list[str]]]:
    """The folder of each split and the names relative to it; all is train where there are no split folders."""
    tops = {name.split("/")[0] if "/" in name else "" for name in names}
    if not tops <= set(SPLITS) or "train" not in {SPLITS[top] for top in tops}:
        return {"train": (root, names)}
    if len({SPLITS[top] for top in tops}) < len(tops):
        raise ValueError(f"data.root={root} has two folders for the same split: {', '.join(sorted(tops))}; keep one")
    return {
        SPLITS[top]: (root / top, [name[len(top) + 1 :] for name in names if name.startswith(f"{top}/")])
        for top in sorted(tops)
    }


def _classes(names: list[str]) -> list[str] | None:
    """Names of the class folders, sorted; None where files lie flat or in one folder only."""
    tops = {name.split("/")[0] if "/" in name else "" for name in names}
    return sorted(tops) if len(tops) > 1 and "" not in tops else None


def _labelled(names: list[str], classes: list[str] | None, split: str) -> tuple[torch.Tensor | None, list[str] | None]:
    """Labels of files by their class folder, and the classes; None where the split lies flat."""
    if classes is None or any("/" not in name for name in names):
        return None, None
    code = {name: i for i, name in enumerate(classes)}
    tops = [name.split("/")[0] for name in names]
    unknown = sorted(set(tops) - set(code))
    if unknown:
        raise ValueError(
            f"data.root: the {split} split has the class {unknown[0]!r}, which the train split has not"
            f"{suggest(unknown[0], classes)}; name the folders alike, or set data.source.labels=false"
        )
    return torch.tensor([code[top] for top in tops]), classes
