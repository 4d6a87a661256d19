"""Filling the missing cells of a table with the predictions of a trained run, and writing the table again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmssl.modalities.tabular.encoding import Encoding
from mmssl.modalities.tabular.maskers import Observed
from mmssl.modalities.tabular.reading import compute, write
from mmssl.modalities.tabular.table import Column, Row, Table, is_text, without_missing
from mmssl.types import View

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)
BATCH = 1024


def impute(adapter: Any, module: Any, data: Any, out: Path) -> dict[str, Any]:
    """Writes the data's table with its missing cells filled.

    All rows of all splits are written, in the order of the files, with all of their columns, labels too. Only missing
    cells change: numbers get the prediction in the units of the table (rounded where the column holds whole numbers),
    categories the nearest one, columns of one value that value. What cannot be filled (labels, columns that are not
    used) stays missing and is counted.

    Args:
        adapter: the modality, with the encoding of the trained run in use.
        module: the trained run, with its decoder.
        data: data whose splits are rows of one table.
        out: a `.csv`, `.tsv` or `.parquet` file.

    Returns:
        `rows`, `filled` (cells by column) and `left` (cells that stay missing, by column).

    Raises:
        ValueError: for a run that predicts no raw values of hidden tokens, or another ending of the file.
    """
    source = data.splits["train"]
    table: Table = source.table
    predicted = predict(adapter, module, table)
    filled, counts = fill(source.original.table, table, predicted, adapter.encoding, source.original.missing)
    write(Path(out), filled)
    return {"rows": filled.num_rows} | counts


def predict(adapter: Any, module: Any, table: Table) -> np.ndarray:
    """Predictions for the missing cells, (rows, fitted columns) float64 in the units of the table; NaN elsewhere.

    Every row is seen by all of its given cells.

    Raises:
        ValueError: for a run that predicts no raw values of hidden tokens.
    """
    given = adapter.encoded(table)[1]
    found = np.full(given.shape, np.nan)
    rows = np.flatnonzero(~given.all(1))
    with observing(module) as term, torch.no_grad():
        for first in range(0, len(rows), BATCH):
            part = rows[first : first + BATCH]
            cells = adapter.collate([Row(table, int(i)) for i in part])
            values = answers(module, term, View(cells, adapter.name), part)
            asked = ~given[part]
            found[part] = np.where(asked, adapter.encoding.decode(values.cpu().numpy()), np.nan)
    return found


def answers(module: Any, term: Any, view: View, ids: np.ndarray) -> Tensor:
    """Predicted raw values at all missing places of a batch, (b, c); zeros elsewhere."""
    device = next(module.parameters()).device
    index = torch.from_numpy(ids).to(device)
    views = {name: view.to(device) for name in module.looks[term.look].views}
    step = module.begin(views | {"id": index, "epoch": torch.zeros_like(index)})
    query, prediction = term.predict(step)[term.at.index("hidden")]
    values = term.target.restore(query, prediction.float())[..., 0]
    if query.valid is not None:  # padding of rows with fewer missing cells
        values = torch.where(query.valid, values, 0.0)
    raw = step[term.look].tokens.raw[..., 0]
    # added and not written: padding repeats places
    return torch.zeros_like(raw).scatter_add_(1, query.index, values)


@contextmanager
def observing(module: Any) -> Iterator[Any]:
    """A run whose look sees all that is given, in evaluation mode; gives the term that predicts raw values.

    Raises:
        ValueError: where there is no such term.
    """
    term = next(
        (t for t in module.objective.values() if hasattr(getattr(t, "target", None), "restore") and "hidden" in t.at),
        None,
    )
    if term is None:
        raise ValueError(
            "what=imputed needs a run that predicts raw values of hidden cells, such as tabular/remasker; this run's "
            f"terms are {', '.join(module.objective)}"
        )
    look, training = module.looks[term.look], module.training
    masker, shared = look.masker, look.mask
    look.masker, look.mask = Observed(), None
    module.eval()
    try:
        yield term
    finally:
        look.masker, look.mask = masker, shared
        module.train(training)


def fill(
    original: pa.Table, table: Table, predicted: np.ndarray, encoding: Encoding, missing: tuple[str, ...]
) -> tuple[pa.Table, dict[str, Any]]:
    """A table as it was read, with its missing cells filled.

    Args:
        original: the table as read, all columns.
        table: the same rows as numbers.
        predicted: (rows, fitted columns), see `predict`.
        encoding: the fitted encoding.
        missing: texts that mean a missing cell.

    Returns:
        The table, columns and their types as before, and `filled` and `left`, counts of cells by column.
    """
    fitted = {column.name: j for j, column in enumerate(encoding.columns)}
    constant = {entry["name"]: entry["value"] for entry in encoding.dropped if "value" in entry}
    place = {column.name: i for i, column in enumerate(table.columns)}
    filled: dict[str, int] = {}
    left: dict[str, int] = {}
    result = original
    for number, name in enumerate(original.column_names):
        absent = _absent(original[name], missing)
        if name in place:
            absent |= np.isnan(table.values[:, place[name]])
        rows = np.flatnonzero(absent)
        if not len(rows):
            continue
        if name in fitted and name in place:
            words = _words(encoding.columns[fitted[name]], predicted[rows, fitted[name]])
        elif name in constant:
            words = [constant[name]] * len(rows)
        else:
            left[name] = len(rows)
            continue
        result = result.set_column(number, name, _replaced(original[name], rows, words))
        filled[name] = len(rows)
    if left:
        _log.warning(
            "cells that stay missing: %s", ", ".join(f"{count} of column {name!r}" for name, count in left.items())
        )
    return result, {"filled": filled, "left": left}


def _absent(cells: pa.ChunkedArray, missing: tuple[str, ...]) -> np.ndarray:
    """Which cells are missing, (rows,) bool."""
    pc = compute()

    return pc.is_null(without_missing(cells, missing) if is_text(cells) else cells).to_numpy()


def _words(column: Column, values: np.ndarray) -> list[Any]:
    """Predictions as categories, whole numbers or numbers of seven digits, as precise as float32."""
    if column.kind == "categorical":
        return [column.categories[int(value)] for value in values]
    return [round(value) if column.whole else float(f"{value:.7g}") for value in values.tolist()]


def _replaced(cells: pa.ChunkedArray, rows: np.ndarray, words: list[Any]) -> pa.ChunkedArray:
    """A column with some cells replaced, of the same type as before."""
    import pyarrow as pa

    pc = compute()

    kind = cells.type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_string(plain) or pa.types.is_large_string(plain):
        values = pa.array([_text(word) for word in words], plain)
    elif pa.types.is_temporal(plain):
        width = pa.int32() if plain.bit_width == 32 else pa.int64()
        values = pa.array(words, width).cast(plain)
    elif isinstance(words[0], str):  # numbers or truth values that were taken as categories
        values = pa.array(words).cast(plain)
    else:
        values = pa.array([float(word) for word in words]).cast(plain, safe=False)
    flags = np.zeros(len(cells), dtype=bool)
    flags[rows] = True
    made = pc.replace_with_mask(cells.cast(plain).combine_chunks(), pa.array(flags), values)
    return pa.chunked_array([made]).cast(kind) if plain != kind else pa.chunked_array([made])


def _text(word: Any) -> str:
    return word if isinstance(word, str) else f"{word:.7g}" if isinstance(word, float) else str(word)
