"""Columns of labels: classes, quantities, or both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.modalities.tabular.table import make

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)
NAMES = ("label", "labels", "class", "target")
_MOST = 100  # numbers of more different values are a quantity and no class


def codes(
    cells: pa.ChunkedArray, name: str, missing: Sequence[str], origin: str
) -> tuple[Tensor | None, list[str] | None]:
    """Labels as integers, -1 where missing, and the names of the classes; neither where they are no classes.

    Text, truth values, and whole numbers of at most 100 different values are classes, in sorted order.

    Args:
        cells: the column.
        name: its name, for messages.
        missing: texts that mean a missing cell.
        origin: for messages.
    """
    import pyarrow as pa

    column = pa.table({name: cells})
    found = make(column, [name], [name], missing, origin)
    if not found.columns:
        _log.warning("%s: the label column %r is not used: %s", origin, name, found.skipped[name])
        return None, None
    classes = list(found.columns[0].categories)
    numbers = _numbers(classes)
    if numbers is not None and (any(not number.is_integer() for number in numbers) or len(numbers) > _MOST):
        _log.warning(
            "%s: the label column %r holds quantities (%d different numbers) and no classes, so that only "
            "protocol=regression scores it; it is no feature", origin, name, len(numbers),
        )  # fmt: skip
        return None, None
    values = found.values[:, 0]
    return torch.from_numpy(np.where(np.isnan(values), -1, values).astype(np.int64)), classes


def quantities(cells: pa.ChunkedArray, name: str, missing: Sequence[str], origin: str) -> Tensor | None:
    """A column of numbers as (n,) float64, NaN where missing; None where it holds anything else. See `codes`."""
    import pyarrow as pa

    found = make(pa.table({name: cells}), [name], [], missing, origin)
    if not found.columns or found.columns[0].kind != "numeric":
        return None
    return torch.from_numpy(found.values[:, 0].astype(np.float64))


def _numbers(texts: Sequence[str]) -> list[float] | None:
    try:
        return [float(text) for text in texts]
    except ValueError:
        return None
