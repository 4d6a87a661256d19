"""A folder of files: with classes, with splits, or just files."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import torch

from mmssl.data.source import SPLITS, Adapter, Dataset, Files, find_root, hold_out
from mmssl.registry import register


@register("source/folder")
class Folder:
    """All files of the modality's types below a folder.

    * Subfolders `train`, `val` and `test` (and nothing else at the top) are used as splits.
    * Below that, or below the root, subfolders are classes if every file lies in one and there are at least two.
    * Labelled data without `val` and `test` hold out `test_share` of each class; see `mmssl.data.source.hold_out`.
    * Files that lie flat are unlabelled.

    Hidden files are left out, links are followed.

    Args:
        adapter: the modality.
        root: the folder.
        test_share: share of each class that becomes the test split.
        labels: false takes subfolders as mere order, true refuses data without classes, null finds out.
    """

    def __init__(
        self, adapter: Adapter, *, root: str, test_share: float = 0.1, labels: bool | None = None
    ) -> None:
        self.adapter, self.root, self.test_share, self.labels = adapter, root, test_share, labels

    def splits(self) -> dict[str, Dataset]:
        """Data sets by split.

        Raises:
            ValueError: for a missing or empty folder, and for classes that do not agree between the splits.
        """
        root = find_root(self.root)
        if not root.is_dir():
            raise ValueError(f"data.root={self.root} is a file, not a folder; for a table of files use data=manifest")
        by_split = _by_split(_scan(root, self.adapter), root)
        classes = None if self.labels is False else _classes(by_split["train"])
        if self.labels and classes is None:
            raise ValueError(
                f"data.source.labels=true, but {root} has no class folders: every file has to lie in a subfolder named "
                "by its class, and there have to be at least two; unlabelled data need no labels, leave the key away"
            )
        splits = {split: self._dataset(root, split, names, classes) for split, names in by_split.items()}
        return hold_out(splits["train"], self.test_share) if set(splits) == {"train"} else splits

    def _dataset(self, root: Path, split: str, names: list[str], classes: list[str] | None) -> Dataset:
        inner = "" if all(name in names for name in ()) else ""
        del inner
        return _files(self.adapter, root, split, names, classes)
