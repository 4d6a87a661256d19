"""Cells that are hidden on purpose, and what a trained run puts there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmssl.draws import Draws
from mmssl.modalities.tabular.encoding import Cells
from mmssl.modalities.tabular.imputation import BATCH, answers, observing
from mmssl.types import View


def holes(values: np.ndarray, given: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which cells are hidden, (n, c) bool: each given cell with a probability, completely at random (MCAR).

    A row keeps one cell at least. Draws depend on the row's place and the seed alone.
    """
    draws = Draws.of(seed, 0, torch.arange(len(values))).named("holes")
    luck = draws.uniform(values.shape[1]).numpy()
    hidden = given & (luck < share)
    bare = given.any(1) & (hidden == given).all(1)
    # of a row that lost all, the cell that was nearest to staying
    hidden[bare, np.where(given, luck, -1.0).argmax(1)[bare]] = False
    return hidden


def fill(adapter: Any, module: Any, table: Any, rows: np.ndarray, share: float, seed: int) -> dict[str, np.ndarray]:
    """Hides cells of some rows and asks a run for them.

    Args:
        adapter: the modality, with the encoding of the run in use.
        module: the run, with its decoder.
        table: the table.
        rows: numbers of the rows.
        share: of the given cells that is hidden.
        seed: of the choice.

    Returns:
        `truth` and `filled`, (rows, columns) float64 scaled to [0, 1] by the training data, categories as their codes;
        `hidden`, which cells were, bool.

    Raises:
        ValueError: for a run that predicts no raw values of hidden tokens.
    """
    values, given = (array[rows] for array in adapter.encoded(table))
    hidden = holes(values, given, share, seed)
    kept = given & ~hidden
    found = np.zeros(values.shape, np.float64)
    with observing(module) as term, torch.no_grad():
        for first in range(0, len(rows), BATCH):
            part = slice(first, first + BATCH)
            cells = Cells(torch.from_numpy(np.where(kept[part], values[part], 0.0)), torch.from_numpy(kept[part]))
            found[part] = answers(module, term, View(cells, adapter.name), rows[part]).cpu().numpy()
    return {"truth": _codes(adapter, values), "filled": _codes(adapter, found), "hidden": hidden}


def typical(adapter: Any, table: Any, rows: np.ndarray) -> np.ndarray:
    """What is usual in each column of some rows, (columns,): the mean of numbers, the commonest code of categories."""
    values, given = (array[rows] for array in adapter.encoded(table))
    codes, found = _codes(adapter, values), []
    for place, named in enumerate(adapter.categorical.tolist()):
        cells = codes[given[:, place], place]
        found.append(np.bincount(cells.astype(np.int64)).argmax() if named else cells.mean())
    return np.array(found, np.float64)


def _codes(adapter: Any, values: np.ndarray) -> np.ndarray:
    """Scaled numbers as they are, categories as codes."""
    return np.where(adapter.categorical.numpy(), adapter.encoding.decode(values), values.astype(np.float64))
