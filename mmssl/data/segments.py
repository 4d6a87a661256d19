"""Classes of a sample's elements (pixels of an image, points of a cloud): read beside it, and moved as views move it.

Evaluation alone reads them; a batch then holds `segments`, (b, ...) int64, -1 for an element without a class. A view
operation says what becomes of them by a method `segments(classes, sample, draws)`, where the sample is the one that the
operation is about to change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mmssl.draws import Draws


class Segments(Protocol):
    """The classes of all elements of the samples of a data set."""

    def of(self, i: int, sample: Any) -> Tensor:
        """Classes of the i-th sample's elements as they lie in it, int64, -1 where there is none.

        Raises:
            ValueError: where they cannot be read, or do not fit the sample.
        """
        ...

    def where(self, index: np.ndarray) -> Segments:
        """Those of some samples."""
        ...


class SegmentTable:
    """Classes in one array.

    Args:
        values: integers, (n, ...); below 0 where there is no class.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def of(self, i: int, sample: Any) -> Tensor:
        """The i-th row."""
        return torch.from_numpy(np.maximum(self.values[i].astype(np.int64), -1))

    def where(self, index: np.ndarray) -> SegmentTable:
        """Those rows."""
        return SegmentTable(self.values[index])


class SegmentFiles:
    """Classes in a file for each sample.

    Args:
        read: called with a file's bytes, or None, and the sample.
        files: of each sample, None where it has none.
    """

    def __init__(self, read: Callable[[bytes | None, Any], Tensor], files: Sequence[Path | None]) -> None:
        self.read, self.files = read, files

    def of(self, i: int, sample: Any) -> Tensor:
        """What the i-th file says; ValueError that names it where it does not fit the sample."""
        file = self.files[i]
        try:
            return self.read(None if file is None else file.read_bytes(), sample)
        except (ValueError, OSError) as error:
            raise ValueError(f"data.source.segments: {file}: {error}") from error

    def where(self, index: np.ndarray) -> SegmentFiles:
        """Those files."""
        return SegmentFiles(self.read, [self.files[i] for i in index.tolist()])


def unmoved(operation: Any, classes: Tensor, sample: Any, draws: Draws) -> Tensor:
    """The method `segments` of operations that leave every element where it is."""
    return classes


def mover(operation: Any) -> Callable[[Tensor, Any, Draws], Tensor]:
    """What moves classes along with a view operation.

    Raises:
        ValueError: where the operation does not say what becomes of them.
    """
    said = getattr(operation, "segments", None)
    if said is None:
        name = getattr(operation, "__name__", type(operation).__name__)
        raise ValueError(
            f"view: {name} does not say what becomes of the classes of elements (pixels, points); leave it out of the "
            "view, or give it a method segments(classes, sample, draws)"
        )
    return said
